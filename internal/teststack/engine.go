package teststack

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// OwnEngine starts a Docker engine that ends with the test, in a network and
// mounts of its own so that it takes nothing from the machine's, and returns
// its socket when it answers. It has no images.
func OwnEngine(t testing.TB) (socket string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Docker engine")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start a Docker engine")
	}
	for _, program := range []string{"docker", "dockerd", "unshare", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("needs %s", program)
		}
	}
	dir, err := os.MkdirTemp("", "engine-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("config"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(in("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("unshare", "-n", "-m", "sh", "-c", `ip link set lo up && exec dockerd "$@"`, "sh",
		"--config-file", in("config"), "--data-root", in("data"), "--exec-root", in("exec"), "--pidfile", in("pid"),
		"--host", "unix://"+in("sock"), "--iptables=false", "--ip-masq=false")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its log says why
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	Eventually(t, 2*time.Minute, "the engine is up", func() (bool, string) {
		_, err := Try(t, "", "-H", "unix://"+in("sock"), "version")
		if err == nil {
			return true, ""
		}
		text, _ := os.ReadFile(in("log"))
		last := string(text[max(0, len(text)-2000):])
		select {
		case <-ended:
			t.Fatalf("dockerd: %v\n%s", cmd.ProcessState, last)
		default:
		}
		return false, last
	})
	return in("sock")
}
