package docker

// mongoArchive defines archive, which runs mongodump as the user that the official
// image has made. The password is in a pipe, as the content of a configuration
// file: in a process list, and in files, there is none.
const mongoArchive = preamble + `
user=$(secret MONGO_INITDB_ROOT_USERNAME) || exit 1
if [ -n "$user" ]; then
	password=$(secret MONGO_INITDB_ROOT_PASSWORD) || exit 1
	password=$(printf %s "$password" | sed 's/[\\"]/\\&/g') || exit 1
fi
archive() {
	if [ -n "$user" ]; then
		printf 'password: "%s"\n' "$password" | mongodump --archive --config=/dev/stdin --username="$user" --authenticationDatabase=admin "$@"
	else
		mongodump --archive "$@" </dev/null
	fi
}
`

// mongoDump takes the operations that were done meanwhile into the dump where the
// server keeps a log of them, as the members of replica sets do: they make it one
// of a single moment. Only mongodump knows where that is so, and says it before it
// writes a byte; then the dump is taken without. A log that may not be read is no
// such case. What it says is passed on while it runs, but for that refusal.
const mongoDump = mongoArchive + `
exec 3>&1
{
	archive --oplog 2>&1 >&3 3>&-
	printf '%s\n' "$?"
} | {
	refused= last=
	while IFS= read -r line; do
		[ -z "$last" ] || printf '%s\n' "$last" >&2
		last=$line
		case $line in
		*"error getting oplog start: "*nauthorized* | *"error getting oplog start: "*"not authorized"*) ;;
		*"error getting oplog start: "* | *"can't use --oplog option when dumping from a mongos"*) refused=1 last= ;;
		esac
	done
	[ -z "$refused" ] || exit 75
	exit "$last"
}
code=$?
exec 3>&-
[ "$code" = 75 ] || exit "$code"
archive
`

// mongoCheck reads all documents: a server checks each block that it reads. One
// that does not listen yet, or is still finding its place in its replica set, is waited for.
const mongoCheck = mongoArchive + `
until said=$(archive 2>&1 >/dev/null); do
	printf '%s\n' "$said"
	case $said in
	*"connection refused"* | *"(NotPrimary"* | *"(NotMaster"*) sleep 1 ;;
	*) exit 1 ;;
	esac
done
`
