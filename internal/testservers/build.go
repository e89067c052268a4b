package testservers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binaries is where test/servers puts them.
const binaries = ".cache/servers"

// Binary returns the path of a server that test/servers knows. The script
// builds it where it is absent or its go.mod has changed, and lets one of
// several test processes do so.
func Binary(t testing.TB, name string) string {
	t.Helper()
	root, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(root, "test/servers"), name).CombinedOutput(); err != nil {
		t.Fatalf("test/servers %s: %v\n%s", name, err, out)
	}
	return filepath.Join(root, binaries, name)
}

// repositoryRoot finds the checkout: go test runs in a package's directory.
func repositoryRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module github.com/disko/backupd\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is in no checkout of backupd", wd)
		}
	}
}
