#!/bin/sh
# Restores one volume from this backupd repository without backupd.
# It needs sh, jq, dd, zstd and GNU tar, for an encrypted repository also age,
# and reads docs/format.md's version 1.
set -eu
export LC_ALL=C

usage() {
	cat >&2 <<'EOF'
usage: sh restore.sh                                  lists the snapshots
       sh restore.sh SNAPSHOT STACK VOLUME DIRECTORY  restores one volume

SNAPSHOT is an id, the beginning of one, or "latest". DIRECTORY must be empty.
The repository is the directory that this script lies in; REPOSITORY=DIR names another.
An encrypted one needs IDENTITY=FILE, an age identity or ssh key that opens it, or asks for
the passphrase. Decrypted pieces lie in TMPDIR meanwhile: up to 300 MB.
Run it as root to get owners, devices and all attributes back.
EOF
	exit 2
}

die() {
	echo "restore.sh: $*" >&2
	exit 1
}

for tool in jq dd zstd tar; do
	command -v "$tool" >/dev/null || die "$tool is not installed; install it (Debian: apt-get install jq zstd tar coreutils) and run this again"
done
tar --version | grep -q 'GNU tar' || die "tar is not GNU tar, and others lose data; install GNU tar"
repo=${REPOSITORY:-$(dirname "$0")}
[ -f "$repo/backupd.json" ] || die "there is no backupd.json in $repo; set REPOSITORY to the repository's directory"
format=$(jq .format "$repo/backupd.json")
[ "$format" = 1 ] || die "the repository has format $format, this script reads 1"

overhead=$(jq -r '.encryption.overhead // empty' "$repo/backupd.json")
if [ -n "$overhead" ]; then
	command -v age >/dev/null || die "the repository is encrypted and age is not installed; install it (Debian: apt-get install age) and run this again"
	umask_was=$(umask)
	umask 077
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	trap 'exit 1' HUP INT TERM
	id=$(jq -r .id "$repo/backupd.json")
	for key in "$repo/keys/$(printf %.8s "$id")"-*; do
		case $key in *.meta) continue ;; esac
		if [ -n "${IDENTITY:-}" ]; then
			age -d -i "$IDENTITY" "$key" >"$tmp/key" 2>"$tmp/why" || continue
		else
			head -n 2 "$key" | grep -q '^-> scrypt ' || continue
			age -d "$key" >"$tmp/key" || continue
		fi
		[ "$(jq -r .repository "$tmp/key")" = "$id" ] || continue
		jq -r '.identities[]' "$tmp/key" >>"$tmp/identity"
	done
	rm -f "$tmp/key"
	[ -s "$tmp/identity" ] || die "nothing opens the repository's keys; set IDENTITY to a file with an identity that does, or leave it out to be asked for the passphrase"
	mkdir "$tmp/packs" "$tmp/index"
	umask "$umask_was"
fi

# plain FILE: an object's content.
plain() {
	if [ -n "$overhead" ]; then age -d -i "$tmp/identity" "$1"; else cat "$1"; fi
}

# name DIR: the name of the stack or volume whose directory it is.
name() {
	if [ -n "$overhead" ]; then plain "$1/name"; else basename "$1"; fi
}

# directory PARENT NAME: the directory of the stack or volume of that name.
directory() {
	for d in "$1"/*; do
		if [ -d "$d" ] && [ "$(name "$d")" = "$2" ]; then printf '%s' "$d" && return; fi
	done
}

# stored SIZE: how large an object with that much content is.
stored() {
	if [ -n "$overhead" ]; then
		chunks=$((($1 + 65535) / 65536))
		[ "$chunks" -gt 0 ] || chunks=1
		echo $((overhead + $1 + 16 * chunks))
	else
		echo "$1"
	fi
}

# manifest FILE: the manifest's JSON, after its checksum was compared.
manifest() {
	want=$(plain "$1" | zstd -dcq | sed -n 2p | jq -r .sha256)
	if command -v sha256sum >/dev/null; then
		have=$(plain "$1" | zstd -dcq | head -n 1 | tr -d '\n' | sha256sum | cut -d ' ' -f 1)
		[ "$want" = "$have" ] || die "$1 is damaged: its checksum does not match; choose another snapshot"
	fi
	[ -z "$overhead" ] || [ "${1##*-}" = "$(printf %.32s "$want")" ] || die "$1 was moved there from another place; choose another snapshot"
	plain "$1" | zstd -dcq | head -n 1
}

# forgotten MANIFEST: it is not wanted any more, and a prune will delete it. In an
# encrypted repository such a record may be anybody's, and this script cannot check it.
forgotten() {
	[ -z "$overhead" ] && [ -e "${1%/snapshots/*}/forgotten/${1##*/}" ]
}

if [ $# -eq 0 ]; then
	for f in "$repo"/stacks/*/snapshots/*; do
		[ -f "$f" ] || die "there is no snapshot in $repo"
		! forgotten "$f" || continue
		manifest "$f" | jq -r --arg id "${f##*-}" '"\($id)  \(.finished[0:19])  \(.stack)  \([.volumes[].name] | join(" "))"'
	done
	exit
fi
[ $# -eq 4 ] || usage
snapshot=$1 stack=$2 volume=$3 dir=$4

at=$(directory "$repo/stacks" "$stack")
case $snapshot in
latest) found=$(ls "$at/snapshots" 2>/dev/null | sort -n | while read -r f; do forgotten "$at/snapshots/$f" || echo "$f"; done | tail -n 1) ;;
*) found=$(ls "$at/snapshots" 2>/dev/null | grep -e "-$snapshot" || true) ;;
esac
[ -n "$found" ] || die "stack $stack has no snapshot $snapshot in $repo; without arguments this script lists them"
[ "$(printf '%s\n' "$found" | wc -l)" -eq 1 ] || die "$snapshot is the beginning of several ids; give more of it"
if [ -n "$overhead" ]; then
	belongs=$(manifest "$at/snapshots/$found" | jq -r '"\(.repository) \(.stack) \(.sequence)"')
	[ "$belongs" = "$id $stack $(printf %s "${found%%-*}" | sed 's/^0*//')" ] || die "$at/snapshots/$found was moved there from another place; choose another snapshot"
fi
of_volume=$(manifest "$at/snapshots/$found" | jq -c --arg v "$volume" '.volumes[] | select(.name == $v)')
[ -n "$of_volume" ] || die "that snapshot has no volume $volume"
objects=$(directory "$at/volumes" "$volume")

# Everything must be there before anything is written.
for kind in packs index; do
	printf '%s' "$of_volume" | jq -r --arg k "$kind" '.[$k][] | .run as $r | .first as $f | .sizes | to_entries[] | "\($r)-\($f + .key) \(.value)"' |
		while read -r name size; do
			[ -f "$objects/$kind/$name" ] && [ "$(wc -c <"$objects/$kind/$name")" -eq "$(stored "$size")" ] ||
				die "$objects/$kind/$name is missing or cut; choose another snapshot"
		done || exit 1
done

mkdir -p "$dir"
[ -z "$(ls -A "$dir" | grep -v '^lost+found$' || true)" ] || die "$dir is not empty; nothing was changed"

# pack KIND NAME: the file with a pack's content. Of decrypted ones, the last 16 stay.
pack() {
	if [ -z "$overhead" ]; then
		echo "$objects/$1/$2"
		return
	fi
	if [ ! -f "$tmp/$1/$2" ]; then
		ls -t "$tmp/$1" | tail -n +16 | while read -r old; do rm -f "$tmp/$1/$old"; done
		plain "$objects/$1/$2" >"$tmp/$1/$2.part" && mv "$tmp/$1/$2.part" "$tmp/$1/$2" ||
			die "$objects/$1/$2 cannot be decrypted; choose another snapshot"
	fi
	echo "$tmp/$1/$2"
}

# frames KIND: copies the frames that lines of references on its input name;
# those that lie one behind the other in one go.
frames() {
	jq -r '"\(.pack) \(.off) \(.len)"' | awk '
		$1 == pack && $2 == off + len && len < 67108864 { len += $3; next }
		pack != "" { print pack, off, len }
		{ pack = $1; off = $2; len = $3 }
		END { if (pack != "") print pack, off, len }' |
		while read -r pack off len; do
			from=$(pack "$1" "$pack") || exit 1
			dd if="$from" iflag=skip_bytes,count_bytes skip="$off" count="$len" bs=1M status=none
		done
}

# leaves LEVEL: from references to pages of a level, on its input, to those of the leaves.
leaves() {
	if [ "$1" -eq 0 ]; then
		cat
	else
		frames index | zstd -dcq | leaves $(($1 - 1))
	fi
}

# tree NAME: references to the leaves of one of the volume's trees.
tree() {
	root=$(printf '%s' "$of_volume" | jq -c --arg t "$1" '.[$t]')
	[ "$root" = null ] || printf '%s\n' "$root" | leaves "$(printf '%s' "$root" | jq .level)"
}

# unpack: extracts the frames on its input. Two blocks of zeros end an
# archive. A pipe's status is only tar's: what else fails says so on fd 3.
unpack() {
	failed=$({ { zstd -dcq || echo zstd >&3; dd if=/dev/zero bs=512 count=2 status=none; } |
		tar -x -p --numeric-owner --warning=no-timestamp --xattrs --xattrs-include='*' -f - -C "$dir" >&2 || echo tar >&3; } 3>&1)
	[ -z "$failed" ] || die "the data is damaged, or could not be written (see above); $dir is not complete"
}

echo "restore.sh: files" >&2
if [ "$(printf '%s' "$of_volume" | jq .frames)" != null ]; then
	tree frames | frames index | zstd -dcq | frames packs | unpack
fi
# Groups may hold files that the snapshot does not have any more: they go
# before the directories are given their times.
[ "$(printf '%s' "$of_volume" | jq .absent)" = null ] || tree absent | frames index | zstd -dcq | jq -r 'select(.old) | .path' |
	while IFS= read -r path; do
		name=$(printf '%b.' "$path") # the dot keeps newlines at the end
		name=${name%.}
		rm -f -- "$dir/$name"
		case $name in
		*/*) (cd "$dir" && rmdir -p --ignore-fail-on-non-empty -- "${name%/*}" 2>/dev/null) || true ;;
		esac
	done
echo "restore.sh: directories and links" >&2
tree nodes | jq -c '.tar[]' | frames packs | unpack
# A damaged index would name fewer frames, and nothing above would notice.
want=$(printf '%s' "$of_volume" | jq .counts.entries)
have=$(find "$dir" ! -path "$dir/lost+found" -print0 | tr -dc '\0' | wc -c)
[ "$want" -eq "$have" ] || die "$have entries were restored instead of $want: the index is damaged; $dir is not complete"
echo "restore.sh: restored $volume to $dir" >&2
# end of file
