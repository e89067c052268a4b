package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/teststack"
)

// backup has the running agent take a snapshot now.
func backup(t *testing.T, p *teststack.Project) (code int, said string) {
	t.Helper()
	out, err := p.Try("exec", "-T", "backup", "backupd", "backup")
	if err == nil {
		return 0, out
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return exit.ExitCode(), out + err.Error()
}

// behind is the override of an agent that reaches the engine through a proxy.
func behind(proxy *teststack.SocketProxy) string {
	return "services: {backup: {volumes: ['" + proxy.Socket + ":/var/run/docker.sock']}}\n"
}

func TestAProxyThatForbidsPostAllowsPlainBackups(t *testing.T) {
	t.Parallel()
	proxy := teststack.NewSocketProxy(t, teststack.ReadOnly)
	repository := snapshotted(t)
	p := checkout(t, repository, behind(proxy), "services: {application: {labels: {backupd.quiesce: '${QUIESCE:-default}'}}}\n")
	p.Up()
	isTheServers(t, p)
	code, said := backup(t, p)
	t.Log(said)
	if code != 3 {
		t.Errorf("exit code %d, want 3, which is done with warnings", code)
	}
	mentions(t, said, "services are not frozen", "pause")
	if n := strings.Count(p.Exec("backup", "backupd", "snapshots", "--quiet"), "\n"); n < 2 {
		t.Errorf("there is no snapshot more: %s", p.Exec("backup", "backupd", "snapshots"))
	}

	// What somebody has asked for is not left out in silence.
	set(p, map[string]string{"QUIESCE": "stop"})
	p.Up()
	before := started(t, p, "application")
	code, said = backup(t, p)
	t.Log(said)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	mentions(t, said, "application", "POST /containers/ID/start", "POST /containers/ID/stop", "proxy")
	if started(t, p, "application") != before {
		t.Error("the application was touched")
	}
}
