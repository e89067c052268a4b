package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/testservers"
	"github.com/disko/backupd/internal/testtree"
)

// patience is how long a condition is waited for, on a machine with much to do.
const patience = time.Minute

// house is a machine with a volume, a state directory and a target.
type house struct {
	t                     *testing.T
	dir                   string
	volume, state, target string
	env                   []string
}

func newHouse(t *testing.T) *house {
	t.Helper()
	dir := t.TempDir()
	h := &house{t: t, dir: dir, volume: filepath.Join(dir, "volume"), state: filepath.Join(dir, "state"), target: filepath.Join(dir, "target")}
	h.mkdir(h.volume)
	return h
}

func (h *house) mkdir(dir string) {
	h.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) write(path, text string) {
	h.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// command is a process of the binary, with the house's settings.
func (h *house) command(args ...string) *exec.Cmd {
	cmd := exec.Command("backupd", args...)
	cmd.Env = append(os.Environ(), "BACKUPD_STATE_DIR="+h.state, "BACKUPD_TARGET="+h.target, "BACKUPD_STACK=shop", "BACKUPD_VOLUME=data="+h.volume)
	cmd.Env = append(cmd.Env, h.env...)
	return cmd
}

// call runs a command to its end.
func (h *house) call(args ...string) (code int, stdout, stderr string) {
	h.t.Helper()
	cmd := h.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// must runs a command that is to succeed.
func (h *house) must(args ...string) string {
	h.t.Helper()
	code, out, errs := h.call(args...)
	if code != exitDone {
		h.t.Fatalf("backupd %s exited with %d\n%s", strings.Join(args, " "), code, errs)
	}
	return out
}

func (h *house) runs() []runs.Run {
	h.t.Helper()
	var list []runs.Run
	if err := json.Unmarshal([]byte(h.must("runs", "--json", "--last", "0")), &list); err != nil {
		h.t.Fatal(err)
	}
	return list
}

// count is how many backups ended so.
func (h *house) count(o runs.Outcome) (n int) {
	h.t.Helper()
	for _, r := range h.runs() {
		if r.Kind == runs.Backup && r.Outcome == o {
			n++
		}
	}
	return n
}

// healthy asks as Docker does.
func (h *house) healthy() bool {
	code, _, _ := h.call("health")
	return code == exitDone
}

// server is a `backupd serve` that runs.
type server struct {
	h     *house
	cmd   *exec.Cmd
	ended chan struct{}
	mu    sync.Mutex
	log   bytes.Buffer
}

func (s *server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *server) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func (h *house) serve(args ...string) *server {
	h.t.Helper()
	s := &server{h: h, cmd: h.command(append([]string{"serve"}, args...)...), ended: make(chan struct{})}
	s.cmd.Stderr = s
	if err := s.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait()
	}()
	h.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		if h.t.Failed() {
			lines := strings.SplitAfter(s.text(), "\n")
			h.t.Logf("serve said:\n%s", strings.Join(lines[max(0, len(lines)-40):], ""))
		}
	})
	return s
}

// until waits for something, as long as the server runs.
func (s *server) until(what string, is func() bool) {
	s.h.t.Helper()
	for deadline := time.Now().Add(patience); !is(); {
		select {
		case <-s.ended:
			s.h.t.Fatalf("serve ended before %s", what)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.h.t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

// stop ends the server in order, and returns its code and how long it took.
func (s *server) stop() (code int, took time.Duration) {
	s.h.t.Helper()
	begin := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.h.t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.h.t.Fatal("serve did not end by SIGTERM")
	}
	return s.cmd.ProcessState.ExitCode(), time.Since(begin)
}

// stopTime is less than the ten seconds after which Docker kills, on a busy machine too.
const stopTime = 5 * time.Second

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url) //nolint:noctx // the test's own server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServeSeedsThenKeepsTheScheduleUntilItIsStopped(t *testing.T) {
	h := newHouse(t)
	source := filepath.Join(h.dir, "source")
	h.mkdir(source)
	h.write(filepath.Join(source, "file"), "content")
	h.must("backup", "--volume", "data="+source, "--state-dir", filepath.Join(h.dir, "elsewhere"), "--tag", "seed")
	addr, err := testservers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	s := h.serve("--schedule", "* * * * * *", "--listen", addr)
	s.until("it is healthy", h.healthy)
	testtree.Compare(t, source, h.volume, testtree.Options{})

	code, _, errs := h.call("serve")
	if code != exitFailed || !strings.Contains(errs, "another agent serves here already") {
		t.Errorf("a second agent exited with %d: %s", code, errs)
	}
	s.until("two backups are done", func() bool { return h.count(runs.Done) >= 2 })
	h.must("backup") // by hand
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/metrics": `backupd_runs_total{kind="backup",outcome="done",policy="",stack="shop"} 1`} {
		if code, text := get(t, "http://"+addr+path); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d\n%s", path, code, text)
		}
	}
	s.until("the metrics know what is on the target", func() bool {
		_, text := get(t, "http://"+addr+"/metrics")
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, `backupd_snapshots{stack="shop"`) && !strings.HasSuffix(line, "} 0\n") && strings.Contains(text, "\nbackupd_repository_bytes{") {
				return true
			}
		}
		return false
	})
	if out := h.must("health"); !strings.Contains(out, "healthy; stack shop; next run 2") {
		t.Errorf("health says %q", out)
	}
	code, took := s.stop()
	if code != exitDone || took > stopTime {
		t.Errorf("it ended with %d after %s", code, took)
	}
	if code, _, errs := h.call("health"); code != exitFailed || !strings.Contains(errs, "no agent answers here") {
		t.Errorf("health of an agent that is gone: %d, %s", code, errs)
	}

	before := h.runs()
	lines := 0
	for line := range strings.Lines(s.text()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("a line of the log is no JSON: %s", line)
		}
		if entry["msg"] == "run ended" {
			lines++
		}
	}
	scheduled := slices.DeleteFunc(slices.Clone(before), func(r runs.Run) bool { return r.Kind != runs.Backup || r.Policy == "" })
	if lines != len(scheduled) {
		t.Errorf("%d lines of the log sum up %d runs", lines, len(scheduled))
	}
	s = h.serve("--schedule", "0 0 1 1 *", "--log-format", "text")
	s.until("it is healthy again", h.healthy)
	if after := h.runs(); len(after) != len(before) || after[0].ID != before[0].ID || after[0].Kind != runs.Seed {
		t.Errorf("the history after a restart: %+v", after)
	}
	if !strings.Contains(s.text(), "level=INFO") {
		t.Errorf("the log is no text: %s", s.text())
	}
	s.stop()
}

// s3House has its target behind a proxy that does what is asked.
func s3House(t *testing.T) (h *house, fault *atomic.Pointer[testservers.Fault], hits *atomic.Int64) {
	t.Helper()
	h = newHouse(t)
	fault, hits = &atomic.Pointer[testservers.Fault]{}, &atomic.Int64{}
	srv := testservers.Versitygw(t)
	proxy := srv.FaultProxy(t, func(r *http.Request, _ int) testservers.Fault {
		f := fault.Load()
		if f == nil || r.Method != http.MethodPut && strings.HasPrefix(f.String(), "silence") {
			return testservers.FaultNone
		}
		hits.Add(1)
		return *f
	})
	h.target = "s3://" + srv.Bucket(t) + "/backups"
	h.env = append(h.env, "AWS_ACCESS_KEY_ID="+srv.AccessKey, "AWS_SECRET_ACCESS_KEY="+srv.SecretKey, "AWS_REGION="+srv.Region, "AWS_ENDPOINT_URL="+proxy.URL)
	h.write(filepath.Join(h.volume, "file"), "content")
	return h, fault, hits
}

func TestServeIsStoppedInTheMiddleOfABackup(t *testing.T) {
	h, fault, hits := s3House(t)
	h.must("backup")
	h.write(filepath.Join(h.volume, "more"), "more")
	silence := testservers.FaultSilence()
	fault.Store(&silence)
	s := h.serve("--schedule", "* * * * * *")
	s.until("a backup stores something", func() bool { return hits.Load() > 0 })
	if code, took := s.stop(); code != exitDone || took > stopTime {
		t.Errorf("it ended with %d after %s", code, took)
	}
	if h.count(runs.Interrupted) != 1 || h.count(runs.Failed) != 0 {
		t.Errorf("the history has %+v", h.runs())
	}
	fault.Store(nil)
	s = h.serve("--schedule", "* * * * * *")
	s.until("the backup is done", func() bool { return h.count(runs.Done) >= 2 })
	s.until("it is healthy", h.healthy)
	s.stop()
}

func TestExpiredCredentialsAreSaidWithWhatToDoAndThenForgotten(t *testing.T) {
	h, fault, _ := s3House(t)
	s := h.serve("--schedule", "* * * * * *")
	s.until("a backup is done", func() bool { return h.count(runs.Done) > 0 })
	expired := testservers.FaultExpired()
	fault.Store(&expired)
	s.until("a backup failed", func() bool { return h.count(runs.Failed) > 0 })
	s.until("it is unhealthy", func() bool { return !h.healthy() })
	code, _, errs := h.call("health")
	if code != exitFailed || !strings.Contains(errs, "has expired; get new credentials") {
		t.Errorf("health: %d, %s", code, errs)
	}
	if code, _, errs := h.call("health", "--health", "seeded"); code != exitDone {
		t.Errorf("health where runs do not matter: %d, %s", code, errs)
	}
	fault.Store(nil)
	s.until("it is healthy again", h.healthy)
	s.stop()
}

func TestWhyAFreshStackCannotBeSeededIsTheLastLine(t *testing.T) {
	h, fault, _ := s3House(t)
	if err := os.Remove(filepath.Join(h.volume, "file")); err != nil {
		t.Fatal(err)
	}
	expired := testservers.FaultExpired()
	fault.Store(&expired)
	code, _, errs := h.call("serve")
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	if last := lines[len(lines)-1]; code != exitFailed || !strings.HasPrefix(last, "backupd: ") || !strings.Contains(last, "has expired; get new credentials") {
		t.Errorf("it exited with %d:\n%s", code, errs)
	}
}

func TestAWrongConfigurationIsSaidAtOnceAndKeepsWhatIsFreshFresh(t *testing.T) {
	h := newHouse(t)
	source := filepath.Join(h.dir, "source")
	h.mkdir(source)
	h.write(filepath.Join(source, "file"), "content")
	h.must("backup", "--volume", "data="+source, "--state-dir", filepath.Join(h.dir, "elsewhere"))
	code, _, errs := h.call("serve", "--schedule", "61 3 * * *", "--keep", "7 dayly", "--jitter", "soon")
	for _, want := range []string{"61 3 * * *", "dayly", "soon"} {
		if !strings.Contains(errs, want) {
			t.Errorf("%q is not in: %s", want, errs)
		}
	}
	if code != exitUsage {
		t.Errorf("it exited with %d", code)
	}
	if ledger, err := os.ReadFile(filepath.Join(h.state, "ledger.json")); err != nil || !bytes.Contains(ledger, []byte(`"data"`)) {
		t.Errorf("the ledger: %s, %v", ledger, err)
	}
	s := h.serve()
	s.until("it is healthy", h.healthy)
	testtree.Compare(t, source, h.volume, testtree.Options{})
	s.stop()
}

func TestSIGHUPReadsTheConfigurationAgainAndABadOneChangesNothing(t *testing.T) {
	h := newHouse(t)
	h.write(filepath.Join(h.volume, "file"), "content")
	file := filepath.Join(h.dir, "backupd.yaml")
	config := func(schedule string) { h.write(file, fmt.Sprintf("schedule: %q\n", schedule)) }
	config("@yearly")
	s := h.serve("--config", file)
	hup := func(says string) {
		t.Helper()
		n := strings.Count(s.text(), says)
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.until("it says "+says, func() bool { return strings.Count(s.text(), says) > n })
	}
	s.until("it is healthy", h.healthy)
	config("* * * * * *")
	hup("the configuration was read again")
	s.until("a backup is done", func() bool { return h.count(runs.Done) > 0 })
	config("every second, please")
	hup("the old one stays")
	if code, _, errs := h.call("health", "--config", file); code != exitDone {
		t.Errorf("health, which needs no configuration, exited with %d: %s", code, errs)
	}
	n := h.count(runs.Done)
	s.until("the old schedule is kept", func() bool { return h.count(runs.Done) > n })
	if !strings.Contains(s.text(), "every second, please") {
		t.Errorf("it does not say what is wrong:\n%s", s.text())
	}
	config("@yearly")
	hup("the configuration was read again")
	if code, took := s.stop(); code != exitDone || took > stopTime {
		t.Errorf("it ended with %d after %s", code, took)
	}
}
