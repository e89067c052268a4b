package compose

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// project writes files to a directory, changes there and loads what they are.
func project(t *testing.T, files map[string]string, o Options) (*Project, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	return Load(t.Context(), o)
}

func TestTheBackupServiceIsReadWithAllItNeeds(t *testing.T) {
	t.Setenv("BACKUPD_SCHEDULE", "@daily")
	t.Setenv("TOKEN", "of the environment")
	p, err := project(t, map[string]string{
		".env":       "TARGET=s3://bucket/shop\nCOMPOSE_PROFILES=extra\n",
		"backup.env": "FROM_FILE=yes\nBACKUPD_TARGET=overridden\n",
		"pass.txt":   "secret",
		"compose.yaml": `
services:
  db:
    image: postgres:17
    env_file: [not-here.env]
    volumes: [db:/var/lib/postgresql/data]
    depends_on: {more: {condition: service_healthy}}
  spare:
    image: nginx
    profiles: [spare]
    volumes: [spare:/srv]
  more:
    image: nginx
    profiles: [extra]
    volumes: [more:/srv, ./site:/site:ro]
  backup:
    image: registry.example:5000/team/backupd:2@sha256:0123456789012345678901234567890123456789012345678901234567890123
    profiles: [backup]
    user: "1000:1000"
    read_only: true
    init: true
    cap_drop: [ALL]
    cap_add: [DAC_READ_SEARCH]
    security_opt: ["no-new-privileges:true"]
    mem_limit: 256m
    cpus: 0.5
    tmpfs: [/tmp]
    env_file: [backup.env]
    environment:
      BACKUPD_TARGET: ${TARGET}
      BACKUPD_SCHEDULE:
      NOT_SET:
    secrets: [pass, {source: token, target: /token, mode: 0400, uid: "1000"}]
    configs: [{source: settings, target: /etc/backupd.yaml}]
    networks: [back, front]
    volumes:
      - db:/volumes/db
      - ext:/volumes/ext:ro
      - only:/volumes/only
      - /var/run/docker.sock:/var/run/docker.sock
      - {type: volume, source: state, target: /var/lib/backupd, volume: {nocopy: true}}
      - {type: bind, source: ./backups, target: /backups, bind: {create_host_path: false}}
      - {type: tmpfs, target: /scratch, tmpfs: {size: 1m}}
networks: {back: , front: {name: edge, external: true}}
volumes:
  db: {driver_opts: {type: nfs, o: addr=nas.example, device: ":/export"}, labels: {a: b}}
  ext: {external: true, name: legacy}
  only: {name: plain, driver: rclone}
  spare:
  more:
  state:
secrets: {pass: {file: ./pass.txt}, token: {environment: TOKEN}}
configs: {settings: {content: "a: b"}}
`,
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "shop" || p.Backup == nil || p.Backup.Name != "backup" || p.Backup.Active {
		t.Fatalf("project %+v", p)
	}
	b := p.Backup
	if want := []string{"BACKUPD_SCHEDULE=@daily", "BACKUPD_TARGET=s3://bucket/shop", "FROM_FILE=yes"}; !reflect.DeepEqual(b.Env, want) {
		t.Errorf("environment %q, want %q", b.Env, want)
	}
	if b.User != "1000:1000" || !b.ReadOnly || b.Init == nil || !*b.Init || b.Memory != 256<<20 || b.CPUs != 0.5 || b.Entrypoint != nil ||
		!reflect.DeepEqual(b.CapDrop, []string{"ALL"}) || len(b.SecurityOpt) != 1 {
		t.Errorf("service %+v", b)
	}
	if want := []string{"shop_back", "edge"}; !reflect.DeepEqual(b.Networks, want) {
		t.Errorf("networks %q, want %q", b.Networks, want)
	}
	mounts := []Mount{
		{Type: "volume", Key: "db", Source: "shop_db", Target: "/volumes/db"},
		{Type: "volume", Key: "ext", Source: "legacy", Target: "/volumes/ext", ReadOnly: true},
		{Type: "volume", Key: "only", Source: "plain", Target: "/volumes/only"},
		{Type: "bind", Source: "/var/run/docker.sock", Target: "/var/run/docker.sock", CreatePath: true},
		{Type: "volume", Key: "state", Source: "shop_state", Target: "/var/lib/backupd", NoCopy: true},
		{Type: "bind", Source: filepath.Join(p.Dir, "backups"), Target: "/backups"},
		{Type: "tmpfs", Target: "/scratch", Size: 1 << 20},
		{Type: "tmpfs", Target: "/tmp"},
	}
	if !reflect.DeepEqual(b.Mounts, mounts) {
		t.Errorf("mounts\n%+v, want\n%+v", b.Mounts, mounts)
	}
	files := []File{
		{Name: "pass", Target: "/run/secrets/pass", Source: filepath.Join(p.Dir, "pass.txt"), Mode: 0o444},
		{Name: "token", Target: "/token", Content: []byte("of the environment"), Mode: 0o400, UID: 1000},
		{Name: "settings", Target: "/etc/backupd.yaml", Content: []byte("a: b"), Mode: 0o444},
	}
	if !reflect.DeepEqual(b.Files, files) {
		t.Errorf("files\n%+v, want\n%+v", b.Files, files)
	}
	used := map[string]Volume{}
	for _, v := range p.Volumes {
		used[v.Key] = v
	}
	if v := used["db"]; v.Name != "shop_db" || v.Options["type"] != "nfs" || v.Labels["a"] != "b" || !v.Used || v.External {
		t.Errorf("db: %+v", v)
	}
	if v := used["ext"]; v.Name != "legacy" || !v.External {
		t.Errorf("ext: %+v", v)
	}
	if used["only"].Driver != "rclone" || !used["more"].Used || used["spare"].Used {
		t.Errorf("volumes %+v", p.Volumes)
	}
	if s := p.service("db"); s.Depends["more"] != "service_healthy" || !s.Database {
		t.Errorf("db: %+v", s)
	}
}

func TestFilesNamesAndOverridesAreFoundAsComposeFindsThem(t *testing.T) {
	files := map[string]string{
		"compose.yaml":          "services: {app: {image: nginx, volumes: ['data:/data']}}\nvolumes: {data: }\n",
		"compose.override.yaml": "services: {saver: {image: example/backupd}}\n",
		"other.yaml":            "name: other\nservices: {b: {image: x, labels: {backupd.agent: 'true'}}, c: {image: backupd}}\n",
		"sub/deep/file":         "",
	}
	p, err := project(t, files, Options{})
	if err != nil || p.Backup == nil || p.Backup.Name != "saver" || len(p.Files) != 2 {
		t.Fatalf("override: %+v, %v", p, err)
	}
	t.Chdir(filepath.Join(p.Dir, "sub", "deep"))
	below, err := Load(t.Context(), Options{})
	if err != nil || below.Name != "shop" || below.Dir != p.Dir {
		t.Errorf("from below: %+v, %v", below, err)
	}
	other := filepath.Join("..", "..", "other.yaml")
	o, err := Load(t.Context(), Options{Files: []string{other}})
	if err != nil || o.Name != "other" || o.Backup.Name != "b" || o.Dir != p.Dir {
		t.Errorf("-f: %+v, %v", o, err)
	}
	o, err = Load(t.Context(), Options{Files: []string{other}, Name: "mine", Service: "c"})
	if err != nil || o.Name != "mine" || o.Backup.Name != "c" {
		t.Errorf("-p: %+v, %v", o, err)
	}
	t.Setenv("COMPOSE_PROJECT_NAME", "env")
	if o, err = Load(t.Context(), Options{}); err != nil || o.Name != "env" {
		t.Errorf("COMPOSE_PROJECT_NAME: %+v, %v", o, err)
	}
	t.Setenv("COMPOSE_FILE", other)
	if o, err = Load(t.Context(), Options{}); err != nil || o.Backup == nil || o.Backup.Name != "b" {
		t.Errorf("COMPOSE_FILE: %+v, %v", o, err)
	}
}

func TestComposeFileMayStandInDotEnv(t *testing.T) {
	p, err := project(t, map[string]string{
		".env":       "COMPOSE_FILE=stack.yaml\nCOMPOSE_PROJECT_NAME=named\n",
		"stack.yaml": "services: {backup: {image: backupd}}\n",
	}, Options{})
	if err != nil || p.Name != "named" || p.Backup == nil {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := Load(t.Context(), Options{}); !errors.Is(err, ErrNoFile) {
		t.Errorf("no file: %v", err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"none":     {"services: {app: {image: nginx}}", "`backupd init` adds one"},
		"two":      {"services: {a: {image: backupd}, b: {image: backupd}}", "a and b"},
		"two told": {"services: {a: {image: x, environment: {BACKUPD_TARGET: /a}}, b: {image: x, environment: {BACKUPD_TARGET: /b}}}", "a and b"},
	} {
		p, err := project(t, map[string]string{"compose.yaml": c.text}, Options{})
		if err != nil || p.Backup != nil || !errors.Is(p.WhyNoBackup, ErrNoBackup) || !strings.Contains(p.WhyNoBackup.Error(), c.want) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	for name, c := range map[string]struct{ text, want string }{
		"interpolation": {"services: {backup: {image: '${NO_SUCH_VARIABLE:?set it}'}}", "set it"},
		"secret file":   {"services: {backup: {image: backupd, secrets: [s]}}\nsecrets: {s: {file: ./nothing}}", "nothing"},
		"secret env":    {"services: {backup: {image: backupd, secrets: [s]}}\nsecrets: {s: {environment: NO_SUCH_VARIABLE}}", "NO_SUCH_VARIABLE"},
		"env file":      {"services: {backup: {image: backupd, env_file: [nothing.env]}}", "nothing.env"},
		"unknown key":   {"services: {backup: {image: backupd, volumess: []}}", "volumess"},
	} {
		p, err := project(t, map[string]string{"compose.yaml": c.text}, Options{})
		if err == nil && strings.Contains(c.text, "services: {backup: {image: backupd,") {
			err = p.WhyNotRun
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := project(t, map[string]string{"compose.yaml": "services: {backup: {image: backupd}}"}, Options{Service: "other"})
	if err != nil || !errors.Is(p.WhyNoBackup, ErrNoBackup) {
		t.Errorf("--service: %v, %v", p, err)
	}
}

// TestExamplesHaveABackupService reads every file of configs, where all are examples.
func TestExamplesHaveABackupService(t *testing.T) {
	examples, err := filepath.Glob("../../configs/*.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatal("no examples", err)
	}
	for _, v := range []string{"POSTGRES_PASSWORD", "DB_PASSWORD", "BACKUPD_TARGET", "BACKUPD_PASSPHRASE", "NFS_SERVER"} {
		t.Setenv(v, "x")
	}
	for _, f := range examples {
		if strings.HasPrefix(filepath.Base(f), "backupd") {
			continue // backupd's own settings
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		service := ""
		if strings.Contains(string(data), "\n  backup-mounted:") {
			service = "backup" // that example offers two
		}
		p, err := Load(t.Context(), Options{Files: []string{f}, Service: service})
		if err != nil {
			t.Errorf("%s: %v", f, err)
		} else if p.Backup == nil {
			t.Errorf("%s: %v", f, p.WhyNoBackup)
		} else if !slices.ContainsFunc(p.Backup.Mounts, func(m Mount) bool {
			return strings.HasPrefix(m.Target, "/volumes/") || m.Target == "/var/run/docker.sock"
		}) {
			t.Errorf("%s: service %s backs up nothing", f, p.Backup.Name)
		}
	}
}
