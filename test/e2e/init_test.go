package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/compose"
	"github.com/disko/backupd/internal/host"
	"github.com/disko/backupd/internal/teststack"
)

// unprepared is a project as people have it: without a name, and nothing of backupd.
const unprepared = `services:
  application:
    image: backupd-test/base
    network_mode: none
    init: true
    command: [sleep, infinity]
    volumes: [data:/srv/data]
volumes:
  data:
`

func TestACloneOfAProjectPreparedByInitHasItsDataUnderAnyProjectName(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	teststack.Images(t, "base")
	image := teststack.BackupdImage(t)
	for name, prepared := range map[string]func(text string) string{
		"with the socket": func(text string) string { return text },
		// As the file's comment says, this works as well.
		"without the socket": func(text string) string {
			return strings.Replace(text, "      - /var/run/docker.sock:/var/run/docker.sock\n", "", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repository := t.TempDir()
			start := func(prefix, file string) *teststack.Project {
				p := teststack.NewProject(t, prefix, file)
				p.Write("compose.override.yaml", "services: {backup: {network_mode: none, volumes: ['"+repository+":/backups']}}\n")
				set(p, map[string]string{"BACKUPD_TARGET": "/backups"})
				return p
			}
			server := start("backupd-e2e-server", unprepared)
			path := filepath.Join(server.Dir, "compose.yaml")
			err := host.Init(t.Context(), host.InitOptions{
				Compose: compose.Options{Files: []string{path}, Name: server.Name}, Image: image, Yes: true,
				Diff:   func(string, []byte, []byte) error { return nil },
				Notice: func(text string) { t.Log(text) },
			})
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			file := prepared(string(text))
			server.Write("compose.yaml", file)
			server.Up()
			server.Exec("application", "sh", "-c", "echo sold >/srv/data/orders")
			if out, code := backupd(t, server, "backup"); code != 0 && code != 3 {
				t.Fatalf("backup: %d: %s\n%s", code, out, server.Logs("backup"))
			}

			clone := start("backupd-e2e-clone", file)
			clone.Up()
			if got := clone.Exec("application", "sh", "-c", "cat /srv/data/orders || true"); got != "sold\n" {
				t.Errorf("the clone came up with %q\n%s", got, clone.Logs("backup"))
			}
		})
	}
}
