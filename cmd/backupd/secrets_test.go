package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestEncryption runs the scripts, which are named after what they show.
func TestEncryption(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/encryption",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BACKUPD_STATE_DIR", filepath.Join(e.WorkDir, "state"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "same": same, "flip": flip, "identity": identity, "contains": contains,
		},
		RequireExplicitExec: true,
	})
}

// identity NAME...: makes files with an age identity, and its recipient in NAME.pub.
func identity(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		id, err := age.GenerateX25519Identity()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(id.String()+"\n"), 0o600))
		ts.Check(os.WriteFile(ts.MkAbs(name+".pub"), []byte(id.Recipient().String()+"\n"), 0o644))
	}
}

// contains DIR TEXT: a name or a file below DIR has the text.
func contains(ts *testscript.TestScript, neg bool, args []string) {
	root, found := ts.MkAbs(args[0]), ""
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.Contains(strings.TrimPrefix(path, root), args[1]) {
			found = path
		}
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if bytes.Contains(data, []byte(args[1])) {
				found = path
			}
		}
		return nil
	}))
	if neg != (found == "") {
		ts.Fatalf("%q in %s: %q", args[1], args[0], found)
	}
}

// A secret that a user may not read ends the backup before anything is written.
func TestAnUnreadableSecretFileIsNoReasonToBackUpInPlain(t *testing.T) {
	dir := t.TempDir()
	vol, target, secret := filepath.Join(dir, "vol"), filepath.Join(dir, "target"), filepath.Join(dir, "secret")
	program := filepath.Join(dir, "backupd")
	for _, err := range []error{
		os.Mkdir(vol, 0o755), os.Mkdir(target, 0o755), os.Chmod(target, 0o777), os.WriteFile(vol+"/a", []byte("a"), 0o644),
		os.WriteFile(secret, []byte("a passphrase"), 0o600), os.Chmod(secret, 0), copyProgram(program),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "backup", "--target", target, "--stack", "shop", "--volume", "data="+vol)
	cmd.Env = append(os.Environ(), "BACKUPD_PASSPHRASE_FILE="+secret, "BACKUPD_STATE_DIR="+filepath.Join(target, "..", "state"))
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitUsage || !bytes.Contains(out, []byte("permission denied")) {
		t.Errorf("%v: %s", err, out)
	}
	if entries, err := os.ReadDir(target); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func copyProgram(to string) error {
	in, err := os.Open(os.Args[0])
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
