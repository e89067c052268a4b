package runs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func at(n int) time.Time { return time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC) }

func add(t *testing.T, h *History, runs ...Run) {
	t.Helper()
	for _, r := range runs {
		if err := h.Add(r); err != nil {
			t.Fatal(err)
		}
	}
}

func ids(list []Run) string {
	var out []string
	for _, r := range list {
		out = append(out, r.ID)
	}
	return strings.Join(out, " ")
}

func TestRunsOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	add(t, Open(dir), Run{ID: "a", Kind: Backup, Policy: "nightly", Outcome: Failed, Error: "no", Finished: at(1)},
		Run{ID: "b", Kind: Backup, Policy: "nightly", Outcome: Done, Finished: at(2)},
		Run{ID: "c", Kind: Drill, Policy: "nightly", Outcome: Done, Finished: at(3)})
	h := Open(dir)
	all, err := h.All()
	if err != nil || ids(all) != "a b c" {
		t.Fatalf("the history has %q, %v", ids(all), err)
	}
	last, ok, err := h.Last(Backup, "nightly", nil)
	if err != nil || !ok || last.ID != "b" {
		t.Errorf("the last backup is %q, %v, %v", last.ID, ok, err)
	}
	last, ok, _ = h.Last(Backup, "nightly", func(r *Run) bool { return !r.Outcome.Good() })
	if !ok || last.ID != "a" {
		t.Errorf("the last failure is %q, %v", last.ID, ok)
	}
	if _, ok, _ := h.Last(Backup, "weekly", nil); ok {
		t.Error("a policy that never ran has a last run")
	}
	if since, err := h.Since(at(2)); err != nil || ids(since) != "b c" {
		t.Errorf("since the second minute: %q, %v", ids(since), err)
	}
}

func TestACrashWhileNotingARunHidesNoOther(t *testing.T) {
	dir := t.TempDir()
	h := Open(dir)
	add(t, h, Run{ID: "a", Kind: Backup})
	f, err := os.OpenFile(h.path(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":"cut","kind":"back`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	add(t, h, Run{ID: "b", Kind: Backup})
	if all, err := h.All(); err != nil || ids(all) != "a b" {
		t.Errorf("the history has %q, %v", ids(all), err)
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	h := Open(t.TempDir())
	long := strings.Repeat("x", 100<<10)
	for i := range 120 {
		add(t, h, Run{ID: fmt.Sprint(i), Kind: Backup, Error: long})
	}
	st, err := os.Stat(h.path())
	if err != nil || st.Size() > maxSize+200<<10 {
		t.Fatalf("the file has %d bytes, %v", st.Size(), err)
	}
	all, err := h.All()
	if err != nil || len(all) == 0 || all[len(all)-1].ID != "119" {
		t.Fatalf("%d runs are left, %v", len(all), err)
	}
	for i := 1; i < len(all); i++ {
		var a, b int
		fmt.Sscan(all[i-1].ID, &a)
		fmt.Sscan(all[i].ID, &b)
		if b != a+1 {
			t.Fatalf("run %d is followed by %d", a, b)
		}
	}
}

func TestSeveralProcessesMayNoteRunsAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			h := Open(dir)
			for range 20 {
				if err := h.Add(Run{ID: "x", Kind: Backup}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if all, err := Open(dir).All(); err != nil || len(all) != 160 {
		t.Errorf("%d runs were noted, %v", len(all), err)
	}
}

func TestWithoutAStateDirectoryRunsAreRememberedByTheProcess(t *testing.T) {
	h := Open("")
	add(t, h, Run{ID: "a", Kind: Backup})
	if all, err := h.All(); err != nil || ids(all) != "a" {
		t.Errorf("%q, %v", ids(all), err)
	}
	if all, err := Open("").All(); err != nil || len(all) != 0 {
		t.Errorf("another process knows %q, %v", ids(all), err)
	}
}

func TestWhatCannotBeWrittenIsRememberedAndWrittenLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runs")
	add(t, Open(dir), Run{ID: "a", Kind: Backup})
	h := Open(dir)
	// A directory in the file's place cannot be written, not even by root.
	moved := h.path() + ".moved"
	must(t, os.Rename(h.path(), moved), os.Mkdir(h.path(), 0o700))
	for _, id := range []string{"b", "c"} {
		if err := h.Add(Run{ID: id, Kind: Backup}); err == nil || !strings.Contains(err.Error(), "make room there") {
			t.Fatalf("run %s was written into a directory: %v", id, err)
		}
	}
	if all, _ := h.All(); ids(all) != "b c" {
		t.Errorf("the process remembers %q", ids(all))
	}
	must(t, os.Remove(h.path()), os.Rename(moved, h.path()))
	add(t, h, Run{ID: "d", Kind: Backup})
	for _, from := range []*History{h, Open(dir)} {
		if all, err := from.All(); err != nil || ids(all) != "a b c d" {
			t.Errorf("the history has %q, %v", ids(all), err)
		}
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnotherProcessesRunsAreSeen(t *testing.T) {
	dir := t.TempDir()
	a, b := Open(dir), Open(dir)
	for n := range 3 {
		add(t, a, Run{ID: fmt.Sprint("a", n), Kind: Backup})
		add(t, b, Run{ID: fmt.Sprint("b", n), Kind: Backup})
		for _, h := range []*History{a, b} {
			if all, err := h.All(); err != nil || len(all) != 2*(n+1) || all[len(all)-1].ID != fmt.Sprint("b", n) {
				t.Fatalf("the history has %q, %v", ids(all), err)
			}
		}
	}
	must(t, os.Remove(a.path())) // the state volume was lost
	if all, err := a.All(); err != nil || len(all) != 0 {
		t.Errorf("a history that is gone has %q, %v", ids(all), err)
	}
}

func TestGarbageInTheHistoryHidesNothing(t *testing.T) {
	h := Open(t.TempDir())
	add(t, h, Run{ID: "a", Kind: Backup})
	f, err := os.OpenFile(h.path(), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(make([]byte, 2<<20)) // what some file systems leave after a power cut
	must(t, err, f.Close())
	add(t, h, Run{ID: "b", Kind: Backup})
	if all, err := h.All(); err != nil || ids(all) != "a b" {
		t.Errorf("the history has %q, %v", ids(all), err)
	}
}
