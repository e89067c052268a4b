//go:build linux

package snapshot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/testtree"
)

const envWithoutFSETID = "BACKUPD_TEST_WITHOUT_FSETID"

// Without CAP_FSETID the kernel drops the set-gid bit of a file whose group is not
// the caller's, and says nothing.
func TestASetGIDBitThatIsLostIsWarnedOf(t *testing.T) {
	if root := os.Getenv(envWithoutFSETID); root != "" {
		restoreWithoutFSETID(t, root)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files to others")
	}
	w := newWorld(t)
	for name, gid := range map[string]int{"own": 0, "other": 998} {
		path := filepath.Join(w.volume, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 0, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
	}
	w.backup()
	child := exec.Command("setpriv", "--bounding-set=-fsetid", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), envWithoutFSETID+"="+w.root)
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "restored without FSETID") {
		t.Fatalf("%v\n%s", err, out)
	}
	testtree.Compare(t, w.volume, filepath.Join(w.root, "restored"), testtree.Options{Ignore: func(p string) bool { return p == "other" }})
}

func restoreWithoutFSETID(t *testing.T, root string) {
	s, err := restoreHere(t, root, "latest", "restored")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Warnings) != 1 || s.Warnings[0].Path != "other" || !strings.Contains(s.Warnings[0].What, "CAP_FSETID") {
		t.Errorf("warnings: %q", s.Warnings)
	}
	t.Log("restored without FSETID")
}
