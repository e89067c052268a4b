package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// configured is a checkout of an example, with an override that names images
// which exist here, and what .env has to say.
func configured(t *testing.T, example, override string, env ...string) *teststack.Project {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	p := teststack.NewProject(t, "backupd-example", read(t, filepath.Join(root, "configs", example)))
	p.Write("compose.override.yaml", override)
	p.Write(".env", settings+"PORT=0\n"+strings.Join(env, "\n")+"\n")
	set(p, map[string]string{"BACKUPD_IMAGE": teststack.BackupdImage(t)})
	return p
}

// queried asks the database of a stack.
func queried(p *teststack.Project, user, statement string) string {
	return strings.TrimSpace(p.Exec("db", "psql", "-v", "ON_ERROR_STOP=1", "-U", user, "-Atqc", statement))
}

// A web server, an application, a database and a cache: the rows and the uploads
// are there in a clone, through all of them.
func TestTheSymfonyExampleComesUpInACloneWithItsData(t *testing.T) {
	t.Parallel()
	teststack.Images(t, "nginx", "postgres", "redis")
	repository := t.TempDir()
	stack := func() *teststack.Project {
		return configured(t, "compose.symfony.yaml", `
services:
  application: {command: [sleep, infinity], init: true}
  db: {image: backupd-test/postgres}
  cache: {image: backupd-test/redis}
  backup: {image: '${BACKUPD_IMAGE}'}
`, "SERVER_IMAGE=backupd-test/nginx", "APPLICATION_IMAGE=backupd-test/postgres", "BACKUPD_DIRECTORY="+repository)
	}
	// What an application does, with what the example gives it.
	do := func(p *teststack.Project, script string) string {
		return p.Exec("application", "bash", "-euc", script)
	}
	get := `exec 3<>/dev/tcp/server/80; printf 'GET /uploads/picture.txt HTTP/1.0\r\n\r\n' >&3; cat <&3`
	server := stack()
	server.Up()
	do(server, `psql "$DATABASE_URL" -qc "CREATE TABLE article (title text); INSERT INTO article VALUES ('of the server')"
		echo a picture >/app/public/uploads/picture.txt
		exec 3<>"/dev/tcp/cache/6379"; printf 'SET greeting hello\r\n' >&3; read -r answer <&3; [ "${answer%?}" = +OK ]`)
	mentions(t, do(server, get), "a picture")
	cache := started(t, server, "cache")
	code, said := backup(t, server)
	if code != 0 {
		t.Fatalf("backup: %d %s", code, said)
	}
	if started(t, server, "cache") != cache {
		t.Error("the cache was stopped, which nobody backs up")
	}
	mentions(t, server.Exec("backup", "backupd", "ls", "latest", "db.dump"), "dump.sql")
	server.Remove()

	clone := stack()
	clone.Up()
	if got := do(clone, `psql "$DATABASE_URL" -Atc "SELECT title FROM article"`); got != "of the server\n" {
		t.Errorf("the rows are %q", got)
	}
	mentions(t, do(clone, get), "a picture")
}

func TestTheSecretsExampleKeepsThemSecret(t *testing.T) {
	t.Parallel()
	teststack.Images(t, "postgres")
	repository := t.TempDir()
	secrets := map[string]string{"db-password": "xyzzy-database", "passphrase": "xyzzy-passphrase", "s3-credentials": "[default]\naws_access_key_id = xyzzy-key\naws_secret_access_key = xyzzy-secret\n"}
	stack := func() *teststack.Project {
		p := configured(t, "compose.secrets.yaml", `
services:
  db:
    image: backupd-test/postgres
    # The official image reads the file by itself.
    entrypoint: [sh, -c, 'POSTGRES_PASSWORD=$$(cat $$POSTGRES_PASSWORD_FILE) exec entrypoint postgres']
  backup:
    image: ${BACKUPD_IMAGE}
    volumes: ["`+repository+`:/backups"]
`)
		for name, value := range secrets {
			p.Write("secrets/"+name, value)
		}
		return p
	}
	server := stack()
	server.Up()
	server.WaitHealthy("db")
	queried(server, "postgres", "CREATE TABLE article (title text); INSERT INTO article VALUES ('of the server')")
	if code, said := backup(t, server); code != 0 {
		t.Fatalf("backup: %d %s", code, said)
	}
	seen := teststack.Docker(t, "inspect", server.Container("backup"), server.Container("db")) + server.Logs("backup") + server.Exec("backup", "backupd", "config")
	if strings.Contains(seen, "xyzzy") {
		t.Errorf("a secret can be seen:\n%s", regexp.MustCompile(".*xyzzy.*").FindString(seen))
	}
	// Without the passphrase there is nothing to read, and it is said.
	stranger := stack()
	stranger.Write("secrets/passphrase", "another one")
	if out, err := stranger.Try("up", "-d"); err == nil {
		t.Errorf("it came up: %s", out)
	}
	// Not its last line: it is started again and again.
	mentions(t, stranger.Logs("backup"), "none of the given keys opens it", "nothing was touched")
	server.Remove()

	clone := stack()
	clone.Up()
	clone.WaitHealthy("db")
	if got := queried(clone, "postgres", "SELECT title FROM article"); got != "of the server" {
		t.Errorf("the rows are %q", got)
	}
}

// tecnativa allows what the proxy of that name allows, with these settings.
func tecnativa(env map[string]*string) func(method, path string) bool {
	on := func(name string) bool { return env[name] != nil && *env[name] != "0" && *env[name] != "" }
	exec := regexp.MustCompile(`^/containers/[^/]+/exec`)
	return func(method, path string) bool {
		if method != http.MethodGet && method != http.MethodHead && (method != http.MethodPost || !on("POST")) {
			return false
		}
		if exec.MatchString(path) && !on("ALLOW_EXEC") {
			return false
		}
		section, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		switch section {
		case "_ping", "version", "events":
			return true // its defaults
		}
		return on(strings.ToUpper(section))
	}
}

func TestTheSocketProxyExampleAllowsWhatItSays(t *testing.T) {
	t.Parallel()
	teststack.Images(t, "base", "postgres")
	for _, c := range []struct {
		name, post string
		code       int
	}{{"with POST", "1", 0}, {"without POST", "0", 3}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var proxied example
			// The proxy stands on the host, in the place of the service that the example has.
			override := "services:\n  engine: {image: backupd-test/base, init: true, command: [sleep, infinity]}\n"
			p := configured(t, "compose.socket-proxy.yaml", override, "ENGINE_POST="+c.post, "BACKUPD_DIRECTORY="+t.TempDir())
			if err := json.Unmarshal([]byte(p.Compose("config", "--format", "json")), &proxied); err != nil {
				t.Fatal(err)
			}
			proxy := teststack.NewSocketProxy(t, tecnativa(proxied.Services["engine"].Environment))
			p.Write("compose.override.yaml", override+`
  db: {image: backupd-test/postgres}
  backup:
    image: ${BACKUPD_IMAGE}
    environment: {DOCKER_HOST: unix:///run/engine.sock}
    volumes: ["`+proxy.Socket+`:/run/engine.sock"]
`)
			p.Up()
			p.WaitHealthy("db")
			before := started(t, p, "db")
			code, said := backup(t, p)
			t.Log(said)
			if code != c.code {
				t.Errorf("exit code %d, want %d; denied: %v", code, c.code, proxy.Denied())
			}
			if stopped := started(t, p, "db") != before; stopped != (c.code == 0) {
				t.Errorf("the database was stopped: %v; denied: %v", stopped, proxy.Denied())
			}
			if c.code != 0 {
				mentions(t, said, "not frozen")
			}
		})
	}
}

// One agent, and stacks that know nothing of it.
func TestTheHostExampleBacksUpEveryStackOfTheMachine(t *testing.T) {
	t.Parallel()
	teststack.Images(t, "base")
	stack := func(name string) *teststack.Project {
		p := teststack.NewProject(t, "backupd-e2e-"+name, `
services:
  application:
    image: backupd-test/base
    network_mode: none
    init: true
    command: [sleep, infinity]
    volumes: [data:/srv/data, scratch:/srv/scratch]
volumes:
  data:
  scratch: {labels: {backupd.exclude: "true"}}
`)
		p.Up()
		p.Exec("application", "sh", "-c", "echo of "+name+" >/srv/data/rows; echo junk >/srv/scratch/junk")
		return p
	}
	shop, wiki := stack("shop"), stack("wiki")
	p := configured(t, "compose.host.yaml", "", "BACKUPD_SCHEDULE=@never")
	proxy := teststack.NewSocketProxyOf(t, p.Name, shop.Name, wiki.Name)
	p.Write("compose.override.yaml", `
services:
  backup:
    image: ${BACKUPD_IMAGE}
    environment: {DOCKER_HOST: unix:///run/engine.sock}
    volumes: ["`+t.TempDir()+`:/backups", "`+proxy.Socket+`:/run/engine.sock"]
`)
	p.Up()
	p.WaitHealthy("backup")
	before := started(t, shop, "application") + started(t, wiki, "application")
	code, said := backup(t, p)
	if code != 0 || strings.Count(said, "\n") < 2 {
		t.Fatalf("backup: %d %s\n%s", code, said, p.Logs())
	}
	for name, s := range map[string]*teststack.Project{"shop": shop, "wiki": wiki} {
		ls := p.Exec("backup", "backupd", "ls", "--stack", s.Name, "latest", "data")
		mentions(t, ls, "rows")
		shown := p.Exec("backup", "backupd", "show", "--stack", s.Name, "latest")
		if strings.Contains(shown, "scratch") {
			t.Errorf("%s: what is excluded was taken:\n%s", name, shown)
		}
	}
	if started(t, shop, "application")+started(t, wiki, "application") != before {
		t.Error("services without a health check were stopped and not paused")
	}
}
