package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
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

// dumpScripts are the built-in dumps. They take what they need from the
// container's own environment, and give passwords to the programs by their
// environment or a pipe: a process list shows none.
var dumpScripts = map[Kind]string{
	// Where the server trusts its system user alone, root becomes that user.
	Postgres: preamble + `
PGUSER=$(secret POSTGRES_USER) || exit 1
PGUSER=${PGUSER:-postgres}
PGPASSWORD=${PGPASSWORD:-$(secret POSTGRES_PASSWORD POSTGRESQL_PASSWORD)} || exit 1
[ -n "$PGPASSWORD" ] || unset PGPASSWORD
export PGUSER PGPASSWORD
if [ "$(id -u)" = 0 ] && have su && id "$PGUSER" >/dev/null 2>&1 && ! psql -XAtqw -d postgres -c 'select 1' >/dev/null 2>&1; then
	exec su -s /bin/sh "$PGUSER" -c 'exec pg_dumpall --clean --if-exists --no-password'
fi
exec pg_dumpall --clean --if-exists --no-password
`,
	MySQL: preamble + `
MYSQL_PWD=$(secret MARIADB_ROOT_PASSWORD MYSQL_ROOT_PASSWORD) || exit 1
if [ -n "$MYSQL_PWD" ]; then export MYSQL_PWD; else unset MYSQL_PWD; fi
dump=mysqldump
if have mariadb-dump; then dump=mariadb-dump; fi
exec "$dump" --user=root --single-transaction --quick --all-databases --routines --events --triggers --hex-blob --skip-dump-date
`,
	MongoDB: preamble + `
user=$(secret MONGO_INITDB_ROOT_USERNAME) || exit 1
[ -n "$user" ] || exec mongodump --archive
password=$(secret MONGO_INITDB_ROOT_PASSWORD) || exit 1
quoted=$(printf %s "$password" | sed 's/[\\"]/\\&/g') || exit 1
printf 'password: "%s"\n' "$quoted" | mongodump --archive --config=/dev/stdin --username="$user" --authenticationDatabase=admin
`,
	Redis: preamble + `
REDISCLI_AUTH=${BACKUPD_REQUIREPASS:-${REDISCLI_AUTH:-$(secret REDIS_PASSWORD VALKEY_PASSWORD)}} || exit 1
if [ -n "$REDISCLI_AUTH" ]; then export REDISCLI_AUTH VALKEYCLI_AUTH="$REDISCLI_AUTH"; else unset REDISCLI_AUTH; fi
cli=redis-cli
have redis-cli || cli=valkey-cli
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
	policies, err := Policies(s)
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
	s.process = p
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

// dumpStream is what a dump writes, up to its mark.
type dumpStream struct {
	ctx     context.Context //nolint:containedctx // of the process, which lives as long as the stream
	cancel  context.CancelFunc
	stop    func() bool
	doing   string
	process *process
	held    []byte // may be the mark
	any     bool   // something was written
	err     error  // what Read returns from now on
	ended   bool   // the process was seen to end
}

// Read implements io.Reader.
func (s *dumpStream) Read(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if len(b) == 0 {
		return 0, nil
	}
	// What comes is put behind what is held; all but the length of the mark is passed on.
	mark := len(s.process.mark)
	for len(s.held) <= mark {
		chunk := make([]byte, max(32<<10, len(b)))
		n, err := s.process.Read(chunk)
		s.held = append(s.held, chunk[:n]...)
		if err != nil {
			s.err = s.end(err)
			return 0, s.err
		}
	}
	n := copy(b, s.held[:len(s.held)-mark])
	s.held = append(s.held[:0], s.held[n:]...)
	s.any = s.any || n > 0
	return n, nil
}

// end says how a dump ended whose output has: io.EOF if it is whole.
func (s *dumpStream) end(err error) error {
	if s.ctx.Err() != nil {
		err = fmt.Errorf("%s: %w%s", s.doing, context.Cause(s.ctx), s.process.stderr.said())
		return errors.Join(err, s.kill())
	}
	if !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.Join(fmt.Errorf("%s: read its output: %w%s", s.doing, err, s.process.stderr.said()), s.kill())
	}
	if err := s.process.status(s.ctx); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", s.doing, err), s.kill())
	}
	s.ended = true
	switch {
	case string(s.held) != s.process.mark:
		return fmt.Errorf("%s: it ended, but the connection to the engine did so before all was read", s.doing)
	case !s.any:
		return fmt.Errorf("%s: it succeeded and wrote nothing%s", s.doing, s.process.stderr.said())
	}
	return io.EOF
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
	if s.err == nil {
		s.err = fmt.Errorf("%s: read after close", s.doing)
	}
	if s.ended {
		s.process.conn.Close()
		return nil
	}
	return s.kill()
}

// Found is a database that runs.
type Found struct {
	Service   string
	Kind      Kind
	Container Container
}

// servers are the names of programs that are databases.
var servers = map[string]Kind{
	"postgres": Postgres, "postmaster": Postgres, "mysqld": MySQL, "mariadbd": MariaDB, "mongod": MongoDB,
	"redis-server": Redis, "valkey-server": Redis, "keydb-server": Redis,
}

// Databases finds the databases of a stack by the programs that run in its
// containers: an image may have any name.
func (e *Engine) Databases(ctx context.Context, s *Stack) ([]Found, error) {
	var out []Found
	for _, svc := range s.Services {
		for _, c := range svc.Containers {
			if c.State != "running" {
				continue
			}
			top, err := e.api.ContainerTop(ctx, c.ID, nil)
			if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
				continue // it has ended meanwhile
			}
			if err != nil {
				return out, fmt.Errorf("list the processes of container %s: %w", c.Name, explainAccess(err))
			}
			for _, kind := range recognise(top) {
				found := Found{Service: svc.Name, Kind: kind, Container: c}
				if !slices.ContainsFunc(out, func(f Found) bool { return f.Service == found.Service && f.Kind == kind }) {
					out = append(out, found)
				}
			}
		}
	}
	return out, nil
}

// recognise reads a list of processes.
func recognise(top container.TopResponse) []Kind {
	column := slices.IndexFunc(top.Titles, func(t string) bool { return t == "CMD" || t == "COMMAND" || t == "ARGS" })
	if column < 0 {
		return nil
	}
	var out []Kind
	for _, row := range top.Processes {
		if column >= len(row) {
			continue
		}
		words := strings.Fields(row[column])
		if len(words) == 0 {
			continue
		}
		// "/usr/lib/postgresql/17/bin/postgres", "postgres: checkpointer", "redis-server *:6379"
		name := strings.TrimSuffix(words[0][strings.LastIndexByte(words[0], '/')+1:], ":")
		if kind, ok := servers[name]; ok && !slices.Contains(out, kind) {
			out = append(out, kind)
		}
	}
	return out
}

// Unprotected says which databases would be copied while they write: neither
// made to stand still nor dumped.
func Unprotected(p *Plan, found []Found) []string {
	var out []string
	for _, f := range found {
		if !slices.Contains(p.Writers, f.Service) || p.Quiesced(f.Service) || p.Policies[f.Service].Dump.Set() {
			continue
		}
		out = append(out, fmt.Sprintf("service %s runs a database (%s) that keeps writing while its files are read: what is restored may not start; "+
			"label it %s=stop or pause, or %s=%s", f.Service, f.Kind, labelQuiesce, labelDump, f.Kind))
	}
	return out
}
