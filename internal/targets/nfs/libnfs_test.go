package nfs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/testservers"
)

// libnfs is a client by other people: what it sees is what is there.
func TestAnotherClientSeesWhatWasWritten(t *testing.T) {
	for _, program := range []string{"nfs-ls", "nfs-cp"} {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; apt-get install libnfs-utils", program)
		}
		t.Skipf("%s is missing; apt-get install libnfs-utils", program)
	}
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	target := open(t, at(s, ""))
	data := random(5<<20 + 7)
	if err := target.Put(context.Background(), "stacks/shop/pack-0", data); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	if out := run("nfs-ls", s.LibnfsURL("/stacks/shop")); !strings.Contains(out, "5242887") || !strings.Contains(out, "pack-0") {
		t.Errorf("nfs-ls says %s", out)
	}
	if out := run("nfs-ls", s.LibnfsURL("/tmp")); strings.TrimSpace(out) != "" {
		t.Errorf("in tmp nfs-ls sees %s", out)
	}
	copied := filepath.Join(t.TempDir(), "copied")
	run("nfs-cp", s.LibnfsURL("/stacks/shop/pack-0"), copied)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, data) {
		t.Errorf("nfs-cp got %d bytes that are not the %d written, %v", len(got), len(data), err)
	}
	// And the other way round.
	run("nfs-cp", copied, s.LibnfsURL("/stacks/shop/pack-1"))
	wantObject(t, target, "stacks/shop/pack-1", data)
}
