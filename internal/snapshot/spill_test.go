package snapshot

import (
	"bytes"
	"os"
	"testing"
)

func TestASpillGivesBackWhatItGotAndShowsNoneOfIt(t *testing.T) {
	dir := t.TempDir()
	s := openSpill(dir)
	if s == nil {
		t.Skip("the directory of this test lies in memory")
	}
	defer s.close()
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("it has a name: %v, %v", names, err)
	}
	lengths := []int{1, 15, 16, 17, 100_000}
	offs := make([]int64, len(lengths))
	zero := map[string]bool{}
	for i, n := range lengths {
		off, ok := s.reserve(n)
		if !ok {
			t.Fatal("there is no room")
		}
		offs[i] = off
		raw := make([]byte, n)
		if !s.write(raw, off) {
			t.Fatal("it was not written")
		}
		for ; len(raw) >= 16; raw = raw[16:] { // the same plain text never looks the same
			if zero[string(raw[:16])] {
				t.Fatal("a piece of the key stream was used twice")
			}
			zero[string(raw[:16])] = true
		}
	}
	for i, n := range lengths {
		raw := make([]byte, n)
		if err := s.read(raw, offs[i]); err != nil || !bytes.Equal(raw, make([]byte, n)) {
			t.Errorf("%d bytes: %v, or not what was written", n, err)
		}
	}
}

func TestASpillWithoutRoomLeavesWhatItCannotTake(t *testing.T) {
	s := openSpill(t.TempDir())
	if s == nil {
		t.Skip("the directory of this test lies in memory")
	}
	s.most = 100
	if _, ok := s.reserve(101); ok {
		t.Error("it takes more than it has room for")
	}
	off, ok := s.reserve(100)
	if !ok {
		t.Error("it takes less than it has room for")
	}
	if _, ok := s.reserve(1); ok {
		t.Error("it takes more than it has room for")
	}
	s.close()
	raw := []byte("what a full disk does not take")
	if s.write(raw, off) || string(raw) != "what a full disk does not take" {
		t.Errorf("not written, it became %q", raw)
	}
	if off, ok := (*spill)(nil).reserve(1); ok {
		t.Errorf("no spill has room at %d", off)
	}
}
