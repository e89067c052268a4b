package docker

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
)

func TestMissingVolumesAreMadeAsComposeWouldMakeThem(t *testing.T) {
	l := newLab(t)
	there := l.volume("there", volume.CreateOptions{Labels: map[string]string{"mine": "yes"}})
	name := l.prefix + "_db"
	t.Cleanup(func() { _ = l.api.VolumeRemove(lasting(t), name, true) })
	specs := []VolumeSpec{
		{Key: "there", Name: there},
		{Key: "db", Name: name, Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}, Labels: map[string]string{"a": "b", labelProject: "forged"}},
	}
	made, err := l.EnsureVolumes(t.Context(), l.prefix, "backupd 1", specs)
	if err != nil || !reflect.DeepEqual(made, []string{name}) {
		t.Fatalf("made %v, %v", made, err)
	}
	v, err := l.api.VolumeInspect(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "b", labelProject: l.prefix, labelVolume: "db", labelVersion: "backupd 1"}
	if !reflect.DeepEqual(v.Labels, want) || v.Options["o"] != "size=1m" || v.Driver != "local" {
		t.Errorf("volume %+v, want the labels %v", v, want)
	}
	if v, err := l.api.VolumeInspect(t.Context(), there); err != nil || !reflect.DeepEqual(v.Labels, map[string]string{"mine": "yes"}) {
		t.Errorf("one that was there: %+v, %v", v, err)
	}
	if made, err := l.EnsureVolumes(t.Context(), l.prefix, "backupd 1", specs); err != nil || len(made) > 0 {
		t.Errorf("again: %v, %v", made, err)
	}
	_, err = l.EnsureVolumes(t.Context(), l.prefix, "1", []VolumeSpec{{Key: "x", Name: l.prefix + "_external", External: true}})
	if err == nil || !strings.Contains(err.Error(), "docker volume create") {
		t.Errorf("external: %v", err)
	}
}

// oneOff is a container of a service that needs nothing.
func (l *lab) oneOff(command ...string) (o RunOptions, stdout, stderr *lockedBuffer) {
	stdout, stderr = &lockedBuffer{}, &lockedBuffer{}
	return RunOptions{Project: l.prefix, Service: "backup", Dir: "/srv/shop", Image: probeImage, Command: command, NetworkMode: "none", Stdout: stdout, Stderr: stderr}, stdout, stderr
}

func TestAOneOffContainerIsAttachedAndItsExitCodePassedOn(t *testing.T) {
	l := newLab(t)
	o, stdout, stderr := l.oneOff("echo")
	o.Stdin = strings.NewReader("one\ntwo\n")
	code, err := l.Run(t.Context(), o)
	if err != nil || code != 7 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if stdout.String() != "ready\necho one\necho two\n" || stderr.String() != "complaint\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if left, err := l.containersLabelled(t.Context(), labelProject+"="+l.prefix); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestAOneOffContainerIsLikeTheService(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("of a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	db, net1, net2 := l.volume("db", volume.CreateOptions{}), l.network("one"), l.network("two")
	o, stdout, _ := l.oneOff("show", "a b")
	o.NetworkMode, o.Networks = "", []string{l.prefix + "_missing", net1, net2}
	o.Env, o.User, o.WorkingDir, o.ReadOnly, o.CapDrop = []string{"KEY=a=b"}, "1000:1000", "/tmp", true, []string{"ALL"}
	o.Mounts = []RunMount{
		{Type: "volume", Source: db, Target: "/volumes/db"},
		{Type: "bind", Source: dir, Target: "/here", ReadOnly: true},
		{Type: "bind", Source: filepath.Join(dir, "made"), Target: "/made", CreatePath: true},
		{Type: "tmpfs", Target: "/scratch", Size: 1 << 20},
	}
	o.Files = []RunFile{{Target: "/run/secrets/s", Source: secret}}
	if code, err := l.Run(t.Context(), o); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v", code, err)
	}
	for _, want := range []string{"uid 1000 gid 1000 in /tmp", "args a b", "env KEY=a=b", " /volumes/db rw", " /here ro", " /made rw", " /scratch rw", " /run/secrets/s ro"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, stdout)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "made")); err != nil {
		t.Errorf("a directory to bind: %v", err)
	}
}

func TestSecretsReachAnotherMachinesEngineAsContents(t *testing.T) {
	l := newLab(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("of a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	remote := *l.Engine
	remote.Local = false
	o, stdout, stderr := l.oneOff("cat", "/run/secrets/s", "/token", "/etc/backupd.yaml")
	o.User, o.ReadOnly = "1000:1000", true
	o.Files = []RunFile{
		{Target: "/run/secrets/s", Source: secret, Mode: 0o444},
		{Target: "/token", Content: []byte("of a variable"), Mode: 0o400, UID: 1000},
		{Target: "/etc/backupd.yaml", Content: []byte("a: b"), Mode: 0o444},
	}
	if code, err := remote.Run(t.Context(), o); err != nil || code != 0 || stdout.String() != "of a file\nof a variable\na: b\n" {
		t.Errorf("exit code %d, %v: %q %q", code, err, stdout, stderr)
	}
}

func TestAnInterruptedOneOffContainerEndsInItsOwnWay(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o, stdout, _ := l.oneOff("echo")
	in, end := io.Pipe()
	defer end.Close()
	o.Stdin = in
	o.Stdout = writerFunc(func(p []byte) (int, error) { cancel(); return stdout.Write(p) })
	code, err := l.Run(ctx, o)
	if err != nil || code != 3 || !strings.HasSuffix(stdout.String(), "terminated\n") {
		t.Errorf("exit code %d, %v: %q", code, err, stdout)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestATerminalIsHandedOn(t *testing.T) {
	l := newLab(t)
	o, stdout, _ := l.oneOff("echo")
	o.TTY = true
	resize := make(chan Window)
	o.Resize = resize
	in, keys := io.Pipe()
	o.Stdin = in
	sent := false
	o.Stdout = writerFunc(func(p []byte) (int, error) {
		if !sent && strings.Contains(string(p), "ready") {
			sent = true
			go func() {
				resize <- Window{80, 25}
				_, _ = io.WriteString(keys, "word\r\x04") // Enter, and the end of a terminal's input
			}()
		}
		return stdout.Write(p)
	})
	code, err := l.Run(t.Context(), o)
	keys.Close()
	if err != nil || code != 7 || !strings.Contains(stdout.String(), "echo word") || !strings.Contains(stdout.String(), "complaint") {
		t.Errorf("exit code %d, %v: %q", code, err, stdout)
	}
}

func TestWhatCannotRunLeavesNothingAndSaysWhy(t *testing.T) {
	l := newLab(t)
	for name, change := range map[string]func(*RunOptions){
		"entrypoint": func(o *RunOptions) { o.Entrypoint = []string{"/nothing"} },
		"image":      func(o *RunOptions) { o.Image = l.prefix + "/nothing" },
		"bind":       func(o *RunOptions) { o.Mounts = []RunMount{{Type: "bind", Source: "/nothing/at/all", Target: "/x"}} },
		"mount":      func(o *RunOptions) { o.Mounts = []RunMount{{Type: "npipe", Source: "x", Target: "/x"}} },
	} {
		o, _, _ := l.oneOff("show")
		change(&o)
		if code, err := l.Run(t.Context(), o); err == nil {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
	if left, err := l.containersLabelled(t.Context(), labelProject+"="+l.prefix); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	var told []string
	if err := l.EnsureImage(t.Context(), probeImage, func(s string) { told = append(told, s) }); err != nil || len(told) > 0 {
		t.Errorf("an image that is here: %v, %q", err, told)
	}
	err := l.EnsureImage(t.Context(), "localhost:1/nothing", func(s string) { told = append(told, s) })
	if err == nil || !strings.Contains(err.Error(), "docker pull") || len(told) != 1 {
		t.Errorf("an image that is nowhere: %v, %q", err, told)
	}
	if _, err := connect(t.Context(), "unix:///nothing", client.WithHost("unix:///nothing")); errors.Is(err, ErrNoEngine) || err == nil {
		t.Errorf("an engine that is named and not there: %v", err)
	}
}
