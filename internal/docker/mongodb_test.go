package docker

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// mongoPassword needs quoting wherever it passes.
const mongoPassword = `p"a's s\w0rd%&:`

// mongoURI is where mongotest asks a server that wants that password.
const mongoURI = "MONGO_URI=mongodb://root:p%22a%27s%20s%5Cw0rd%25%26%3A@127.0.0.1/?authSource=admin&directConnection=true"

// restoreMongo leaves out the users, whom FerretDB keeps in its own way, and
// knows what the server asks of others.
const restoreMongo = `mongorestore --archive --drop --nsExclude='admin.*' ${MONGO_URI:+--uri="$MONGO_URI"}`

// newMongo is a stage with MongoDB's own tools, and FerretDB as the server, because
// no package has MongoDB's.
func newMongo(t *testing.T) *stage {
	t.Helper()
	if testing.Short() {
		t.Skip("starts database servers")
	}
	return newDatabase(t, "mongo")
}

// mongo starts a server and waits until it answers.
func (s *stage) mongo(p part, arguments string) string {
	s.t.Helper()
	p.script = "exec entrypoint mongod " + arguments
	p.config = func(_ *container.Config, h *container.HostConfig) { h.Tmpfs = map[string]string{"/data/db": ""} }
	id := s.add(p)
	eventually(s.t, "the server answers", func() bool {
		_, err := s.sh(id, `mongotest run admin '{"listDatabases": 1}'`)
		return err == nil
	})
	return id
}

func TestMongoDBIsDumpedAndRestored(t *testing.T) {
	s := newMongo(t)
	secrets := t.TempDir()
	s.must(os.WriteFile(secrets+"/user", []byte("root\n"), 0o644))
	s.must(os.WriteFile(secrets+"/password", []byte(mongoPassword+"\n"), 0o644))
	for _, c := range []struct {
		name, arguments string
		env, mounts     []string
		oplog           string // how many operations the dump's log has
	}{
		{"without a password", "", nil, nil, "0"},
		{"with one", "", []string{"MONGO_INITDB_ROOT_USERNAME=root", "MONGO_INITDB_ROOT_PASSWORD=" + mongoPassword, mongoURI}, nil, "0"},
		{
			"a replica set, the password in a file", "--replSet rs0",
			[]string{"MONGO_INITDB_ROOT_USERNAME_FILE=/secrets/user", "MONGO_INITDB_ROOT_PASSWORD_FILE=/secrets/password", mongoURI},
			[]string{secrets + ":/secrets:ro"},
			"1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &stage{s.Engine, t, s.project, s.image, s.state}
			p := part{service: "db", env: c.env, mounts: c.mounts}
			id := s.mongo(p, c.arguments)
			p.service = "fresh"
			fresh := s.mongo(p, c.arguments)
			if c.arguments != "" {
				s.mustSh(id, `mongotest run local '{"create": "oplog.rs", "capped": true, "size": 100000000}'`)
			}
			s.mustSh(id, "mongotest fill shop.orders 1500; mongotest fill shop.customers 20; mongotest fill blog.posts 1")
			want := s.mustSh(id, "mongotest sum")
			if strings.Count(want, "\n") != 3 || !strings.Contains(want, "shop.orders 1500 1499 ") {
				t.Fatalf("filled: %s", want)
			}
			seen := s.watchProcesses(id)
			dump, err := s.dump(s.Engine, id, Dump{Kind: MongoDB})
			processes := seen()
			s.must(err)
			if !slices.ContainsFunc(processes, func(p string) bool { return strings.Contains(p, "mongodump --archive") }) {
				t.Errorf("mongodump was not seen to run: %q", processes)
			}
			for _, line := range processes {
				if strings.Contains(line, "w0rd") {
					t.Errorf("a password is in the list of processes: %s", line)
				}
			}
			stack, err := s.Stack(t.Context(), s.project)
			s.must(err)
			found, err := s.Databases(t.Context(), stack)
			s.must(err)
			if !slices.ContainsFunc(found, func(f Found) bool { return f.Container.ID == id && f.Kind == MongoDB }) {
				t.Errorf("found %+v", found)
			}
			s.feed(fresh, restoreMongo, []byte(dump))
			if got := s.mustSh(fresh, "mongotest sum"); got != want {
				t.Errorf("restored:\n%s\nwant:\n%s", got, want)
			}
			s.feed(fresh, "mongotest replay >/tmp/replayed", []byte(dump))
			if got := strings.TrimSpace(s.mustSh(fresh, "cat /tmp/replayed")); got != c.oplog {
				t.Errorf("the dump has a log of %s operations, want %s", got, c.oplog)
			}
		})
	}
}

func TestADumpOfMongoDBThatCannotBeTakenSaysWhy(t *testing.T) {
	t.Parallel() // mongodump looks for a server for half a minute
	s := newMongo(t)
	credentials := []string{"MONGO_INITDB_ROOT_USERNAME=root", "MONGO_INITDB_ROOT_PASSWORD=" + mongoPassword, mongoURI}
	id := s.mongo(part{service: "db", env: credentials}, "")
	s.mustSh(id, "mongotest fill shop.orders 10")
	// A server whose password was changed after its first start, one of which nobody
	// told a password, and none at all: the tools are told otherwise by the environment.
	for _, c := range []struct {
		name, script, want string
	}{
		{"a wrong password", "MONGO_INITDB_ROOT_PASSWORD=wrong\n" + mongoDump, "Authentication failed"},
		{"no password", "MONGO_INITDB_ROOT_USERNAME=\n" + mongoDump, "requires authentication"},
		{"no server", "mongodump() { command mongodump --port=1 \"$@\"; }\n" + mongoDump, "connection refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.dump(s.Engine, id, Dump{Command: c.script})
			t.Log(err)
			if err == nil || !strings.Contains(err.Error(), "dump service db in container db-1: exit code 1; it said last: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %s", c.want)
			}
		})
	}
}

// What FerretDB cannot say is played by a script: these are the sentences of
// mongodump with MongoDB 7, a sharded cluster, and a user who may not read the log.
func TestTheLogOfOperationsIsLeftOutWhereThereIsNone(t *testing.T) {
	s := newStage(t)
	for _, c := range []struct {
		name, says string
		code       string
		want       string // of the dump, or of its error
		fails      bool
	}{
		{"a server of its own", "2026-11-26T15:43:03.015+0000	Failed: error getting oplog start: error getting recent oplog entry: mongo: no documents in result", "1", "plain", false},
		{"a sharded cluster", "2026-11-26T15:43:03.015+0000	Failed: can't use --oplog option when dumping from a mongos", "1", "plain", false},
		{"a log that may not be read", "2026-11-26T15:43:03.015+0000	Failed: error getting oplog start: error getting recent oplog entry: (Unauthorized) not authorized on local to execute command { find: \"oplog.rs\" }", "1", "(Unauthorized) not authorized on local", true},
		{"a log that is too small", "2026-11-26T15:43:03.015+0000	Failed: oplog overflow: mongodump was unable to capture all new oplog entries during execution", "1", "oplog overflow", true},
		{"one that is there", "2026-11-26T15:43:03.015+0000		dumped 840 oplog entries", "0", "with a log", false},
		{"one that was killed", "2026-11-26T15:43:03.015+0000	writing captured oplog", "137", "exit code 137", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &stage{s.Engine, t, s.project, s.image, s.state}
			tool := t.TempDir() + "/mongodump"
			s.must(os.WriteFile(tool, []byte(`#!/bin/sh
case "$*" in
*--oplog*) ;;
*) printf plain; exit ;;
esac
[ `+c.code+` != 0 ] || printf 'with a log'
cat >&2 <<'END'
`+c.says+`
END
exit `+c.code+"\n"), 0o755))
			id := s.add(part{service: "db", mounts: []string{tool + ":/bin/mongodump:ro"}})
			got, err := s.dump(s.Engine, id, Dump{Kind: MongoDB})
			if c.fails {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %q, %v, want %s", got, err, c.want)
				}
			} else if got != c.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// So are these: a member of a replica set that starts, and one that never finds itself.
func TestACheckOfMongoDBWaitsForItsPlaceInTheReplicaSet(t *testing.T) {
	s := newStage(t)
	tool := t.TempDir() + "/mongodump"
	s.must(os.WriteFile(tool, []byte(`#!/bin/sh
for state in refused recovering; do
	mkdir /tmp/$state 2>/dev/null || continue
	case $state in
	refused) echo "Failed: can't create session: dial tcp 127.0.0.1:27017: connect: connection refused" ;;
	*) echo "Failed: error creating intents to dump: error getting database names: (NotPrimaryOrSecondary) node is not in primary or recovering state" ;;
	esac >&2
	exit 1
done
[ -z "$BROKEN" ] || { echo "Failed: (InternalError) WT_ERROR: non-specific WiredTiger error" >&2; exit 1; }
`), 0o755))
	c := part{service: "db", mounts: []string{tool + ":/bin/mongodump:ro"}}
	check := func(id string) error {
		return s.Engine.run(t.Context(), Container{ID: id, Name: "db-1"}, command{script: mongoCheck}, 0)
	}
	s.must(check(s.add(c)))
	c.service, c.env = "broken", []string{"BROKEN=1"}
	if err := check(s.add(c)); err == nil || !strings.Contains(err.Error(), "WT_ERROR") {
		t.Errorf("of broken data: %v", err)
	}
}
