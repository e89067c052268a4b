package compose

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const wordpress = `# Our shop.
name: shop   # short

x-common: &common
  restart: always

services:
  # The web server.
  web:
    image: nginx:1.27   # pinned
    ports: ["80:80"]
    depends_on:
      - application     # speaks FastCGI
    volumes: [uploads:/srv/uploads:ro]

  application:
    <<: *common
    build: .
    depends_on: [db, cache] # both
    volumes:
      - uploads:/srv/uploads

  db:
    image: mariadb:11
    environment:
      NOTE: |
        depends_on:
          - nothing
    volumes:
      - db:/var/lib/mysql

  queue:
    image: redis
    depends_on:
      db:
        condition: service_healthy
    volumes: [queue:/data]

  cache:
    image: redis
    depends_on: {db: {condition: service_started}}
    volumes: [queue:/data]

  mailer:
    image: mailer

  # End of the services.

# What must outlive the containers.
volumes:
  db:
  uploads: {}
  queue:
    driver: local

# The end.
`

const wantWordpress = `# Our shop.
name: shop   # short

x-common: &common
  restart: always

services:
  # The web server.
  web:
    image: nginx:1.27   # pinned
    ports: ["80:80"]
    depends_on:
      application:     # speaks FastCGI
        condition: service_started
      backup:
        condition: service_healthy
    volumes: [uploads:/srv/uploads:ro]

  application:
    <<: *common
    build: .
    depends_on: # both
      db:
        condition: service_started
      cache:
        condition: service_started
      backup:
        condition: service_healthy
    volumes:
      - uploads:/srv/uploads

  db:
    image: mariadb:11
    depends_on:
      backup:
        condition: service_healthy
    environment:
      NOTE: |
        depends_on:
          - nothing
    volumes:
      - db:/var/lib/mysql

  queue:
    image: redis
    depends_on:
      backup:
        condition: service_healthy
      db:
        condition: service_healthy
    volumes: [queue:/data]

  cache:
    image: redis
    depends_on: {db: {condition: service_started}, backup: {condition: service_healthy}}
    volumes: [queue:/data]

  mailer:
    image: mailer

  # End of the services.

` + "BACKUP" + `
# What must outlive the containers.
volumes:
  db:
  uploads: {}
  queue:
    driver: local
  backup-state:

# The end.
`

const wantService = `  # Takes snapshots of the volumes below /volumes, and fills them where they are
  # new: ` + "`docker compose up`" + ` in a fresh clone starts the stack with its data.
  backup:
    image: backupd:latest
    restart: unless-stopped
    environment:
      BACKUPD_TARGET: ${BACKUPD_TARGET:?set it in .env, as in s3://bucket/prefix}
      # The stack's name at the target. A clone finds its data by it, whatever the
      # directory or the project is called there.
      BACKUPD_STACK: "shop"
      # Empty in a clone, which takes no snapshots by itself. The server's .env has
      # one, as in BACKUPD_SCHEDULE=@daily.
      BACKUPD_SCHEDULE: ${BACKUPD_SCHEDULE:-}
      AWS_ACCESS_KEY_ID: ${AWS_ACCESS_KEY_ID:-}
      AWS_SECRET_ACCESS_KEY: ${AWS_SECRET_ACCESS_KEY:-}
      AWS_REGION: ${AWS_REGION:-us-east-1}
    volumes:
      - db:/volumes/db
      - queue:/volumes/queue
      - uploads:/volumes/uploads
      # What it remembers between runs.
      - backup-state:/var/lib/backupd
      # To pause services for the seconds in which their files must stand still.
      # Without this line backups work, and services go on writing meanwhile.
      - /var/run/docker.sock:/var/run/docker.sock
`

func TestABackupServiceIsAddedAndTheRestOfTheFileStays(t *testing.T) {
	p, err := project(t, map[string]string{"compose.yaml": wordpress}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.AddBackup(t.Context(), Options{}, "backupd:latest")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(wantWordpress, "BACKUP", wantService, 1)
	if string(e.New) != want {
		t.Errorf("got\n%s\nwant\n%s", e.New, want)
	}
	if e.Service != "backup" || !reflect.DeepEqual(e.Waiting, []string{"application", "cache", "db", "queue", "web"}) || len(e.ByHand) != 0 {
		t.Errorf("edit %q %q %q", e.Service, e.Waiting, e.ByHand)
	}
	if err := e.Write(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BACKUPD_TARGET", "/backups")
	again, err := Load(t.Context(), Options{})
	if err != nil || again.Backup == nil || again.service("web").Depends["backup"] != "service_healthy" {
		t.Errorf("read again: %+v, %v", again, err)
	}
	if err := e.Write(); err == nil {
		t.Error("a file that was changed meanwhile was overwritten")
	}
	if left, _ := filepath.Glob(filepath.Join(p.Dir, ".backupd-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestTheStackIsNamedByTheProjectAndKeepsThatNameInAClone(t *testing.T) {
	const file = "services:\n  app:\n    image: x\n    volumes: ['dd:/d']\nvolumes:\n  dd:\n"
	long := strings.Repeat("a", 200)
	for name, want := range map[string]string{"shop": "shop", "0123": "0123", "1e3": "1e3", "null": "null", "on": "on", long: long[:128]} {
		p, err := project(t, map[string]string{"compose.yaml": file}, Options{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		e, err := p.AddBackup(t.Context(), Options{Name: name}, "backupd")
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Write(); err != nil {
			t.Fatal(err)
		}
		t.Setenv("BACKUPD_TARGET", "/backups")
		clone, err := Load(t.Context(), Options{Name: "another"})
		if err != nil || clone.Backup == nil || !slices.Contains(clone.Backup.Env, "BACKUPD_STACK="+want) {
			t.Errorf("a clone of project %s: %v, %+v", name, err, clone.Backup)
		}
	}
}

func TestFilesOfOtherShapesAreEditedOrRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		refused string // part of the error
		byHand  string // part of a sentence for the user
	}{
		"no volumes key at the end": {text: "services:\n    app:\n        image: x\n        volumes: ['dd:/d']\nvolumes:\n    dd:\n"},
		"volumes first":             {text: "volumes:\n  dd:\nservices:\n  app:\n    volumes:\n      - dd:/d\n    image: x\n\n\n"},
		"no end of line":            {text: "services:\n  app:\n    image: x\n    volumes: ['dd:/d']\nvolumes:\n  dd:"},
		"document marks":            {text: "---\nservices:\n  app:\n    image: x\n    volumes: ['dd:/d']\nvolumes:\n  dd:\n...\n"},
		"quoted":                    {text: "services:\n  'app':\n    \"image\": x\n    depends_on:\n    - \"b\" # why\n    - 'c'\n    volumes: ['dd:/d']\n  b: {image: y}\n  c:\n    image: z\nvolumes:\n  dd:\n"},
		"taken name":                {text: "services:\n  app:\n    image: x\n    volumes: ['dd:/d', 'backup-state:/x']\n  backup:\n    image: tar\nvolumes:\n  dd:\n  backup-state:\n"},
		"flow service":              {text: "services:\n  app: {image: x, volumes: ['dd:/d']}\nvolumes:\n  dd:\n", byHand: "service app"},
		"anchored depends":          {text: "x-a: &a\n  depends_on: [b]\nservices:\n  app:\n    <<: *a\n    image: x\n    volumes: ['dd:/d']\n  b:\n    image: y\nvolumes:\n  dd:\n", byHand: "service app"},
		"flow over lines":           {text: "services:\n  app:\n    image: x\n    depends_on: [\n      b\n    ]\n    volumes: ['dd:/d']\n  b:\n    image: y\nvolumes:\n  dd:\n", byHand: "service app"},
		"directory":                 {text: "services:\n  app:\n    image: x\n    volumes: ['dd:/d', './data:/data']\nvolumes:\n  dd:\n", byHand: "./data"},
		"all in braces":             {text: "{services: {app: {image: x, volumes: ['dd:/d']}}, volumes: {dd: }}\n", refused: "does not edit"},
		"volumes in braces":         {text: "services:\n  app:\n    image: x\n    volumes: ['dd:/d']\nvolumes: {dd: }\n", refused: "by hand"},
		"windows":                   {text: "services:\r\n  app:\r\n    image: x\r\n    volumes: ['dd:/d']\r\nvolumes:\r\n  dd:\r\n", refused: "Windows"},
		"nothing":                   {text: "services:\n  app:\n    image: x\n", refused: "nothing to back up"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := project(t, map[string]string{"compose.yaml": c.text}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			e, err := p.AddBackup(t.Context(), Options{}, "backupd")
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("refused with %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (c.byHand != "") != (len(e.ByHand) > 0) || c.byHand != "" && !strings.Contains(strings.ReplaceAll(e.ByHand[0], p.Dir, "."), c.byHand) {
				t.Errorf("by hand %q\n%s", e.ByHand, e.New)
			}
			// Every line of the old file that was not a dependency is in the new one.
			at := 0
			lines := strings.Split(string(e.New), "\n")
			for _, old := range strings.Split(strings.TrimRight(c.text, "\n"), "\n") {
				if strings.Contains(old, "- \"b\"") || strings.Contains(old, "- 'c'") {
					continue
				}
				for at < len(lines) && lines[at] != old {
					at++
				}
				if at == len(lines) {
					t.Fatalf("%q is lost in\n%s", old, e.New)
				}
			}
		})
	}
}

func TestOnlyServicesOfTheFirstFileAreEdited(t *testing.T) {
	p, err := project(t, map[string]string{
		"compose.yaml":          "services:\n  app:\n    image: x\n    volumes: ['dd:/d']\nvolumes:\n  dd:\n",
		"compose.override.yaml": "services:\n  debug:\n    image: y\n    volumes: ['dd:/d']\n",
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.AddBackup(t.Context(), Options{}, "backupd")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(e.Waiting, []string{"app"}) || len(e.ByHand) != 1 || !strings.Contains(e.ByHand[0], "another file") {
		t.Errorf("%+v", e)
	}
	if err := os.Remove(e.File); err != nil {
		t.Fatal(err)
	}
	if err := e.Write(); err == nil {
		t.Error("a file that is gone was made anew")
	}
}
