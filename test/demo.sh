#!/usr/bin/env bash
# usage: test/demo.sh BACKUPD
# The main job on a small volume: back up, lose everything, restore, compare.
# It works in a temporary directory and leaves nothing behind.
set -euo pipefail
backupd=$(realpath "$1")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export BACKUPD_STATE_DIR=$work/state

step() { printf '\n== %s\n' "$*"; }
run() {
	printf '$ backupd %s\n' "$*"
	"$backupd" "$@"
}
# Everything about an entry but its inode and its directory's size.
listing() {
	(cd "$1" && find . -printf '%p %y %M %n %U:%G %T@ %l ' \( -type f -printf '%s' -o -true \) -printf '\n' | LC_ALL=C sort)
}

step "A volume with some data"
mkdir -p data/shop/images data/empty
seq 1 20000 >data/shop/orders.csv
for i in $(seq 1 200); do echo "article $i" >"data/shop/article-$i.txt"; done
head -c 3000000 /dev/urandom >data/shop/images/photo.jpg
truncate -s 20M data/sparse.img
ln -s shop/orders.csv data/latest
ln data/shop/orders.csv data/orders-again.csv
chmod 750 data/shop
chmod 600 data/shop/orders.csv
touch -d '2001-02-03 04:05:06.789' data/shop/article-1.txt data/empty
cp -a data original
echo "$(find data -type f | wc -l) files"

step "Back it up"
run backup --target "backups" --stack demo --volume data=data
run snapshots --target "backups" --stack demo

step "Lose it"
find data -mindepth 1 -delete
echo "$(find data -mindepth 1 | wc -l) entries are left"

step "Restore it"
run restore --target "backups" --stack demo --volume data=data

step "Compare"
diff -r --no-dereference original data
diff <(listing original) <(listing data)
echo "identical: contents, owners, modes, times and links"
