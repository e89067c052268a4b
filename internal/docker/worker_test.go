package docker

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
)

// agent starts a container that workers are run beside of.
func (l *lab) agent(change func(*container.Config, *container.HostConfig)) *Self {
	id := l.create("agent", []string{"sleep"}, change)
	l.start(id)
	return l.inspected(id)
}

func TestAWorkerSpeaksOverItsStdinAndStdout(t *testing.T) {
	l := newLab(t)
	self := l.agent(nil)
	var stderr lockedBuffer
	w, err := l.RunWorker(t.Context(), WorkerOptions{Self: self, Command: []string{"/probe", "echo"}, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	lines := bufio.NewScanner(w)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("read %q, %v; want %q", lines.Text(), lines.Err(), want)
		}
	}
	next("ready")
	for _, line := range []string{"one", strings.Repeat("x", 40000)} {
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			t.Fatal(err)
		}
		next("echo " + line)
	}
	if err := w.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after its end: %q, %v", lines.Text(), lines.Err())
	}
	if code, err := w.Wait(t.Context()); code != 7 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if got := stderr.String(); got != "complaint\n" {
		t.Errorf("stderr %q", got)
	}
	l.isGone(w.ID)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (l *lab) isGone(id string) {
	l.t.Helper()
	if _, err := l.api.ContainerInspect(l.t.Context(), id); !cerrdefs.IsNotFound(err) {
		l.t.Errorf("container %.12s is still there: %v", id, err)
	}
}

func TestAWorkerHasTheAgentsMountsAndRightsAndItsOwnVolumes(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	state, db := l.volume("state", volume.CreateOptions{}), l.volume("db", volume.CreateOptions{})
	nfs := l.volume("opts", volume.CreateOptions{DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}})
	no := false
	self := l.agent(all(binds(state+":/state", db+":/volumes/db:ro"), func(c *container.Config, h *container.HostConfig) {
		c.User = "1000:1000"
		h.ReadonlyRootfs, h.CapDrop, h.CapAdd, h.SecurityOpt, h.Init = true, []string{"ALL"}, []string{"DAC_READ_SEARCH"}, []string{"no-new-privileges"}, &no
	}))
	w, err := l.RunWorker(t.Context(), WorkerOptions{
		Self: self, Command: []string{"/probe", "show", "a b"}, Memory: 64 << 20, CPUs: 0.5,
		Mounts: []WorkerMount{{Volume: db, At: "/volumes/db"}, {Volume: nfs, At: "/volumes/opts", ReadOnly: true}, {Path: dir, At: "/volumes/site/", ReadOnly: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := l.api.ContainerInspect(t.Context(), w.ID)
	if err != nil && !cerrdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	memory, cpus := int64(64<<20), int64(5e8)
	if l.NoCgroups {
		memory, cpus = 0, 0
	}
	if h := c.HostConfig; err == nil && (h.Memory != memory || h.NanoCPUs != cpus || !h.ReadonlyRootfs || !slices.Contains(h.SecurityOpt, "no-new-privileges") ||
		!slices.Equal([]string(h.CapDrop), []string{"ALL"}) || len(h.CapAdd) != 1 || c.Config.Labels[labelWorker] != self.ID) {
		t.Errorf("host configuration %+v", h)
	}
	out, err := io.ReadAll(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"uid 1000 gid 1000", "args a b", " /state rw", " /volumes/db rw", " /volumes/opts ro", " /volumes/site ro"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	if code, err := w.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
}

func TestAWorkerOfAnAgentOnTheHostsNetworkRuns(t *testing.T) {
	l := newLab(t)
	for _, mode := range []string{"host", "none", l.network("own")} {
		w, err := l.RunWorker(t.Context(), WorkerOptions{Self: (&lab{l.Engine, t, l.prefix + "-" + mode}).agent(onNetwork(mode)), Command: []string{"/probe", "show"}})
		if err != nil {
			t.Fatal(mode, err)
		}
		if _, err := io.ReadAll(w); err != nil {
			t.Error(mode, err)
		}
		if code, err := w.Wait(t.Context()); code != 0 || err != nil {
			t.Errorf("%s: exit code %d, %v", mode, code, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestACancelledWorkerIsToldToEnd(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := l.RunWorker(ctx, WorkerOptions{Self: l.agent(nil), Command: []string{"/probe", "echo"}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	lines := bufio.NewScanner(w)
	lines.Scan()
	cancel()
	if !lines.Scan() || lines.Text() != "terminated" {
		t.Errorf("it said %q, %v", lines.Text(), lines.Err())
	}
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("and then %q, %v", lines.Text(), lines.Err())
	}
	if code, err := w.Wait(t.Context()); code != 3 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
}

func TestAWorkerThatHangsIsGoneAfterClose(t *testing.T) {
	l := newLab(t)
	w, err := l.RunWorker(t.Context(), WorkerOptions{Self: l.agent(nil), Command: []string{"/probe", "stubborn"}})
	if err != nil {
		t.Fatal(err)
	}
	bufio.NewScanner(w).Scan()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	l.isGone(w.ID)
	if _, err := w.Read(make([]byte, 1)); err == nil {
		t.Error("a closed worker can be read")
	}
}

func TestAWorkerThatCannotStartLeavesNothing(t *testing.T) {
	l := newLab(t)
	self := l.agent(nil)
	_, err := l.RunWorker(t.Context(), WorkerOptions{Self: self, Command: []string{"/nothing"}})
	if err == nil {
		t.Fatal("it started")
	}
	if left, err := l.containersLabelled(t.Context(), labelWorker+"="+self.ID); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if _, err := l.RunWorker(t.Context(), WorkerOptions{Self: self, Command: []string{"/probe"}, Mounts: []WorkerMount{{At: "/volumes/x"}}}); err == nil {
		t.Error("a mount of nothing was taken")
	}
}

func TestLeftOverWorkersAreRemovedAndOthersAreNot(t *testing.T) {
	l := newLab(t)
	self := l.agent(nil)
	run := func() *Worker {
		w, err := l.RunWorker(t.Context(), WorkerOptions{Self: self, Command: []string{"/probe", "stubborn"}})
		if err != nil {
			t.Fatal(err)
		}
		bufio.NewScanner(w).Scan()
		t.Cleanup(func() { w.Close() })
		return w
	}
	old := run()
	if _, err := l.CleanWorkers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.api.ContainerInspect(t.Context(), old.ID); err != nil {
		t.Errorf("the worker of a running agent: %v", err)
	}
	zero := 0
	if err := l.api.ContainerRestart(t.Context(), self.ID, container.StopOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	fresh := run()
	if n, err := l.CleanWorkers(t.Context()); err != nil || n < 1 {
		t.Errorf("removed %d, %v", n, err)
	}
	l.isGone(old.ID)
	if _, err := l.api.ContainerInspect(t.Context(), fresh.ID); err != nil {
		t.Errorf("the new agent's worker: %v", err)
	}
	if err := l.api.ContainerKill(t.Context(), self.ID, "KILL"); err != nil {
		t.Fatal(err)
	}
	l.wait(self.ID)
	if _, err := l.CleanWorkers(t.Context()); err != nil {
		t.Error(err)
	}
	l.isGone(fresh.ID)
	if code, err := fresh.Wait(t.Context()); err != nil && !errors.Is(err, context.Canceled) || err == nil && code == 0 {
		t.Errorf("a killed worker ended with %d, %v", code, err)
	}
}
