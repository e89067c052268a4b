package seed_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/seed/snapshots"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/testtree"
)

// stack is two volumes in directories, and a repository with snapshots of others.
type stack struct {
	t      *testing.T
	o      seed.Options
	full   string // directories that the snapshot was taken of
	target *directory.Target
	source *hooked
}

// hooked is a real source whose calls a test may stand in for.
type hooked struct {
	seed.Source
	latest, find func() (seed.Snapshot, error)
	restore      func(seed.Request) error
	calls        int
}

func (h *hooked) Latest(ctx context.Context) (seed.Snapshot, error) {
	h.calls++
	if h.latest != nil {
		return h.latest()
	}
	return h.Source.Latest(ctx)
}

func (h *hooked) Find(ctx context.Context, id string) (seed.Snapshot, error) {
	h.calls++
	if h.find != nil {
		return h.find()
	}
	return h.Source.Find(ctx, id)
}

func (h *hooked) Restore(ctx context.Context, r seed.Request) error {
	if h.restore != nil {
		if err := h.restore(r); err != nil {
			return err
		}
	}
	return h.Source.Restore(ctx, r)
}

func newStack(t *testing.T) *stack {
	t.Helper()
	root := t.TempDir()
	s := &stack{t: t, full: filepath.Join(root, "full")}
	target := filepath.Join(root, "target")
	for _, name := range []string{"db", "uploads"} {
		s.o.Volumes = append(s.o.Volumes, seed.Volume{Name: name, Path: filepath.Join(root, "volumes", name)})
		for _, dir := range []string{filepath.Join(s.full, name), filepath.Join(root, "volumes", name)} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.target, err = directory.Open(target); err != nil {
		t.Fatal(err)
	}
	s.o.Stack, s.o.StateDir = "shop", filepath.Join(root, "state")
	s.source = &hooked{Source: s.from("")}
	s.o.Source = s.source
	return s
}

func (s *stack) from(name string) *snapshots.Source {
	src := &snapshots.Source{Stack: "shop", From: name, Open: func(ctx context.Context) (*snapshot.Repository, error) {
		return snapshot.Open(ctx, s.target, snapshot.Options{})
	}}
	s.t.Cleanup(src.Close)
	return src
}

// backup writes content and takes a snapshot of volumes.
func (s *stack) backup(content string, volumes ...string) string {
	s.t.Helper()
	var sources []snapshot.Source
	for _, name := range volumes {
		dir := filepath.Join(s.full, name)
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			s.t.Fatal(err)
		}
		for _, f := range []string{"one", "sub/two"} {
			if err := os.WriteFile(filepath.Join(dir, f), []byte(content+name+f), 0o644); err != nil {
				s.t.Fatal(err)
			}
		}
		sources = append(sources, snapshot.Source{Name: name, Path: dir})
	}
	repo, err := snapshot.Ensure(context.Background(), s.target, snapshot.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer repo.Close()
	sum, err := repo.Backup(context.Background(), s.target, snapshot.BackupOptions{Stack: "shop", Volumes: sources})
	if err != nil {
		s.t.Fatal(err)
	}
	return sum.ID
}

func (s *stack) run() (*seed.Result, error) {
	s.t.Helper()
	r, err := seed.Run(context.Background(), s.o)
	for _, line := range r.Lines() {
		s.t.Log(line)
	}
	if err != nil && r.Lines()[len(r.Lines())-1] != err.Error() {
		s.t.Errorf("the last line is not the reason: %v", err)
	}
	return r, err
}

func (s *stack) ok(outcomes ...seed.Outcome) *seed.Result {
	s.t.Helper()
	r, err := s.run()
	if err != nil {
		s.t.Fatal(err)
	}
	s.outcomes(r, outcomes...)
	return r
}

func (s *stack) outcomes(r *seed.Result, want ...seed.Outcome) {
	s.t.Helper()
	for i, v := range r.Volumes {
		if v.Outcome != want[i] {
			s.t.Errorf("volume %s: %s, because it %s; want %s", v.Name, v.Outcome, v.Why, want[i])
		}
	}
}

func (s *stack) path(i int, name string) string { return filepath.Join(s.o.Volumes[i].Path, name) }

func (s *stack) write(i int, name string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(i, name), []byte("precious"), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) same(i int) {
	s.t.Helper()
	testtree.Compare(s.t, filepath.Join(s.full, s.o.Volumes[i].Name), s.o.Volumes[i].Path, testtree.Options{})
}

func TestSeedingIsNotedWithItsSnapshot(t *testing.T) {
	s := newStack(t)
	id := s.backup("x", "db", "uploads")
	s.ok(seed.Filled, seed.Filled)
	s.same(0)
	s.same(1)
	if from, err := seed.Seeded(s.o.StateDir, "shop"); from != id || err != nil {
		t.Errorf("seeded from %q, %v; want %s", from, err, id)
	}
	s.source.calls = 0
	s.ok(seed.Left, seed.Left)
	if s.source.calls > 0 {
		t.Error("the target was asked though nothing is fresh")
	}
}

func TestAVolumeThatTheSnapshotLacksIsKept(t *testing.T) {
	s := newStack(t)
	s.backup("x", "db")
	r := s.ok(seed.Filled, seed.Left)
	if why := r.Volumes[1].Why; !strings.Contains(why, "no volume of that name; it has db") {
		t.Error(why)
	}
	s.backup("y", "db", "uploads")
	s.ok(seed.Left, seed.Left)
}

func TestADryRunWritesNothing(t *testing.T) {
	s := newStack(t)
	id := s.backup("x", "db", "uploads")
	s.o.DryRun = true
	r := s.ok(seed.Fresh, seed.Fresh)
	if r.Snapshot != id || r.Volumes[0].Snapshot != id {
		t.Errorf("it would seed from %q and %q", r.Snapshot, r.Volumes[0].Snapshot)
	}
	if _, err := os.Stat(s.o.StateDir); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v", err)
	}
	if names, _ := os.ReadDir(s.o.Volumes[0].Path); len(names) > 0 {
		t.Errorf("the volume has %v", names)
	}
	s.o.DryRun = false
	s.ok(seed.Filled, seed.Filled)
}

func TestASeedIsFinishedWithTheSnapshotItBeganWith(t *testing.T) {
	s := newStack(t)
	id := s.backup("x", "db", "uploads")
	s.source.restore = func(r seed.Request) error {
		if r.Volume.Name == "uploads" {
			return errors.New("connection lost")
		}
		return nil
	}
	r, err := s.run()
	if err == nil || !strings.Contains(err.Error(), "connection lost") || !strings.Contains(err.Error(), "start again") {
		t.Error(err)
	}
	s.outcomes(r, seed.Filled, seed.Failed)
	keep := filepath.Join(t.TempDir(), "x")
	testtree.Clone(t, s.full, keep)
	s.backup("newer", "db", "uploads")
	s.source.restore = nil
	if r := s.ok(seed.Left, seed.Filled); r.Snapshot != id {
		t.Errorf("finished with %.8s, begun with %.8s", r.Snapshot, id)
	}
	testtree.Compare(t, filepath.Join(keep, "uploads"), s.o.Volumes[1].Path, testtree.Options{})
}

func TestASeedWhoseSnapshotIsGoneGoesOnWithTheLatestWhereNothingIsHalf(t *testing.T) {
	s := newStack(t)
	s.backup("x", "db", "uploads")
	s.source.restore = func(r seed.Request) error {
		if r.Volume.Name == "uploads" {
			return errors.New("connection lost")
		}
		return nil
	}
	if _, err := s.run(); err == nil {
		t.Fatal("no error")
	}
	s.source.restore = nil
	s.source.find = func() (seed.Snapshot, error) { return seed.Snapshot{}, seed.ErrNoSnapshot }
	s.backup("newer", "db", "uploads")
	s.ok(seed.Left, seed.Filled)
	s.same(1)
}

// half leaves volume db with the mark and one of its files.
func (s *stack) half(id string) {
	s.t.Helper()
	mark := fmt.Sprintf(`{"snapshot":%q,"volume":"db","fresh":true}`, id)
	if err := os.WriteFile(s.path(0, ".backupd-incomplete"), []byte(mark), 0o600); err != nil {
		s.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(s.full, "db", "one"))
	if err != nil {
		s.t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(s.full, "db", "one"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(s.path(0, "one"), b, 0o644), os.Chtimes(s.path(0, "one"), st.ModTime(), st.ModTime()), os.WriteFile(s.path(0, ".backupd-tmp-0011223344556677"), b[:1], 0o600)); err != nil {
		s.t.Fatal(err)
	}
}

func TestHalfASeedWithoutALedgerIsFinished(t *testing.T) {
	s := newStack(t)
	s.half(s.backup("x", "db", "uploads"))
	s.ok(seed.Filled, seed.Filled)
	s.same(0)
}

func TestHalfASeedWhoseSnapshotIsGoneIsAnError(t *testing.T) {
	s := newStack(t)
	s.backup("x", "db", "uploads")
	s.half("00112233445566778899aabbccddeeff")
	for range 2 {
		if _, err := s.run(); !errors.Is(err, seed.ErrDoubt) || !strings.Contains(err.Error(), "restore --force") {
			t.Error(err)
		}
	}
	if names, _ := os.ReadDir(s.o.Volumes[1].Path); len(names) > 0 {
		t.Errorf("the other volume was seeded: %v", names)
	}
}

func TestHalfASeedThatSomebodyWroteToIsAnErrorAndStays(t *testing.T) {
	for _, what := range []string{"a new file", "one of ours changed", "one of ours of another kind"} {
		t.Run(what, func(t *testing.T) {
			s := newStack(t)
			s.half(s.backup("x", "db", "uploads"))
			switch what {
			case "a new file":
				s.write(0, "mine")
			case "one of ours changed":
				s.write(0, "one")
			default:
				if err := errors.Join(os.Remove(s.path(0, "one")), os.Symlink("mine", s.path(0, "one"))); err != nil {
					t.Fatal(err)
				}
			}
			before := filepath.Join(t.TempDir(), "before")
			testtree.Clone(t, s.o.Volumes[0].Path, before)
			for range 2 {
				r, err := s.run()
				if !errors.Is(err, seed.ErrDoubt) {
					t.Errorf("%v", err)
				}
				s.outcomes(r, seed.Unsure, seed.Fresh)
			}
			testtree.Compare(t, before, s.o.Volumes[0].Path, testtree.Options{})
			s.o.Mode = seed.Off
			if _, err := s.run(); !errors.Is(err, seed.ErrDoubt) {
				t.Errorf("with seeding off: %v", err)
			}
		})
	}
}

// The seed was killed when all was restored, and before the ledger said so.
func TestASeedThatOnlyLacksItsNoteIsDone(t *testing.T) {
	s := newStack(t)
	s.backup("x", "db", "uploads")
	s.ok(seed.Filled, seed.Filled)
	if err := seed.ForgetDone(s.o.StateDir, "shop", "db"); err != nil {
		t.Fatal(err)
	}
	s.source.restore = func(seed.Request) error { return errors.New("must not be asked for") }
	s.ok(seed.Filled, seed.Left)
	s.ok(seed.Left, seed.Left)
	// The same, but somebody has written there since.
	if err := seed.ForgetDone(s.o.StateDir, "shop", "db"); err != nil {
		t.Fatal(err)
	}
	s.write(0, "mine")
	s.ok(seed.Unsure, seed.Left)
	s.ok(seed.Left, seed.Left)
}

func TestASnapshotThatTheUserNamedMustBeThere(t *testing.T) {
	s := newStack(t)
	s.o.Source = s.from("v1")
	for range 2 { // without a repository, and with one
		if _, err := s.run(); err == nil || errors.Is(err, seed.ErrNoSnapshot) {
			t.Errorf("%v", err)
		}
		s.backup("x", "db", "uploads")
	}
	s.o.Source = s.from("")
	s.ok(seed.Filled, seed.Filled)
}

func TestNoRepositoryYetIsFineUnlessRequired(t *testing.T) {
	s := newStack(t)
	s.o.Mode = seed.Require
	if _, err := s.run(); !errors.Is(err, seed.ErrNoSnapshot) {
		t.Errorf("%v", err)
	}
	s.o.Mode = seed.Auto
	s.ok(seed.Left, seed.Left)
}

func TestAnEngineThatCannotBeAskedIsAnError(t *testing.T) {
	s := newStack(t)
	s.backup("x", "db", "uploads")
	s.o.Veto = brokenEngine{}
	if _, err := s.run(); err == nil || !strings.Contains(err.Error(), "ask the engine") {
		t.Errorf("%v", err)
	}
	s.o.Veto = nil
	s.ok(seed.Filled, seed.Filled)
	s.o.Veto = brokenEngine{}
	s.ok(seed.Left, seed.Left) // there is nothing to ask
}

type brokenEngine struct{}

func (brokenEngine) EverStarted(context.Context, seed.Volume) ([]string, error) {
	return nil, errors.New("connection refused")
}

func TestAVolumeThatIsNotThereIsAnError(t *testing.T) {
	s := newStack(t)
	if err := os.Remove(s.o.Volumes[0].Path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.run(); err == nil || !strings.Contains(err.Error(), "look at volume db") {
		t.Errorf("%v", err)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	s := newStack(t)
	for name, change := range map[string]func(*seed.Options){
		"mode":  func(o *seed.Options) { o.Mode = "perhaps" },
		"twice": func(o *seed.Options) { o.Volumes = append(o.Volumes[:1:1], o.Volumes[0]) },
		"named": func(o *seed.Options) { o.Named = []string{"nobody"} },
	} {
		o := s.o
		change(&o)
		if _, err := seed.Run(context.Background(), o); !errors.Is(err, seed.ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Another project seeds the same volume, with a state directory of its own.
func TestAVolumeThatIsBeingSeededIsWaitedFor(t *testing.T) {
	s := newStack(t)
	s.backup("x", "db", "uploads")
	other := *s
	other.o.StateDir = filepath.Join(t.TempDir(), "state")
	waits := make(chan struct{})
	other.o.Tell = func(line string) {
		if strings.Contains(line, "lock on volume") {
			close(waits)
		}
	}
	other.o.Source = other.from("")
	done := make(chan *seed.Result, 1)
	begun := false
	s.source.restore = func(seed.Request) error {
		if begun {
			return nil
		}
		begun = true
		go func() {
			r, err := seed.Run(context.Background(), other.o)
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		select {
		case <-waits:
		case <-time.After(time.Minute):
			t.Error("the other does not wait")
		}
		return nil
	}
	s.ok(seed.Filled, seed.Filled)
	s.outcomes(<-done, seed.Left, seed.Left)
	s.same(0)
}

func TestADirectoryIsSeenAsItIs(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "sub", "deep"), 0o755), os.WriteFile(filepath.Join(dir, "sub", "deep", "f"), []byte("12345"), 0o600),
		os.Symlink("/", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "lost+found"), 0o700),
		os.WriteFile(filepath.Join(dir, "lost+found", "x"), nil, 0o600), os.WriteFile(filepath.Join(dir, ".keep"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "sub", ".keep"), nil, 0o600), unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	o, err := seed.Observe(context.Background(), seed.Volume{Name: "db", Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]seed.Kind{}
	for _, e := range o.Entries {
		got[e.Path] = e.Kind
		if e.Inode == 0 || e.Mtime == 0 {
			t.Errorf("%+v", e)
		}
	}
	want := map[string]seed.Kind{"sub": seed.Dir, "sub/deep": seed.Dir, "sub/deep/f": seed.File, "sub/.keep": seed.File, "link": seed.Symlink, "pipe": seed.Other}
	if len(got) != len(want) {
		t.Errorf("%v, want %v", got, want)
	}
	for p, k := range want {
		if got[p] != k {
			t.Errorf("%s is a %q, want %q", p, got[p], k)
		}
	}
	if len(o.Placeholders) != 1 || o.Plain || o.Mark != nil || o.More || o.Mounted != "" || o.Unreadable != "" {
		t.Errorf("%+v", o)
	}
}
