package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// killAt ends this process like kill -9 when a point is reached for the nth time.
func killAt(n int) func(string) {
	reached := make(chan int, 1)
	reached <- 0
	return func(point string) {
		k := <-reached
		if k == n {
			os.Stdout.WriteString(point)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		reached <- k + 1
	}
}

// TestDyingAgent is no test of its own: it is the agent in the tests below, run
// as another process.
func TestDyingAgent(t *testing.T) {
	request := os.Getenv("QUIESCE_TEST_AGENT")
	if request == "" {
		t.Skip("it is run by other tests, as the agent that is killed")
	}
	var o struct {
		Project, Volume, State string
		Kill                   int
		Recover                bool
		During                 bool // 300 ms after the first stop was begun
	}
	if err := json.Unmarshal([]byte(request), &o); err != nil {
		t.Fatal(err)
	}
	e, err := Connect(t.Context(), func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if o.Recover {
		_, err := e.recoverWith(t.Context(), o.State, hands{engine: e, now: time.Now, fault: killAt(o.Kill)})
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	q := e.Quiescer(QuiesceOptions{Project: o.Project, Volumes: []string{o.Volume}, StateDir: o.State, Run: "run" + strconv.Itoa(o.Kill)})
	q.hands.fault = killAt(o.Kill)
	if o.During {
		q.hands.fault = func(point string) {
			if strings.HasPrefix(point, "before stop") {
				time.AfterFunc(300*time.Millisecond, func() { killAt(0)("during stop") })
			}
		}
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"pre", func() error { return q.Pre(t.Context()) }},
		{"freeze", func() error { return q.Freeze(t.Context()) }},
		{"thaw", func() error { return q.Thaw(t.Context()) }},
		{"post", func() error { return q.Post(t.Context()) }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
}

// agent runs TestDyingAgent. It returns where it was killed, or "" if it was not.
func (s *stage) agent(volume string, kill int, recover bool) string {
	s.t.Helper()
	return s.run(map[string]any{"Project": s.project, "Volume": volume, "State": s.state, "Kill": kill, "Recover": recover})
}

func (s *stage) run(o map[string]any) string {
	s.t.Helper()
	request, err := json.Marshal(o)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDyingAgent$")
	cmd.Env = append(os.Environ(), "QUIESCE_TEST_AGENT="+string(request))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if err == nil {
		return ""
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() && w.Signal() == syscall.SIGKILL {
			return out.String()
		}
	}
	s.t.Fatalf("the agent failed: %v\n%s", err, out.String())
	return ""
}

// shop is a project in which all kinds of steps occur.
func (s *stage) shop() (volume string, ids []string) {
	data := s.volume("data")
	mounts := []string{data + ":/data"}
	slow := `trap 'sleep 0.3; exit 0' TERM; while :; do sleep 1000 & wait; done`
	short := map[string]string{"backupd.quiesce.timeout": "1s"}
	db := s.add(part{service: "db", health: true, script: slow, labels: short, mounts: mounts})
	app := s.add(part{service: "app", needs: "db:service_healthy:false", mounts: mounts, labels: map[string]string{
		"backupd.quiesce": "stop", "backupd.quiesce.timeout": "1s",
		"backupd.pre": "touch /tmp/maintenance", "backupd.post": "rm -f /tmp/maintenance",
	}})
	cache := s.add(part{service: "cache", mounts: mounts})
	exited := s.add(part{service: "db", number: 2, health: true, labels: short, mounts: mounts, stopped: true})
	paused := s.add(part{service: "cache", number: 2, mounts: mounts})
	if !s.NoCgroups {
		s.must(s.api.ContainerPause(s.t.Context(), paused))
	}
	return data, []string{db, app, cache, exited, paused}
}

func TestKilledAtAnyMomentNothingStandsStillAfterTheNextStart(t *testing.T) {
	if testing.Short() {
		t.Skip("kills an agent at every step: more than a minute")
	}
	t.Parallel()
	s := newStage(t)
	data, ids := s.shop()
	before := s.states(ids...)
	var points []string
	stood := 0
	for kill := 0; ; kill++ {
		point := s.agent(data, kill, false)
		if point == "" {
			break
		}
		points = append(points, point)
		if !slices.Equal(s.states(ids...), before) {
			stood++
		}
		for range 2 { // recovering twice is recovering once
			if _, err := s.Recover(t.Context(), s.state); err != nil {
				t.Errorf("killed %s: %v", point, err)
			}
			s.wantStates("killed "+point, ids, before...)
			if left := s.journals(); len(left) > 0 {
				t.Errorf("killed %s: journals are left: %v", point, left)
			}
		}
		if _, err := s.sh(ids[1], "test ! -e /tmp/maintenance"); err != nil {
			t.Errorf("killed %s: the post hook was not run: %v", point, err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("killed at %d points, with something standing still at %d: %s", len(points), stood, strings.Join(points, ", "))
	for _, want := range []string{"before pre", "after pre", "intended", "before stop", "after stop", "before pause", "after pause", "before resuming", "after resuming", "before post", "after post", "settle"} {
		if s.NoCgroups && strings.HasSuffix(want, "pause") {
			continue
		}
		if !slices.ContainsFunc(points, func(p string) bool { return strings.HasPrefix(p, want) }) {
			t.Errorf("it was not killed %q", want)
		}
	}
	if stood == 0 {
		t.Error("nothing ever stood still")
	}
}

func TestKilledInARecoveryTheNextOneCompletesIt(t *testing.T) {
	if testing.Short() {
		t.Skip("kills an agent at every step of a recovery")
	}
	t.Parallel()
	s := newStage(t)
	data, ids := s.shop()
	before := s.states(ids...)
	// The point of the first agent at which all stands still: before anything resumes.
	frozen := 0
	for kill := 12; frozen == 0; kill++ {
		point := s.agent(data, kill, false)
		if strings.HasPrefix(point, "before resuming") {
			frozen = kill
		}
		_, err := s.Recover(t.Context(), s.state)
		s.must(err)
		if point == "" {
			t.Fatal("nothing was resumed")
		}
	}
	for kill := 0; ; kill++ {
		if point := s.agent(data, frozen, false); !strings.HasPrefix(point, "before resuming") {
			t.Fatalf("killed %q", point)
		}
		point := s.agent(data, kill, true)
		_, err := s.Recover(t.Context(), s.state)
		s.must(err)
		s.wantStates("recovery killed "+point, ids, before...)
		if left := s.journals(); len(left) > 0 {
			t.Errorf("recovery killed %s: journals are left: %v", point, left)
		}
		if point == "" {
			return
		}
	}
}

// The engine stops a container also when whoever has asked for it is gone.
func TestKilledWhileAStopIsUnderWay(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	db := s.add(part{service: "db", health: true, mounts: []string{data + ":/data"}, script: `trap 'sleep 1; exit 0' TERM; while :; do sleep 1000 & wait; done`})
	since := func() string {
		c, err := s.api.ContainerInspect(t.Context(), db)
		s.must(err)
		return c.State.StartedAt
	}
	before := since()
	if point := s.run(map[string]any{"Project": s.project, "Volume": data, "State": s.state, "During": true}); point != "during stop" {
		t.Fatalf("killed %q", point)
	}
	s.wantStates("killed", []string{db}, "running")
	r, err := s.Recover(t.Context(), s.state)
	s.must(err)
	s.wantStates("recovered", []string{db}, "running")
	if since() == before || len(r.Resumed) != 1 {
		t.Errorf("the stop came to nothing, so that nothing was tested: %+v", r)
	}
}

func TestAJournalWhoseOwnerLivesIsLeftAlone(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	c := s.add(part{service: "a", mounts: []string{data + ":/data"}})
	q := s.quiescer(data)
	s.must(q.Freeze(t.Context()))
	r, err := s.Recover(t.Context(), s.state)
	s.must(err)
	if len(r.Runs) > 0 {
		t.Errorf("recovered %+v", r)
	}
	if got := s.states(c)[0]; got == "running" {
		t.Error("a recovery by another has let it go on")
	}
	s.must(q.Thaw(t.Context()))
}

func TestAJournalThatCannotBeReadIsToldAndOthersAreUsed(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	c := s.add(part{service: "a", mounts: []string{data + ":/data"}})
	if point := s.agent(data, 6, false); point == "" {
		t.Fatal("the agent was not killed")
	}
	bad := filepath.Join(journalDir(s.state), "a.json")
	foreign := filepath.Join(journalDir(s.state), "b.json")
	newer := filepath.Join(journalDir(s.state), "c.json")
	s.must(os.WriteFile(bad, []byte("{\"journal\":1,\"run\":\"a\"}\nrubbish\n"), 0o600))
	s.must(os.WriteFile(foreign, []byte("{\"journal\":1,\"run\":\"b\",\"engine\":\"another\"}\n{\"at\":\"2020-01-01T00:00:00Z\",\"intent\":[{\"n\":0,\"act\":\"stop\",\"service\":\"x\",\"container\":\"y\"}]}\n"), 0o600))
	s.must(os.WriteFile(newer, []byte("{\"journal\":2,\"run\":\"c\"}\n"), 0o600))
	_, err := s.Recover(t.Context(), s.state)
	for _, want := range []string{bad + ", which a run that died has left: line 2", "of another engine (another)", newer + ", which a run that died has left: it is of version 2"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	s.wantStates("recovered", []string{c}, "running")
	if left := s.journals(); !slices.Equal(left, []string{bad, foreign, newer}) {
		t.Errorf("journals left: %v", left)
	}
}

func TestATornLineWasNotBegun(t *testing.T) {
	state := t.TempDir()
	dir := journalDir(state)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	e := &Engine{}
	whole := `{"journal":1,"run":"x"}` + "\n"
	for _, text := range []string{"", whole[:5], whole, whole + `{"intent":[{"n":0,"act":"stop","serv`} {
		name := filepath.Join(dir, "x.json")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Recover(t.Context(), state); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is left", text)
		}
	}
}

// FuzzJournal: what a journal holds is read back as it was, or is refused.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"journal":1,"run":"x","project":"p","engine":"e"}` + "\n" + `{"at":"2026-01-01T00:00:00Z","intent":[{"n":0,"act":"stop","service":"s","container":"c","grace":1}]}` + "\n" + `{"acted":[0]}` + "\n" + `{"done":[0]}` + "\n"))
	f.Add([]byte(`{"journal":1}` + "\n" + `{"done":[7]}` + "\n"))
	f.Add([]byte(`{"journal":1}` + "\n" + `{"intent":[{"n":0,"act":"post","hook":{"Command":"x"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "j.json")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openLeftOver(name, time.Now)
		if err != nil {
			return
		}
		defer j.f.Close()
		for i, e := range j.entries {
			if e.N != i {
				t.Errorf("entry %d is number %d", i, e.N)
			}
		}
		again, err := os.ReadFile(name)
		if err != nil || !bytes.HasPrefix(data, again) {
			t.Errorf("reading made %q of %q, %v", again, data, err)
		}
	})
}
