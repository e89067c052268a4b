package teststack

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// BackupdImage builds the image of the tree under test and returns its name,
// once in a process: the host's Go makes the binary and the Dockerfile the rest.
// The name holds a hash of both, so that worktrees and runs do not meet, and the
// same tree finds its image built. It stays: what is the same is not built again.
func BackupdImage(t testing.TB) string {
	t.Helper()
	Engine(t)
	name, err := backupdImage()
	if err != nil {
		t.Fatalf("build the image under test: %v", err)
	}
	return name
}

var backupdImage = sync.OnceValues(func() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "backupd-image-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	build := exec.Command(filepath.Join(root, "tools/binary"), filepath.Join(dir, "backupd"))
	build.Dir, build.Env = root, append(os.Environ(), "VERSION=test")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tools/binary: %w: %s", err, strings.TrimSpace(string(out)))
	}
	hash := sha256.New()
	for _, file := range []string{filepath.Join(dir, "backupd"), filepath.Join(root, "Dockerfile"), filepath.Join(root, "tools/image"), filepath.Join(root, "tools/rootfs")} {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(hash, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	name := "backupd:tree-" + hex.EncodeToString(hash.Sum(nil))[:16]
	if exec.Command("docker", "image", "inspect", name).Run() == nil {
		return name, nil
	}
	cmd := exec.Command(filepath.Join(root, "tools/image"))
	cmd.Env = append(os.Environ(), "IMAGE="+name, "PLATFORMS=native", "HOSTGO=1", "VERSION=test")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tools/image: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return name, nil
})

// Build makes the program of a tree as a host has it.
func Build(root, out string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version=test", "-o", out, "./cmd/backupd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, strings.TrimSpace(string(text)))
	}
	return nil
}
