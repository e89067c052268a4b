package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/disko/backupd/internal/testtree"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"backupd": main})
}

// TestCommandLine runs the scripts, which are named after what they show.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BACKUPD_STATE_DIR", filepath.Join(e.WorkDir, "state"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "same": same, "flip": flip,
		},
		RequireExplicitExec: true,
	})
}

// exits CODE COMMAND...: the command must end with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if err != nil || neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // testscript returns it as it is
			exit = e
		} else {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s exited with %d instead of %d", strings.Join(args[1:], " "), got, want)
	}
}

// same A B: two trees are identical, as the comparer sees it.
func same(ts *testscript.TestScript, neg bool, args []string) {
	diff, err := testtree.Diff(ts.MkAbs(args[0]), ts.MkAbs(args[1]), testtree.Options{})
	ts.Check(err)
	if (len(diff) > 0) != neg {
		ts.Fatalf("%s and %s: %s", args[0], args[1], strings.Join(diff, "\n"))
	}
}

// flip GLOB: flips a byte in the middle of each file that fits.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("no file fits %s", args[0])
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		ts.Check(err)
		b[len(b)/2] ^= 0x55
		ts.Check(os.WriteFile(f, b, 0o600))
	}
}

// TestPostgreSQLStartsOnARestoredDirectory backs up the data directory of a real server.
func TestPostgreSQLStartsOnARestoredDirectory(t *testing.T) {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	account, err := user.Lookup("postgres")
	if len(bins) == 0 || err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root and Debian's postgresql; .ci/run installs it")
		}
		t.Skip("needs root and Debian's postgresql")
	}
	bin := bins[len(bins)-1]
	uid, _ := strconv.Atoi(account.Uid)
	gid, _ := strconv.Atoi(account.Gid)
	root, err := os.MkdirTemp("", "backupd-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	data, sockets := filepath.Join(root, "data"), filepath.Join(root, "run")
	for _, d := range []string{data, sockets} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	as := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "LC_ALL=C", "PGHOST="+sockets)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	serve := func(dir string, work func()) {
		t.Helper()
		as("pg_ctl", "-D", dir, "-w", "-l", filepath.Join(sockets, "log"), "-o", fmt.Sprintf("-k %s -c listen_addresses=''", sockets), "start")
		defer as("pg_ctl", "-D", dir, "-w", "-m", "fast", "stop")
		work()
	}
	as("initdb", "-D", data, "-A", "trust", "--no-sync")
	serve(data, func() {
		as("psql", "-d", "postgres", "-c", "create table visits as select g as id, md5(g::text) as who from generate_series(1, 50000) g; create index on visits (who); checkpoint")
	})
	target, state := filepath.Join(root, "backups"), filepath.Join(root, "state")
	var out, errs strings.Builder
	common := []string{"--target", target, "--stack", "shop", "--state-dir", state}
	if code := run(append([]string{"backup", "--volume", "db=" + data}, common...), &out, &errs); code != exitDone {
		t.Fatalf("backup exited with %d\n%s", code, errs.String())
	}
	restored := filepath.Join(root, "restored")
	if code := run(append([]string{"restore", "--volume", "db=" + restored}, common...), &out, &errs); code != exitDone {
		t.Fatalf("restore exited with %d\n%s", code, errs.String())
	}
	testtree.Compare(t, data, restored, testtree.Options{})
	serve(restored, func() {
		if got := as("psql", "-d", "postgres", "-Atc", "select count(*), md5(string_agg(who, '' order by id)) from visits"); !strings.HasPrefix(got, "50000|") {
			t.Errorf("the restored server says %q", got)
		}
		as("pg_amcheck", "-d", "postgres", "--install-missing")
	})
}
