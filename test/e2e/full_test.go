package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/teststack"
)

// small is a directory with room for so much, and a function to give it more.
func small(t *testing.T, size string) (dir string, grow func(size string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts a small file system, which takes root")
	}
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, func(size string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
}

// noise writes bytes that do not compress.
func noise(t *testing.T, p *teststack.Project, megabytes string) {
	t.Helper()
	p.Exec("application", "sh", "-c", "head -c "+megabytes+"M /dev/urandom >/srv/data/noise")
}

func TestAFullTargetFailsTheBackupAndTheNextOneWorks(t *testing.T) {
	t.Parallel()
	target, grow := small(t, "4m")
	p := checkout(t, target, socket)
	p.Up()
	code, said := backup(t, p)
	if code != 0 {
		t.Fatalf("the first, which has room: %s", said)
	}
	noise(t, p, "12")
	code, said = backup(t, p)
	t.Log(said)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	mentions(t, said, "/backups", "no space left", "prune")
	if s := p.State("application"); s.Status != "running" {
		t.Errorf("the application is %+v", s)
	}
	p.Exec("backup", "backupd", "verify", "--deep")
	grow("64m")
	if code, said = backup(t, p); code != 0 {
		t.Fatalf("with room it fails: %s", said)
	}
	p.Exec("backup", "backupd", "verify", "--deep")
}

// The state may be lost at any time, so it may be full as well.
func TestAFullStateDirectory(t *testing.T) {
	t.Parallel()
	state, grow := small(t, "256k")
	p := checkout(t, t.TempDir(), socket)
	set(p, map[string]string{"STATE": state + ":/var/lib/backupd"})
	p.Up()
	p.Exec("application", "sh", "-c", "cd /srv/data; for i in $(seq 3000); do echo $i >file-$i-$i-$i; done")
	if err := os.WriteFile(filepath.Join(state, "filler"), make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("there is room left")
	}
	code, said := backup(t, p)
	t.Log(said)
	if code == 0 || code == 3 {
		// A run without room for its caches is slower, and no worse.
		p.Exec("backup", "backupd", "verify", "--deep")
	} else {
		mentions(t, said, "/var/lib/backupd", "no space left")
	}
	if s := p.State("application"); s.Status != "running" {
		t.Errorf("the application is %+v", s)
	}
	if err := os.Remove(filepath.Join(state, "filler")); err != nil {
		t.Fatal(err)
	}
	grow("64m")
	if code, said := backup(t, p); code != 0 {
		t.Fatalf("with room it fails: %s", said)
	}
}

// A volume without room for its data: the stack does not start, says why, and
// goes on where it ended.
func TestAFullVolumeStopsTheSeedAndTheNextUpGoesOn(t *testing.T) {
	withAndWithoutSocket(t, func(t *testing.T, override string) {
		volumes, repository := t.TempDir(), t.TempDir()
		write(t, filepath.Join(volumes, "data/rows"), serverRows)
		write(t, filepath.Join(volumes, "data/film"), string(make([]byte, 5<<20))+"end")
		write(t, filepath.Join(volumes, "home/note"), serverHome)
		big := make([]byte, 5<<20)
		for i := range big {
			big[i] = byte(i*i>>3) | 1 // no holes
		}
		write(t, filepath.Join(volumes, "data/film"), string(big))
		backUp(t, volumes, repository)
		dir, grow := small(t, "2m")
		p := checkout(t, repository, override, "volumes: {data: {driver_opts: {type: none, o: bind, device: '"+dir+"'}}}\n")
		if out, err := p.Try("up", "-d"); err == nil {
			t.Fatalf("the stack came up without its data: %s\n%s", out, p.Logs())
		}
		t.Log(lastLine(p, "backup"))
		mentions(t, lastLine(p, "backup"), "volume data", "no space left", "not complete")
		grow("64m")
		p.Up()
		isTheServers(t, p)
		if got := p.Exec("application", "sh", "-c", "ls -A /srv/data; wc -c </srv/data/film"); got != "film\nrows\n5242880\n" {
			t.Errorf("there is %q", got)
		}
	})
}
