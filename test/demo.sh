#!/usr/bin/env bash
# usage: test/demo.sh IMAGE
# The main job on a small stack: data are written and snapshotted, everything is
# wiped, and `docker compose up` brings the stack up again with its data. It
# leaves nothing behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export BACKUPD_IMAGE=$1

# The user's Compose if there is one that knows what the file says; else the tests'.
if ! docker compose version >/dev/null 2>&1; then
	test/compose
	export DOCKER_CONFIG=$PWD/.cache/docker-config
fi

work=$(mktemp -d)
export REPOSITORY=backupd-demo-$$-repository # outlives the stack, as a bucket would
docker volume create "$REPOSITORY" >/dev/null
compose() { docker compose --progress quiet -p "backupd-demo-$$" --project-directory "$work" -f "$work/compose.yaml" "$@"; }
cleanup() {
	local rc=$?
	[ $rc = 0 ] || compose logs --tail 20 backup >&2 || true
	compose down -v --timeout 5 >/dev/null 2>&1 || true
	docker volume rm -f "$REPOSITORY" >/dev/null 2>&1 || true
	docker rmi backupd-demo/application:latest >/dev/null 2>&1 || true
	rm -rf "$work"
}
trap cleanup EXIT
cp test/demo/compose.yaml "$work/"

step() { printf '\n== %s\n' "$*"; }
run() {
	printf '$ docker compose %s\n' "$*"
	compose "$@"
}
page() { compose exec -T application /demo get /; }

step "A stack: an application, its two volumes, and backupd"
mkdir "$work/application"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$work/application/demo" ./test/demo
# The volumes' directories hold a file of the image, which Docker copies into new
# volumes before anything runs: a volume that is "not empty" and yet has no data.
mkdir -p "$work/application/root/data" "$work/application/root/pictures"
mv "$work/application/demo" "$work/application/root/demo"
echo "of the image" >"$work/application/root/pictures/placeholder"
printf 'FROM scratch\nCOPY root /\nENTRYPOINT ["/demo"]\n' >"$work/application/Dockerfile"
docker build -q -t backupd-demo/application:latest "$work/application" >/dev/null 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
run up -d

step "Somebody uses it"
for i in 1 2 3; do echo "Guest $i was here" | compose exec -T application /demo post /; done
head -c 300000 /dev/urandom >"$work/photo.jpg"
compose exec -T application /demo post /pictures/photo.jpg <"$work/photo.jpg"
page | tee "$work/before"

step "A snapshot"
run exec -T backup backupd backup

step "Everything is lost: containers, volumes, state"
run down -v
echo "$(docker volume ls -q --filter "label=com.docker.compose.project=backupd-demo-$$" | wc -l) volumes are left"

step "Somebody types docker compose up, and nothing else"
run up -d
page | tee "$work/after"

step "Compare"
diff "$work/before" "$work/after"
echo "identical: the stack came up with its data"
