package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/testservers"
	"github.com/disko/backupd/internal/testtree"
)

// TestSoak lets processes of the real binary work on one repository on a real
// server: two machines that back up one stack, forgetting, pruning, and an agent
// that serves another stack all the while. Requests fail at random, processes are
// killed at random, and the server's time goes on by leaps, so that prunes delete
// what is garbage. At the end each snapshot that was reported restores as it was,
// verify finds nothing wrong, no garbage is left, and the agent has leaked nothing.
//
// SOAK is how long it takes, SOAK_SEED what its choices come from.
func TestSoak(t *testing.T) {
	limit := 12 * time.Second
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if limit, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SOAK=%s SOAK_SEED=%d", limit, seed)
	s := newSoak(t, seed)
	agent, addr := s.agent()
	begin := s.leaks(agent, addr)
	for end := time.Now().Add(limit); time.Now().Before(end) && !t.Failed(); {
		s.step()
	}
	s.calm.Store(true)
	s.end()
	if after := s.leaks(agent, addr); after.files > begin.files+8 || after.goroutines > begin.goroutines+16 {
		t.Errorf("the agent began with %+v and ends with %+v", begin, after)
	}
	if n := s.serving.count(runs.Done) + s.serving.count(runs.Warnings); n == 0 {
		t.Error("the agent got no backup done")
	}
	if code, took := agent.stop(); code != exitDone || took > stopTime {
		t.Errorf("the agent ended with %d after %s", code, took)
	}
	t.Logf("%d requests, %d of them with a fault; %v; %d snapshots were reported and are wanted", s.proxy.Requests(), s.faults.Load(), s.did, len(s.wanted))
}

type soak struct {
	t       *testing.T
	server  *testservers.S3
	proxy   *testservers.FaultProxy
	bucket  string
	calm    atomic.Bool // no faults any more
	faults  atomic.Int64
	mu      sync.Mutex
	rng     *rand.Rand
	here    *house            // whose volume changes
	there   *house            // another machine with a volume of its own, that backs up the same stack
	serving *house            // the agent's
	wanted  map[string]string // digests of snapshots that were reported and not forgotten
	did     map[string]int
}

func newSoak(t *testing.T, seed uint64) *soak {
	t.Helper()
	s := &soak{t: t, server: testservers.NewVersitygw(t), rng: rand.New(rand.NewPCG(seed, 0)), wanted: map[string]string{}, did: map[string]int{}}
	s.bucket = s.server.Bucket(t)
	s.proxy = s.server.FaultProxy(t, s.fault)
	for n, h := range []**house{&s.here, &s.there, &s.serving} {
		*h = newHouse(t)
		(*h).target = "s3://" + s.bucket + "/backups"
		(*h).env = []string{
			"AWS_ACCESS_KEY_ID=" + s.server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.server.SecretKey, "AWS_REGION=" + s.server.Region,
			"AWS_ENDPOINT_URL=" + s.proxy.URL, "BACKUPD_ORIGIN=" + strconv.Itoa(n),
		}
		if _, err := testtree.SourceTree((*h).volume, 150, uint64(n)); err != nil {
			t.Fatal(err)
		}
		if err := testtree.Pages(filepath.Join((*h).volume, "db"), 2<<20, uint64(n)); err != nil {
			t.Fatal(err)
		}
	}
	s.serving.env = append(s.serving.env, "BACKUPD_STACK=other")
	return s
}

// n is a random number below most.
func (s *soak) n(most int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(most)
}

// fault is what becomes of a request: of every thirtieth, something bad.
func (s *soak) fault(*http.Request, int) testservers.Fault {
	if s.calm.Load() || s.n(30) > 0 {
		return testservers.FaultNone
	}
	s.faults.Add(1)
	list := []testservers.Fault{
		testservers.FaultReset(), testservers.FaultInternal(), testservers.FaultSlowDown("0"), testservers.FaultLost(), testservers.FaultErrorBody("InternalError"),
		testservers.FaultResetRequest(1000), testservers.FaultResetAnswer(100), testservers.FaultCut(50), testservers.FaultStaleList(),
		testservers.FaultLatency(300*time.Millisecond, testservers.FaultNone), testservers.FaultLatency(100*time.Millisecond, testservers.FaultLost()),
	}
	return list[s.n(len(list))]
}

func (s *soak) step() {
	kinds := []struct {
		name   string
		weight int
		do     func()
	}{
		{"backup", 10, func() { s.backup(s.here, true) }},
		{"two backups", 3, func() { s.together(func() { s.backup(s.here, true) }, func() { s.backup(s.there, false) }) }},
		{"forget", 3, s.forget},
		{"prune", 2, s.prune},
		{"prune and backup", 2, func() { s.together(s.prune, func() { s.backup(s.here, true) }) }},
		{"prune in the future and backup", 1, func() { s.together(func() { s.age(); s.prune() }, func() { s.backup(s.there, false) }) }},
		{"two prunes in the future", 1, func() { s.age(); s.together(s.prune, s.prune) }},
		{"the state is lost", 1, func() { s.must(os.RemoveAll(s.here.state)) }},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	x := s.n(total)
	for _, k := range kinds {
		if x -= k.weight; x < 0 {
			s.did[k.name]++
			k.do()
			return
		}
	}
}

func (s *soak) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) together(work ...func()) {
	var wg sync.WaitGroup
	for _, f := range work {
		wg.Go(f)
	}
	wg.Wait()
}

// run runs a process that may be killed on its way, and returns its output; ok
// where it ended well.
func (s *soak) run(h *house, args ...string) (out []byte, ok bool) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := h.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		s.t.Error(err)
		return nil, false
	}
	death := time.Duration(0)
	if !s.calm.Load() && s.n(3) == 0 {
		death = time.Duration(s.n(1200)) * time.Millisecond
		timer := time.AfterFunc(death, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	_ = cmd.Wait()
	code := cmd.ProcessState.ExitCode()
	if ctx.Err() != nil {
		s.t.Errorf("backupd %s did not end in two minutes:\n%s", args[0], stderr.String())
	}
	if code == exitDamage || code == exitUsage || code == exitNotFound {
		s.t.Errorf("backupd %s ended with %d:\n%s", strings.Join(args, " "), code, stderr.String())
	}
	s.mu.Lock()
	switch {
	case code < 0:
		s.did[args[0]+" killed"]++
	case code != exitDone:
		s.did[args[0]+" failed"]++
	}
	s.mu.Unlock()
	return stdout.Bytes(), code == exitDone
}

// backup changes a volume, or not, and backs it up. What is reported must restore.
func (s *soak) backup(h *house, change bool) {
	if change {
		s.change(h)
	}
	want := digest(s.t, h.volume)
	out, _ := s.run(h, "backup", "--json", "--quiet")
	var summary struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(out, &summary) == nil && summary.ID != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.wanted[summary.ID] = want
	}
}

func (s *soak) change(h *house) {
	s.must(testtree.ChurnPages(filepath.Join(h.volume, "db"), 0.02, uint64(s.n(1<<30))))
	_, _, err := testtree.Churn(h.volume, 0.03, uint64(s.n(1<<30)))
	s.must(err)
	name := filepath.Join(h.volume, fmt.Sprint("new", s.n(20)))
	if s.n(2) == 0 {
		s.must(os.RemoveAll(name))
	} else {
		s.must(os.WriteFile(name, []byte(strings.Repeat(name, s.n(20000))), 0o600))
	}
}

// forget forgets some of the snapshots; from then on none of those is wanted, for
// a forget that is killed may have done its work.
func (s *soak) forget() {
	s.mu.Lock()
	var ids []string
	for id := range s.wanted {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	s.mu.Unlock()
	if len(ids) < 4 {
		return
	}
	args := []string{"forget"}
	for range 1 + s.n(len(ids)/3) {
		id := ids[s.n(len(ids))]
		if !slices.Contains(args, id) {
			args = append(args, id)
		}
		s.mu.Lock()
		delete(s.wanted, id)
		s.mu.Unlock()
	}
	s.run(s.here, args...)
}

func (s *soak) prune() { s.run(s.there, "prune", "--wait", "24h") }

// age makes all that lies on the server older by 30 hours, as if they had passed.
func (s *soak) age() {
	err := filepath.WalkDir(s.server.BucketDir(s.t, s.bucket), func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // somebody deleted it
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			at := info.ModTime().Add(-30 * time.Hour)
			err = os.Chtimes(path, at, at)
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	s.must(err)
}

// agent serves a stack of its own.
func (s *soak) agent() (srv *server, addr string) {
	addr, err := testservers.FreeAddress()
	s.must(err)
	srv = s.serving.serve("--schedule", "* * * * * *", "--listen", addr, "--keep", "3 last")
	srv.until("the agent has done a backup", func() bool { return s.serving.count(runs.Done) > 0 })
	return srv, addr
}

type leaks struct{ files, goroutines int }

// leaks counts what an agent has open between two runs: the least of several looks.
func (s *soak) leaks(srv *server, addr string) leaks {
	least := leaks{1 << 30, 1 << 30}
	for range 20 {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", srv.cmd.Process.Pid))
		s.must(err)
		_, text := get(s.t, "http://"+addr+"/metrics")
		for line := range strings.Lines(text) {
			if n, ok := strings.CutPrefix(line, "go_goroutines "); ok {
				value, err := strconv.Atoi(strings.TrimSpace(n))
				s.must(err)
				least.goroutines = min(least.goroutines, value)
			}
		}
		least.files = min(least.files, len(fds))
		time.Sleep(50 * time.Millisecond)
	}
	return least
}

// end proves what was promised, without faults.
func (s *soak) end() {
	t := s.t
	s.backup(s.here, true)
	var list []struct {
		ID string `json:"id"`
	}
	s.must(json.Unmarshal([]byte(s.here.must("snapshots", "--json")), &list))
	for id := range s.wanted {
		if !slices.ContainsFunc(list, func(l struct {
			ID string `json:"id"`
		},
		) bool {
			return l.ID == id
		}) {
			t.Errorf("snapshot %s was reported, and is not listed", id)
		}
	}
	s.here.must("verify", "--deep")
	n := 0
	for id, want := range s.wanted {
		if n++; n > 25 {
			break // any: a map has no order
		}
		dir := filepath.Join(s.here.dir, "restored")
		s.here.must("restore", id, "--volume", "data="+dir)
		if got := digest(t, dir); got != want {
			t.Errorf("snapshot %s came back otherwise", id)
		}
		s.must(os.RemoveAll(dir))
	}
	s.noGarbage()
}

// noGarbage prunes until nothing waits, and looks that all that lies there is needed.
func (s *soak) noGarbage() {
	t := s.t
	for range 2 {
		s.age()
		s.there.must("prune", "--wait", "24h")
	}
	s.age()
	var last snapshot.Pruned
	s.must(json.Unmarshal([]byte(s.there.must("prune", "--wait", "24h", "--json")), &last))
	for _, p := range last.Stacks {
		if p.Stack == "shop" && p.Condemned.Objects > 0 {
			t.Errorf("garbage was left: %+v", p)
		}
	}
	root := filepath.Join(s.server.BucketDir(t, s.bucket), "backups")
	needed := s.needed(root)
	stack := filepath.Join(root, "stacks", "shop")
	s.must(filepath.WalkDir(stack, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(stack, path)
		if !needed[name] {
			t.Errorf("garbage: %s", name)
		}
		return err
	}))
}

// needed are the objects of the stack that its snapshots need, themselves included.
func (s *soak) needed(root string) map[string]bool {
	dir, err := directory.Open(root)
	s.must(err)
	repo, err := snapshot.Open(s.t.Context(), dir, snapshot.Options{})
	s.must(err)
	defer repo.Close()
	list, err := repo.List(s.t.Context(), "shop")
	s.must(err)
	out := map[string]bool{}
	for _, l := range list {
		s.must(l.Err)
		out[fmt.Sprintf("snapshots/%08d-%s", l.Sequence, l.ID)] = true
		for _, v := range l.Manifest.Volumes {
			for kind, ranges := range map[string][]snapshot.PackRange{"packs": v.Packs, "index": v.Index} {
				for _, r := range ranges {
					for i := range r.Sizes {
						out["volumes/"+v.Name+"/"+kind+"/"+pack.Name{Run: r.Run, N: r.First + uint32(i)}.String()] = true
					}
				}
			}
		}
	}
	return out
}

// digest is that of a tree: names, modes, times and contents.
func digest(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%q %s %d\n", name, info.Mode(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, "%d %x\n", len(data), sha256.Sum256(data))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}
