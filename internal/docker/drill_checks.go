package docker

// checkScripts are the built-in checks of drills. They wait until the server
// answers: the drill's time-out ends them.
var checkScripts = map[Kind]string{
	// amcheck reads tables and B-trees and finds what contradicts itself; without it,
	// all rows are read at least.
	Postgres: postgresLogin + `
until pg_isready -q -d postgres; do sleep 1; done
run='
ask() { psql -XAtqw -v ON_ERROR_STOP=1 -d postgres -c "$1"; }
names=$(ask "select datname from pg_database") || exit 1
[ -n "$names" ] || exit 1
extensions=$(ask "select name from pg_available_extensions") || exit 1
recovery=$(ask "select pg_is_in_recovery()") || exit 1
if [ "$recovery" = f ] && command -v pg_amcheck >/dev/null && printf "%s\\n" "$extensions" | grep -qx amcheck; then
	exec pg_amcheck --all --install-missing --no-password
fi
exec pg_dumpall --no-password >/dev/null
'
` + asSystemUser,
	// The program says of each table what it found, and succeeds whatever that is.
	MySQL: mysqlLogin + `
cli=mysql admin=mysqladmin check=mysqlcheck
if have mariadb-check; then cli=mariadb admin=mariadb-admin check=mariadb-check; fi
until "$admin" --user=root --silent ping >/dev/null 2>&1; do sleep 1; done
"$cli" --user=root --batch --execute='select 1' >/dev/null || exit 1
said=$("$check" --user=root --all-databases --check 2>&1) || { printf '%s\n' "$said"; exit 1; }
bad=$(printf '%s\n' "$said" | grep -Ei '^(error|status)[[:space:]]*:|corrupt$' | grep -Eiv '^status[[:space:]]*:[[:space:]]*OK$')
[ -z "$bad" ] || { printf '%s\n' "$said" | grep -Ev 'OK$' | tail -n 8; exit 1; }
`,
	MongoDB: mongoCheck,
	Redis: redisLogin + `
until said=$("$cli" ping 2>&1) && [ "$said" = PONG ]; do
	case $said in
	*NOAUTH* | *WRONGPASS*) echo "$said"; exit 1 ;;
	esac
	sleep 1
done
size=$("$cli" dbsize) || exit 1
case $size in
'' | *[!0-9]*) echo "$size"; exit 1 ;;
esac
`,
}
