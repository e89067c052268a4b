package sftp

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/targetstest"
	"github.com/disko/backupd/internal/testservers"
)

// options are those of a new directory on a server.
func options(t *testing.T, s *testservers.SSHD) Options {
	t.Helper()
	return Options{
		User: s.User, Host: s.Host, Port: s.Port, Path: t.TempDir(),
		IdentityFiles: []string{s.IdentityFile}, KnownHostsFile: s.KnownHostsFile,
	}
}

func open(t *testing.T, o Options) *Target {
	t.Helper()
	target, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

// wantNoTemp makes sure that nothing is left of what failed.
func wantNoTemp(t *testing.T, root string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, tmpDir))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), tmpDir)
	}
}

func TestSFTPKeepsTheContract(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name        string
		server      testservers.SSHDOptions
		concurrency int
		lacks       []string
	}{
		{"OpenSSH", testservers.SSHDOptions{}, 0, nil},
		{"OpenSSH without extensions and modes, one connection", testservers.SSHDOptions{SFTP: "-P hardlink,fsync,statvfs,posix-rename,setstat,fsetstat"}, 1, []string{"hardlink@openssh.com", "fsync@openssh.com", "statvfs@openssh.com"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.lacks != nil {
				t.Skip("takes some ten seconds")
			}
			s := testservers.StartSSHD(t, c.server)
			targetstest.Run(t, func(t *testing.T) store.Writer {
				o := options(t, s)
				o.Concurrency = c.concurrency
				target := open(t, o)
				t.Cleanup(func() { wantNoTemp(t, o.Path) })
				wantLacks(t, target, c.lacks)
				return target
			})
		})
	}
}

// wantLacks makes sure that the server is as poor as the test says.
func wantLacks(t *testing.T, target *Target, extensions []string) {
	t.Helper()
	err := target.pool.run(context.Background(), func(s *session) error {
		for _, name := range extensions {
			if _, ok := s.HasExtension(name); ok {
				t.Errorf("the server has %s", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// It answers "done" to hard links and makes none, syncs nothing, and its
// renames replace.
func TestRclonesServerKeepsTheContract(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some ten seconds")
	}
	t.Parallel()
	targetstest.Run(t, func(t *testing.T) store.Writer {
		o, dir := rcloneSFTP(t)
		target := open(t, o)
		wantLacks(t, target, []string{"fsync@openssh.com"})
		t.Cleanup(func() { wantNoTemp(t, dir) })
		return target
	})
}

// rcloneSFTP starts `rclone serve sftp`, which lets in by a password, and
// returns the directory that it serves, too.
func rcloneSFTP(t *testing.T) (Options, string) {
	t.Helper()
	program, err := exec.LookPath("rclone")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("rclone is missing; apt-get install rclone")
		}
		t.Skip("rclone is missing; apt-get install rclone")
	}
	addr, err := testservers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	dir, home := t.TempDir(), t.TempDir()
	cmd := exec.Command(program, "serve", "sftp", "--addr", addr, "--user", "somebody", "--pass", "p+ss word", "--vfs-cache-mode", "off", "--dir-cache-time", "0", dir)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+home, "XDG_CONFIG_HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	o := Options{Host: host, User: "somebody", Path: "/", PasswordFile: filepath.Join(t.TempDir(), "password"), KnownHostsFile: filepath.Join(t.TempDir(), "known_hosts")}
	if o.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{o.PasswordFile: "p+ss word\n", o.KnownHostsFile: ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "rclone serve sftp", func() bool {
		_, err := Open(context.Background(), o)
		return learn(t, o, err)
	})
	return o, dir
}

// learn writes the line that an error about an unknown host gives into the
// file it names, as its reader would.
func learn(t *testing.T, o Options, err error) bool {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "is not known") {
		return false
	}
	line := strings.Split(err.Error(), "\n")[1]
	if err := os.WriteFile(o.KnownHostsFile, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return true
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
