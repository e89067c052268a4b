package statefile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestAReaderFindsAWholeFileWhoeverWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "state.json")
	texts := [][]byte{bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<10), bytes.Repeat([]byte("c"), 1<<18)}
	if err := Replace(path, texts[0]); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for _, text := range texts {
		writers.Go(func() {
			for range 20 {
				if err := Replace(path, text); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { writers.Wait(); close(ended) }()
	for done := false; !done; {
		select {
		case <-ended:
			done = true
		default:
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 || !bytes.Equal(got, bytes.Repeat(got[:1], len(got))) || len(got) != len(texts[got[0]-'a']) {
			t.Fatalf("a reader found %d bytes that nobody wrote", len(got))
		}
	}
	only(t, filepath.Dir(path), "state.json")
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestWhatCannotBeReplacedStaysAndNothingIsLeftOver(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(path, "by a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("text")); err == nil {
		t.Error("a directory was replaced")
	}
	only(t, dir, "taken")
	only(t, path, "by a directory")
	file := filepath.Join(dir, "taken", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var perr *fs.PathError
	if err := Replace(filepath.Join(file, "below"), nil); !errors.As(err, &perr) {
		t.Errorf("below a file: %v", err)
	}
}

// only fails unless a directory holds one name.
func only(t *testing.T, dir, name string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name() != name {
		t.Errorf("%s holds %v, want %s alone", dir, list, name)
	}
}
