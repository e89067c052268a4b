//go:build !image

package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/testservers"
	"github.com/disko/backupd/internal/teststack"
	"github.com/disko/backupd/internal/testtree"
)

// TestCtrlCEndsARestoreOnAHostAndLosesNothing is a person at a terminal who
// restores over data, and thinks better of it in the middle.
func TestCtrlCEndsARestoreOnAHostAndLosesNothing(t *testing.T) {
	e := newEngine(t)
	h := newHouse(t)
	h.write(filepath.Join(h.volume, "row"), "of a table")
	h.write(filepath.Join(h.volume, "book"), rand.Text()+strings.Repeat("another page\n", 1<<18))

	// The volume's content comes through until the restore begins to change it.
	srv := testservers.Versitygw(t)
	var mark string
	var holding atomic.Bool
	var held atomic.Int32
	proxy := srv.FaultProxy(t, func(r *http.Request, _ int) testservers.Fault {
		if !holding.Load() || !strings.Contains(r.URL.Path, "/packs/") {
			return testservers.FaultNone
		}
		if _, err := os.Lstat(mark); err != nil {
			return testservers.FaultNone
		}
		held.Add(1)
		return testservers.FaultSilence()
	})
	h.target = "s3://" + srv.Bucket(t) + "/backups"
	server := []string{"AWS_ACCESS_KEY_ID=" + srv.AccessKey, "AWS_SECRET_ACCESS_KEY=" + srv.SecretKey, "AWS_REGION=" + srv.Region, "AWS_ENDPOINT_URL=" + proxy.URL}
	h.env = server
	id := strings.TrimSpace(h.must("backup"))

	// A project whose volume holds something else.
	project, clone := teststack.Unique("dockerbase-terminal"), filepath.Join(h.dir, "clone")
	h.mkdir(clone)
	compose := fmt.Sprintf(`name: %s
services:
  backup:
    image: %s
    network_mode: host
    environment: [BACKUPD_TARGET=%s, BACKUPD_STACK=shop, %s]
    volumes: [data:/volumes/data, state:/var/lib/backupd]
volumes: {data: {}, state: {}}
`, project, hostTestImage, h.target, strings.Join(server, ", "))
	h.write(filepath.Join(clone, "compose.yaml"), compose)
	t.Cleanup(func() {
		// A program that was killed leaves its container.
		for left := range strings.FieldsSeq(e.docker("ps", "-aq", "--filter", "label=com.docker.compose.project="+project)) {
			_ = exec.Command("docker", "rm", "-f", left).Run()
		}
		for _, v := range []string{"data", "state"} {
			_ = exec.Command("docker", "volume", "rm", "-f", project+"_"+v).Run()
		}
	})
	labels := func(key string) []string {
		return []string{"--label", "com.docker.compose.project=" + project, "--label", "com.docker.compose.volume=" + key}
	}
	e.docker(append(append([]string{"volume", "create"}, labels("data")...), project+"_data")...)
	volume := e.docker("volume", "inspect", "-f", "{{.Mountpoint}}", project+"_data")
	h.write(filepath.Join(volume, "precious"), "only here")
	before := filepath.Join(h.dir, "before")
	testtree.Clone(t, volume, before)
	mark = filepath.Join(volume, ".backupd-incomplete")

	program, err := exec.LookPath("backupd")
	if err != nil {
		t.Fatal(err)
	}
	term := newTerminal(t)
	term.resize(80, 24)
	modes := term.modes()
	restore := func(args ...string) <-chan int {
		t.Helper()
		return term.start(clone, append(os.Environ(), "BACKUPD_STATE_DIR="), append([]string{program, "restore", "-f", "compose.yaml"}, args...)...)
	}
	container := func() string {
		return e.docker("ps", "-aq", "--filter", "label=com.docker.compose.project="+project)
	}
	ends := func(what string, ended <-chan int, want int) {
		t.Helper()
		teststack.Eventually(t, patience, what, func() (bool, string) {
			select {
			case code := <-ended:
				if code != want {
					t.Fatalf("%s: exit code %d, want %d: %s", what, code, want, term.shown())
				}
				return true, ""
			default:
				return false, term.shown()
			}
		})
		if now := term.modes(); now != modes {
			t.Errorf("%s: the terminal's modes are %+v, and were %+v", what, now, modes)
		}
		if left := container(); left != "" {
			t.Errorf("%s: containers are left over: %s", what, left)
		}
	}

	holding.Store(true)
	ended := restore("--force")
	teststack.Eventually(t, patience, "the restore waits for content, and shows it", func() (bool, string) {
		return held.Load() > 0 && strings.Contains(term.shown(), takeBack+"restore ["), term.shown()
	})
	if now := term.modes(); now.Lflag&(unix.ISIG|unix.ICANON|unix.ECHO) != 0 {
		t.Errorf("the keys do not go to the container: modes %+v", now)
	}
	term.resize(123, 45)
	inside := e.docker("inspect", "-f", "/proc/{{.State.Pid}}/fd/0", container())
	teststack.Eventually(t, patience, "the container's terminal has the size of this one", func() (bool, string) {
		f, err := os.OpenFile(inside, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			t.Fatal(err)
		}
		return *size == unix.Winsize{Col: 123, Row: 45}, fmt.Sprint(*size)
	})
	term.press("\x03")
	ends("Ctrl-C", ended, exitInterrupted)
	if said := term.shown(); !strings.Contains(said, "backupd: interrupted; a volume that bears the file .backupd-incomplete is not complete: run the restore again, or with --undo\r\n") {
		t.Errorf("after Ctrl-C it showed %q", said)
	}
	if _, err := os.Lstat(mark); err != nil {
		t.Errorf("half a restore passes for data: %v", err)
	}

	// Both ways on are open: back to what was there, and the restore again.
	ends("the undo", restore("--undo"), exitDone)
	testtree.Compare(t, before, volume, testtree.Options{})
	holding.Store(false)
	ends("the restore again", restore("--force"), exitDone)
	testtree.Compare(t, h.volume, volume, testtree.Options{})
	if said := term.shown(); !strings.Contains(said, id) {
		t.Errorf("it showed %q", said)
	}
}
