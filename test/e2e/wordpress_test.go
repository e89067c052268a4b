package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/teststack"
)

// wordpress returns a checkout of the WordPress example, with images made from
// Debian's packages and a repository that all checkouts share.
func wordpress(t *testing.T, repository string) *teststack.Project {
	t.Helper()
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	images := teststack.Images(t, "wordpress", "mariadb")
	p := teststack.NewProject(t, "backupd-wordpress", read(t, filepath.Join(root, "configs/compose.wordpress.yaml")))
	p.Write(".env", settings+"PORT=0\nBACKUPD_DIRECTORY="+repository+"\n")
	p.Write("compose.override.yaml", "services:\n"+
		"  application: {image: "+images[0]+"}\n"+
		"  db: {image: "+images[1]+"}\n"+
		"  backup: {image: '"+teststack.BackupdImage(t)+"'}\n")
	return p
}

// installed makes a site with an article and a picture.
func installed(t *testing.T, p *teststack.Project) {
	t.Helper()
	answers(t, p, "/wp-admin/install.php", "WordPress")
	p.Exec("application", "curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1/wp-admin/install.php?step=2",
		"--data", "weblog_title=The+shop&user_name=admin&admin_password=Correct-horse-1&admin_password2=Correct-horse-1&pw_weak=1&admin_email=a@example.org&language=")
	p.Exec("db", "mariadb", "-uwordpress", "-psecret", "-h127.0.0.1", "wordpress", "-e",
		"UPDATE wp_posts SET post_title='An article of the server', post_content='It came with the snapshot.' WHERE ID=1")
	p.Exec("application", "sh", "-c", "mkdir -p wp-content/uploads/2026 && head -c 300000 /dev/urandom >wp-content/uploads/2026/picture.jpg && chown -R www-data: wp-content/uploads")
}

// answers waits until a page holds a text.
func answers(t *testing.T, p *teststack.Project, page, text string) {
	t.Helper()
	teststack.Eventually(t, 2*time.Minute, page+" holds "+text, func() (bool, string) {
		out, err := p.Try("exec", "-T", "application", "curl", "-sS", "-L", "http://127.0.0.1"+page)
		if err != nil {
			return false, err.Error()
		}
		return strings.Contains(out, text), out
	})
}

func picture(t *testing.T, p *teststack.Project) string {
	t.Helper()
	return p.Exec("application", "sha256sum", "wp-content/uploads/2026/picture.jpg")
}

// By hand, with the services stopped: what the image and the Compose file of the
// example can do with docker compose run alone.
func TestWordPressIsBackedUpAndRestoredByComposeRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	repository := t.TempDir()
	server := wordpress(t, repository)
	server.Compose("up", "-d", "--no-deps", "db", "application")
	server.WaitHealthy("db")
	installed(t, server)
	answers(t, server, "/?p=1", "An article of the server")
	want := picture(t, server)
	server.Compose("stop")
	server.Compose("run", "--rm", "--no-deps", "-T", "backup", "backup")
	server.Remove()

	clone := wordpress(t, repository)
	clone.Compose("run", "--rm", "--no-deps", "-T", "backup", "restore")
	clone.Compose("up", "-d", "--no-deps", "db", "application")
	clone.WaitHealthy("db")
	// Its address is the server's, which redirects would follow.
	answers(t, clone, "/?p=1", "An article of the server")
	if got := picture(t, clone); got != want {
		t.Errorf("the picture is another: %s, want %s", got, want)
	}
}

// The measure of the whole product: a clone on a machine with no data comes up
// with all of it by docker compose up, and nothing else.
func TestWordPressComesUpInACloneWithItsData(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the repository's directory belongs to root in the container")
	}
	repository := t.TempDir()
	server := wordpress(t, repository)
	server.Up()
	installed(t, server)
	answers(t, server, "/?p=1", "An article of the server")
	want := picture(t, server)
	server.Exec("backup", "backupd", "backup")
	if s := server.State("db"); s.Status != "running" {
		t.Errorf("the database is %+v after the snapshot", s)
	}
	server.Remove()

	clone := wordpress(t, repository)
	clone.Up()
	answers(t, clone, "/?p=1", "An article of the server")
	if got := picture(t, clone); got != want {
		t.Errorf("the picture is another: %s, want %s", got, want)
	}
	if log := clone.Logs("backup"); strings.Contains(log, "secret") {
		t.Errorf("a secret is in the log:\n%s", log)
	}
}
