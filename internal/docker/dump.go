package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// preamble are functions for the scripts below. `secret NAME` prints the value of
// the first of its variables that is set, or what stands in the file that
// NAME_FILE names, as the official images have it. A file that is named and
// cannot be read is an error.
const preamble = `
secret() {
	for name; do
		eval "value=\${$name-} file=\${${name}_FILE-}"
		if [ -n "$value" ]; then printf %s "$value"; return; fi
		if [ -n "$file" ]; then cat -- "$file"; return; fi
	done
}
have() { command -v "$1" >/dev/null 2>&1; }
`

// What scripts need to be let in by a server, from the container's own environment.
// Passwords reach the programs by their environment or a pipe: a process list
// shows none.
const (
	postgresLogin = preamble + `
PGUSER=$(secret POSTGRES_USER) || exit 1
PGUSER=${PGUSER:-postgres}
PGPASSWORD=${PGPASSWORD:-$(secret POSTGRES_PASSWORD POSTGRESQL_PASSWORD)} || exit 1
[ -n "$PGPASSWORD" ] || unset PGPASSWORD
export PGUSER PGPASSWORD
`
	// asSystemUser runs what $run has; where the server trusts its system user alone,
	// root becomes that user.
	asSystemUser = `
if [ "$(id -u)" = 0 ] && have su && id "$PGUSER" >/dev/null 2>&1 && ! psql -XAtqw -d postgres -c 'select 1' >/dev/null 2>&1; then
	exec su -s /bin/sh "$PGUSER" -c "$run"
fi
exec sh -c "$run"
`
	mysqlLogin = preamble + `
MYSQL_PWD=$(secret MARIADB_ROOT_PASSWORD MYSQL_ROOT_PASSWORD) || exit 1
if [ -n "$MYSQL_PWD" ]; then export MYSQL_PWD; else unset MYSQL_PWD; fi
`
	redisLogin = preamble + `
REDISCLI_AUTH=${BACKUPD_REQUIREPASS:-${REDISCLI_AUTH:-$(secret REDIS_PASSWORD VALKEY_PASSWORD)}} || exit 1
if [ -n "$REDISCLI_AUTH" ]; then export REDISCLI_AUTH VALKEYCLI_AUTH="$REDISCLI_AUTH"; else unset REDISCLI_AUTH; fi
cli=redis-cli
have redis-cli || cli=valkey-cli
`
)

// dumpScripts are the built-in dumps.
var dumpScripts = map[Kind]string{
	Postgres: postgresLogin + `
run='exec pg_dumpall --clean --if-exists --no-password'
` + asSystemUser,
	// MariaDB's own system tables cannot be read back into a server that has them;
	// its users are dumped as statements instead, and those that exist are kept.
	MySQL: mysqlLogin + `
dump=mysqldump
if have mariadb-dump; then dump=mariadb-dump; fi
case $("$dump" --help 2>/dev/null) in
*--system=*) set -- --ignore-database=mysql --system=users --insert-ignore ;;
*) set -- ;;
esac
exec "$dump" --user=root --single-transaction --quick --all-databases "$@" --routines --events --triggers --hex-blob --skip-dump-date
`,
	MongoDB: mongoDump,
	Redis: redisLogin + `
exec "$cli" --rdb -
`,
}

// DumpOf is the dump that a service's labels ask for, and the container that it
// is run in.
type DumpOf struct {
	Service   string
	Container Container
	Dump      Dump
}

// Dumps lists the dumps of a stack. A service that shall be dumped and does not
// run is an error: its dump cannot be had.
func Dumps(s *Stack, own []string) ([]DumpOf, error) {
	policies, err := Policies(s, own)
	if err != nil {
		return nil, err
	}
	var out []DumpOf
	var errs []error
	for i := range s.Services {
		svc := &s.Services[i]
		d := policies[svc.Name].Dump
		if !d.Set() || svc.owned(own) {
			continue
		}
		c := svc.running()
		if c == nil {
			where := ""
			if svc.Swarm != nil {
				where = " on this machine"
			}
			errs = append(errs, fmt.Errorf("service %s cannot be dumped: none of its containers runs%s; start it, or take the label %s off", svc.Name, where, labelDump))
			continue
		}
		out = append(out, DumpOf{Service: svc.Name, Container: *c, Dump: d})
	}
	return out, errors.Join(errs...)
}

// OpenDump starts a dump and returns what it writes. The stream ends with io.EOF
// only if the dump has succeeded, and all of it was read: one that fails, writes
// nothing, takes longer than its time-out or whose connection breaks ends with
// an error that has its last words. Close ends a dump that still runs. An
// ErrMayNot where the engine does not allow it.
func (e *Engine) OpenDump(ctx context.Context, d DumpOf) (io.ReadCloser, error) {
	doing := fmt.Sprintf("dump service %s in container %s", d.Service, d.Container.Name)
	if missing := e.mayExec(ctx); missing != "" {
		return nil, &MayNotError{Doing: doing, Permission: missing, Asked: []string{d.Service}}
	}
	cmd := command{script: d.Dump.Command, user: d.Dump.User, marked: true}
	if d.Dump.Kind != "" {
		kind := d.Dump.Kind
		if kind == MariaDB {
			kind = MySQL
		}
		cmd.script = dumpScripts[kind]
	}
	if d.Dump.Kind == Redis {
		password, err := e.requirePass(ctx, d.Container)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		if password != "" {
			cmd.env = append(cmd.env, "BACKUPD_REQUIREPASS="+password)
		}
	}
	s := &dumpStream{doing: doing}
	s.ctx, s.cancel = context.WithCancel(ctx)
	if d.Dump.Timeout > 0 {
		s.ctx, s.cancel = context.WithTimeoutCause(ctx, d.Dump.Timeout, fmt.Errorf("it took longer than %s", d.Dump.Timeout))
	}
	p, err := e.start(s.ctx, d.Container, cmd)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	s.process, s.keep = p, len(p.mark)
	if d.Dump.Kind == Redis {
		s.finish, s.keep = endOfRDB, len(p.mark)+tailOfDump
	}
	s.stop = context.AfterFunc(s.ctx, p.conn.Close)
	return s, nil
}

// requirePass is the password in a Redis server's command line, whose process
// hides it.
func (e *Engine) requirePass(ctx context.Context, c Container) (string, error) {
	info, err := e.api.ContainerInspect(ctx, c.ID)
	if err != nil {
		return "", explainAccess(err)
	}
	if info.Config == nil {
		return "", nil
	}
	return requirePass(slices.Concat(info.Config.Entrypoint, info.Config.Cmd)), nil
}

func requirePass(argv []string) string {
	for i, a := range argv {
		if value, ok := strings.CutPrefix(a, "--requirepass="); ok {
			return value
		}
		if a == "--requirepass" && i+1 < len(argv) {
			return argv[i+1]
		}
		// sh -c "redis-server --requirepass x"
		if _, rest, ok := strings.Cut(a, "--requirepass "); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return strings.Trim(words[0], `"'`)
			}
		}
	}
	return ""
}

// endOfRDB looks at the last bytes of what redis-cli wrote: the end of an RDB
// file is 0xff and a checksum of 8 bytes. Behind that, redis-cli leaves the 40
// hexadecimal digits by which the server has announced the end, if it writes to stdout.
func endOfRDB(tail []byte) ([]byte, error) {
	const checksum, announced = 8, 40
	n := len(tail)
	if n > checksum+announced && tail[n-announced-checksum-1] == 0xff && !bytes.ContainsFunc(tail[n-announced:], func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		return tail[:n-announced], nil
	}
	if n > checksum && tail[n-checksum-1] == 0xff {
		return tail, nil
	}
	return nil, errors.New("what redis-cli wrote does not end as an RDB file does")
}

// dumpStream is what a dump writes, up to its mark.
type dumpStream struct {
	ctx     context.Context //nolint:containedctx // of the process, which lives as long as the stream
	cancel  context.CancelFunc
	stop    func() bool
	doing   string
	process *process
	// finish may change or refuse the last bytes before the mark.
	finish func(tail []byte) ([]byte, error)
	held   []byte // what was read and not passed on
	keep   int    // so much of it is held back, because it may be the end
	any    bool   // something was passed on
	err    error  // what Read returns when nothing is held any more
	ended  bool   // the process was seen to end
}

// tailOfDump is how many bytes before the mark are held back for finish.
const tailOfDump = 49

// Read implements io.Reader.
func (s *dumpStream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for s.err == nil && len(s.held) <= s.keep {
		s.held = slices.Grow(s.held, max(32<<10, len(b)))
		n, err := s.process.Read(s.held[len(s.held):cap(s.held)])
		s.held = s.held[:len(s.held)+n]
		if err == nil {
			continue
		}
		if s.held, s.err = s.end(err); s.err == nil {
			s.err = io.EOF
		}
		s.keep = 0
	}
	n := copy(b, s.held[:len(s.held)-s.keep])
	if n == 0 {
		return 0, s.err
	}
	s.held = s.held[:copy(s.held, s.held[n:])]
	s.any = true
	return n, nil
}

// end says how a dump ended whose output has, and returns its last bytes if it is whole.
func (s *dumpStream) end(err error) ([]byte, error) {
	if s.ctx.Err() != nil {
		err = fmt.Errorf("%s: %w%s", s.doing, context.Cause(s.ctx), s.process.stderr.said())
		return nil, errors.Join(err, s.kill())
	}
	if !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("%s: read its output: %w%s", s.doing, err, s.process.stderr.said()), s.kill())
	}
	if err := s.process.status(s.ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.doing, err), s.kill())
	}
	s.ended = true
	tail, whole := bytes.CutSuffix(s.held, []byte(s.process.mark))
	switch {
	case !whole:
		return nil, fmt.Errorf("%s: it ended well, but the connection to the engine ended before all was read", s.doing)
	case !s.any && len(tail) == 0:
		return nil, fmt.Errorf("%s: it succeeded and wrote nothing%s", s.doing, s.process.stderr.said())
	case s.finish == nil:
		return tail, nil
	}
	if tail, err = s.finish(tail); err != nil {
		return nil, fmt.Errorf("%s: %w%s", s.doing, err, s.process.stderr.said())
	}
	return tail, nil
}

func (s *dumpStream) kill() error {
	if s.ended {
		return nil
	}
	s.ended = true
	return s.process.kill(s.ctx)
}

// Close ends the dump if it still runs.
func (s *dumpStream) Close() error {
	s.stop()
	defer s.cancel()
	s.held, s.keep = nil, 0
	if s.err == nil {
		s.err = fmt.Errorf("%s: read after close", s.doing)
	}
	if s.ended {
		s.process.conn.Close()
		return nil
	}
	return s.kill()
}
