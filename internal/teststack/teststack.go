// Package teststack runs Compose stacks for tests: with a real engine, the
// current Docker Compose (test/compose) and images made from Debian packages
// (test/images). It speaks to Docker through its command line, as users do, and
// is no part of the product.
//
// Whatever it makes has a name that no other test has, and is removed when the
// test ends; it waits by asking, and never for a time.
package teststack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Engine requires a Docker engine. Without one a test is skipped, and fails
// where CI is set: there the engine is part of the machine.
func Engine(t testing.TB) {
	t.Helper()
	if err := engine(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("no Docker engine answers: %v", err)
		}
		t.Skipf("no Docker engine answers: %v", err)
	}
}

var engine = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker version: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
})

// Docker runs a docker command that must succeed and returns what it printed,
// without the space around it.
func Docker(t testing.TB, args ...string) string {
	t.Helper()
	out, err := Try(t, "", args...)
	if err != nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

// Try runs a docker command in a directory; its error holds what it printed to
// stderr. It is stopped when the test has ended.
func Try(t testing.TB, dir string, args ...string) (stdout string, err error) {
	stdout, _, err = try(t.Context(), dir, nil, args)
	return stdout, err
}

func try(ctx context.Context, dir string, env, args []string) (stdout, stderr string, err error) {
	root, err := Root()
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append([]string{"DOCKER_CONFIG=" + filepath.Join(root, dockerConfig)}, env...)...)
	// A plugin runs in a process of its own, which an interrupt reaches through docker.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), said.String(), fmt.Errorf("%w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return out.String(), said.String(), nil
}

// dockerConfig is where test/compose puts the plugin.
const dockerConfig = ".cache/docker-config"

// Rootless says whether the engine is a plain user's: nobody makes devices there.
func Rootless(t testing.TB) bool {
	t.Helper()
	return strings.Contains(Docker(t, "info", "-f", "{{.SecurityOptions}}"), "name=rootless")
}

// Pauses says whether the engine can pause: one without control groups cannot.
func Pauses(t testing.TB) bool {
	t.Helper()
	return Docker(t, "info", "-f", "{{.CgroupDriver}}") != "none"
}

// Images makes images of test/image that are not there, and returns the name of
// each: Images(t, "postgres") is backupd-test/postgres.
func Images(t testing.TB, names ...string) []string {
	t.Helper()
	Engine(t)
	script(t, "test/images", names...)
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = "backupd-test/" + name
	}
	return out
}

// script runs one of the scripts below test/, which make what is not there and
// let one of several processes do so.
func script(t testing.TB, name string, args ...string) {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(root, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// Root is the checkout: go test runs in a package's directory.
func Root() (string, error) {
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

// askEvery: conditions are asked this often.
const askEvery = 100 * time.Millisecond

// Eventually asks until ok is true, and fails the test after the limit with
// what ok said last.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() (done bool, state string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		done, state := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v; it is: %s", what, limit, state)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, t.Context().Err())
		case <-time.After(askEvery):
		}
	}
}
