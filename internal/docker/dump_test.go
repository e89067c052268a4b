package docker

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/docker/docker/api/types/container"

	"github.com/disko/backupd/internal/teststack"
)

// newDatabase is a stage whose containers have a database's programs.
func newDatabase(t *testing.T, image string) *stage {
	t.Helper()
	s := newStage(t)
	s.image = teststack.Images(t, image)[0]
	return s
}

// feed runs a script in a container with something on its stdin.
func (s *stage) feed(id, script string, in []byte) {
	s.t.Helper()
	ctx, cancel := s.later()
	defer cancel()
	made, err := s.api.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: []string{"sh", "-c", script}, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	s.must(err)
	conn, err := s.api.ContainerExecAttach(ctx, made.ID, container.ExecAttachOptions{})
	s.must(err)
	p := &process{engine: s.Engine, id: made.ID, conn: conn}
	defer conn.Close()
	_, err = io.Copy(conn.Conn, bytes.NewReader(in))
	s.must(err)
	s.must(conn.CloseWrite())
	_, err = io.Copy(&p.stderr, p)
	s.must(err)
	s.must(p.status(ctx))
}

// database is a way to run one, and how it is used.
type database struct {
	name, image, script string
	env, mounts         []string
	kind, runs          Kind
	ask                 string // run SQL or a command as its administrator
	restore             string // reads the dump from stdin
	offline             bool   // and that before it is started
}

// inMemory spares a database's first start the disk: it syncs thousands of times.
func inMemory(_ *container.Config, h *container.HostConfig) {
	h.Tmpfs = map[string]string{"/d": "", "/var/lib/postgresql/data": "", "/var/lib/mysql": ""}
}

func TestDumpsOfDatabasesRestore(t *testing.T) {
	if testing.Short() {
		t.Skip("starts twelve databases")
	}
	const password = `p"a's s\w0rd`
	secret := t.TempDir() + "/secret"
	if err := os.WriteFile(secret, []byte(password), 0o644); err != nil {
		t.Fatal(err)
	}
	sql := []string{"CREATE TABLE t (a INT PRIMARY KEY, b VARCHAR(100))", "INSERT INTO t VALUES (1, 'one'), (2, 'two')", "INSERT INTO t VALUES (3, 'three')"}
	keys := []string{"set 1 one", "set 2 two", "set 3 three"}
	for _, d := range []database{
		{
			name: "PostgreSQL with another superuser", image: "postgres", kind: Postgres, runs: Postgres,
			script: "exec entrypoint postgres", env: []string{"POSTGRES_USER=shop", "POSTGRES_PASSWORD=" + password},
			ask: `psql -U shop -XAtq -v ON_ERROR_STOP=1 -c`, restore: "psql -U shop -Xq",
		},
		{
			// Even on its own machine it wants a password, as hardened ones do.
			name: "PostgreSQL with a password in a file", image: "postgres", kind: Postgres, runs: Postgres, mounts: []string{secret + ":/run/secret:ro"}, env: []string{"POSTGRES_PASSWORD_FILE=/run/secret"},
			script: `install -d -o postgres /d; cd /; setpriv --reuid=postgres --regid=postgres --clear-groups initdb -D /d -A scram-sha-256 --pwfile=/run/secret; exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D /d`,
			ask:    `PGPASSWORD=$(cat /run/secret) psql -U postgres -XAtq -v ON_ERROR_STOP=1 -c`, restore: `PGPASSWORD=$(cat /run/secret) psql -U postgres -Xq`,
		},
		{
			name: "PostgreSQL that trusts its system user alone", image: "postgres", kind: Postgres, runs: Postgres,
			script: `install -d -o postgres /d; cd /; setpriv --reuid=postgres --regid=postgres --clear-groups initdb -D /d -A peer; exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -D /d`,
			ask:    `setpriv --reuid=postgres --regid=postgres --clear-groups psql -XAtq -v ON_ERROR_STOP=1 -c`, restore: `setpriv --reuid=postgres --regid=postgres --clear-groups psql -Xq`,
		},
		{
			name: "MariaDB", image: "mariadb", kind: MariaDB, runs: MariaDB, script: "exec entrypoint mariadbd", env: []string{"MARIADB_ROOT_PASSWORD=s3cret", "MARIADB_DATABASE=shop"},
			ask: `MYSQL_PWD=s3cret mariadb shop -Ne`, restore: "MYSQL_PWD=s3cret mariadb",
		},
		{
			name: "MariaDB, called mysql, with a password in a file", image: "mariadb", kind: MySQL, runs: MariaDB, mounts: []string{secret + ":/run/secret:ro"},
			script: `MARIADB_ROOT_PASSWORD='p"a'"\'"'s s\\w0rd' MARIADB_DATABASE=shop exec entrypoint mariadbd`, env: []string{"MYSQL_ROOT_PASSWORD_FILE=/run/secret"},
			ask: `MYSQL_PWD=$(cat /run/secret) mariadb shop -Ne`, restore: `MYSQL_PWD=$(cat /run/secret) mariadb`,
		},
		{
			name: "Redis", image: "redis", kind: Redis, runs: Redis, script: `exec entrypoint redis-server --save ""`, ask: "redis-cli", restore: "cat > /data/dump.rdb", offline: true,
		},
		{
			name: "Redis with a password", image: "redis", kind: Redis, runs: Redis, script: `exec entrypoint redis-server --save "" --requirepass s3cret`, ask: "REDISCLI_AUTH=s3cret redis-cli",
			restore: "cat > /data/dump.rdb", offline: true,
		},
	} {
		t.Run(d.name, func(t *testing.T) {
			s := newDatabase(t, d.image)
			tell, count, quote := sql, "SELECT count(*) FROM t", `"`
			if d.kind == Redis {
				tell, count, quote = keys, "dbsize", ""
			}
			ask := func(id, what string) (string, error) {
				out, err := s.sh(id, d.ask+" "+quote+what+quote)
				return strings.TrimSpace(out), err
			}
			up := func(id string) {
				eventually(t, d.name+" is up", func() bool {
					// A server that is being set up answers, too, and goes.
					_, err := s.sh(id, `case $(cat /proc/1/cmdline | tr '\0' ' ') in *entrypoint*|sh*|*initdb*) exit 1;; esac`)
					if err != nil {
						return false
					}
					out, err := ask(id, map[bool]string{true: "ping", false: "SELECT 1"}[d.kind == Redis])
					return err == nil && (out == "1" || out == "PONG")
				})
			}
			part := part{service: "db", script: d.script, env: d.env, mounts: d.mounts, config: inMemory}
			id := s.add(part)
			part.service = "fresh"
			if d.offline {
				part.script = "until [ -e /tmp/go ]; do sleep 0.1; done; " + part.script
			}
			fresh := s.add(part)
			up(id)
			for _, line := range tell {
				if _, err := ask(id, line); err != nil {
					t.Fatal(err)
				}
			}
			seen := s.watchProcesses(id)
			dump, err := s.dump(s.Engine, id, Dump{Kind: d.kind})
			processes := seen()
			s.must(err)
			for _, line := range processes {
				if strings.Contains(line, "s3cret") || strings.Contains(line, password) {
					t.Errorf("a password is in the list of processes: %s", line)
				}
			}
			stack, err := s.Stack(t.Context(), s.project)
			s.must(err)
			found, err := s.Databases(t.Context(), stack)
			s.must(err)
			if !slices.ContainsFunc(found, func(f Found) bool { return f.Service == "db" && f.Kind == d.runs }) {
				t.Errorf("found %+v", found)
			}
			if d.offline {
				s.feed(fresh, d.restore, []byte(dump))
				s.mustSh(fresh, "touch /tmp/go")
				up(fresh)
			} else {
				up(fresh)
				s.feed(fresh, d.restore, []byte(dump))
			}
			if got, err := ask(fresh, count); got != "3" || err != nil {
				t.Errorf("restored: %q, %v", got, err)
			}
		})
	}
}

func TestADumpOfADatabaseThatIsNotThereFails(t *testing.T) {
	s := newStage(t)
	id := s.add(part{service: "db"})
	for _, kind := range []Kind{Postgres, MySQL, MariaDB, MongoDB, Redis} {
		if got, err := s.dump(s.Engine, id, Dump{Kind: kind}); err == nil {
			t.Errorf("%s: %q", kind, got)
		}
	}
}

func TestASecretThatCannotBeReadFailsTheDump(t *testing.T) {
	s := newStage(t)
	for kind, name := range map[Kind]string{Postgres: "POSTGRES_PASSWORD_FILE", MySQL: "MYSQL_ROOT_PASSWORD_FILE", MariaDB: "MARIADB_ROOT_PASSWORD_FILE", Redis: "REDIS_PASSWORD_FILE", MongoDB: "MONGO_INITDB_ROOT_USERNAME_FILE"} {
		id := s.add(part{service: string(kind), env: []string{name + "=/run/secrets/missing"}})
		if _, err := s.dump(s.Engine, id, Dump{Kind: kind}); err == nil || !strings.Contains(err.Error(), "/run/secrets/missing") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

func TestTheEndOfAnRDBFileIsFound(t *testing.T) {
	body, sum, mark := "REDIS0011...", "\xff12345678", strings.Repeat("0af9", 10)
	for in, want := range map[string]string{
		body + sum: body + sum, body + sum + mark: body + sum, body: "", body + mark: "", "": "", body + sum + mark[1:]: "",
	} {
		if got, err := endOfRDB([]byte(in)); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

func TestPasswordsOfRedisAreReadFromItsCommandLine(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want string
	}{
		{nil, ""},
		{[]string{"redis-server", "--requirepass", "a b"}, "a b"},
		{[]string{"redis-server", "--requirepass=x"}, "x"},
		{[]string{"sh", "-c", `exec redis-server --requirepass "x" --save ""`}, "x"},
		{[]string{"redis-server", "--requirepass"}, ""},
	} {
		if got := requirePass(c.argv); got != c.want {
			t.Errorf("%q: got %q", c.argv, got)
		}
	}
}

func TestDatabasesAreRecognisedByWhatRunsOrLies(t *testing.T) {
	top := func(lines ...string) container.TopResponse {
		r := container.TopResponse{Titles: []string{"UID", "PID", "CMD"}}
		for i, l := range lines {
			r.Processes = append(r.Processes, []string{"999", strconv.Itoa(i), l})
		}
		return r
	}
	for _, c := range []struct {
		lines []string
		want  []Kind
	}{
		{[]string{"/usr/lib/postgresql/17/bin/postgres -D /d", "postgres: checkpointer"}, []Kind{Postgres}},
		{[]string{"postgres: walwriter"}, []Kind{Postgres}},
		{[]string{"mysqld --user=mysql"}, []Kind{MySQL}},
		{[]string{"/bin/sh /usr/bin/mysqld_safe", "/usr/sbin/mariadbd --basedir=/usr"}, []Kind{MariaDB}},
		{[]string{"mongod --bind_ip_all"}, []Kind{MongoDB}},
		{[]string{"redis-server *:6379"}, []Kind{Redis}},
		{[]string{"valkey-server *:6379"}, []Kind{Redis}},
		{[]string{"redis-sentinel *:26379", "grep postgres", "/app/postgres-exporter", ""}, nil},
	} {
		if got := recognise(top(c.lines...)); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %v", c.lines, got)
		}
	}
	for _, c := range []struct {
		files []string
		want  []Kind
	}{
		{[]string{"PG_VERSION"}, []Kind{Postgres}},
		{[]string{"17/main/PG_VERSION"}, []Kind{Postgres}},
		{[]string{"ibdata1", "mysql/user.frm"}, []Kind{MySQL}},
		{[]string{"a/b/c/d/ibdata1", "uploads/x.png"}, nil},
		{[]string{"appendonlydir/appendonly.aof.1.base.rdb"}, []Kind{Redis}},
		{[]string{"WiredTiger", "_mdb_catalog.wt"}, []Kind{MongoDB}},
	} {
		volume := fstest.MapFS{}
		for _, f := range c.files {
			volume[f] = &fstest.MapFile{}
		}
		if got, err := DatabaseIn(volume); !slices.Equal(got, c.want) || err != nil {
			t.Errorf("%q: got %v, %v", c.files, got, err)
		}
	}
}

func TestADatabaseThatNothingProtectsIsToldOf(t *testing.T) {
	mount := []Mount{{Type: "volume", Name: "data", RW: true}}
	service := func(name string, labels map[string]string, mounts []Mount) Service {
		return Service{Name: name, Labels: labels, Containers: []Container{{ID: name, Name: name, State: "running", Mounts: mounts}}}
	}
	stack := &Stack{Services: []Service{
		service("quiesced", nil, mount),
		service("left", map[string]string{"backupd.quiesce": "none"}, mount),
		service("dumped", map[string]string{"backupd.quiesce": "none", "backupd.dump": "postgres"}, mount),
		service("elsewhere", nil, nil),
	}}
	p, err := NewPlan(PlanInput{Stack: stack, Volumes: []string{"data"}})
	if err != nil {
		t.Fatal(err)
	}
	var found []Found
	for _, s := range stack.Services {
		found = append(found, Found{Service: s.Name, Kind: Postgres})
	}
	got := Unprotected(p, found)
	if len(got) != 1 || !strings.Contains(got[0], "service left runs a database (postgres)") {
		t.Errorf("got %q", got)
	}
}

// watchProcesses collects what runs in a container until the function it returns is called.
func (s *stage) watchProcesses(id string) func() []string {
	stop, done := make(chan struct{}), make(chan []string)
	go func() {
		var seen []string
		for {
			select {
			case <-stop:
				done <- seen
				return
			default:
			}
			if top, err := s.api.ContainerTop(s.t.Context(), id, nil); err == nil {
				for _, row := range top.Processes {
					if line := row[len(row)-1]; !slices.Contains(seen, line) {
						seen = append(seen, line)
					}
				}
			}
		}
	}()
	return func() []string {
		close(stop)
		return <-done
	}
}
