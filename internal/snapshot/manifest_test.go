package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/testtree"
)

const (
	testRunID  = "0123456789abcdef"
	testRepoID = "00112233445566778899aabbccddeeff"
)

func sampleManifest() *Manifest {
	ref := pack.Ref{ID: pack.Sum([]byte("page")), Pack: pack.Name{Run: testRunID, N: 1}, Len: 90, Raw: 500}
	root := func(first string, n uint64, tar ...pack.Ref) index.Tree {
		return index.Tree{Root: index.Child{First: first, N: n, Page: ref, Tar: tar}}
	}
	return &Manifest{
		Format: FormatVersion, Repository: testRepoID, Stack: "shop", Sequence: 1<<60 + 1, Parent: "abc",
		Run: testRunID, Started: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Finished: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
		Trigger: "manual", Version: "dev", Tags: []string{"a", "<b>&\u2028"},
		Volumes: []Volume{
			{
				Name:     "data",
				Identity: &tree.Identity{FSID: [2]int32{-1, 5}, Ino: 1<<64 - 1, Btime: "5.000000007"},
				Files:    root("<a>&b", 3), Frames: index.Tree{Level: 2, Root: index.Child{First: "0", N: 1 << 60, Page: ref}},
				Nodes: root(".", 2, ref, ref), NextSlot: 1 << 62,
				Packs:   []PackRange{{Run: testRunID, First: 0, Sizes: []uint32{1, 2, pack.MaxSize}}},
				Index:   []PackRange{{Run: testRunID, First: 1<<32 - 1, Sizes: []uint32{9}}},
				Rewrite: Rewrite{Slots: []uint64{1, 1 << 60}, Packs: []string{"x"}},
				Counts:  Counts{Files: 3, Entries: 5, Bytes: 1 << 60}, Excludes: []string{"*.log"},
				Warnings: []Warning{{Path: `a\0012`, What: "could not be read"}, {Path: "s", What: "is a socket", Notice: true}},
			},
			{Name: "empty"},
		},
	}
}

// document is a manifest's object with that body, and a checksum that fits.
func document(body []byte) []byte {
	raw := fmt.Appendf(bytes.Clone(body), "\n"+`{"sha256":"%x"}`+"\n", sha256.Sum256(body))
	return pack.NewEncoder(pack.Fast).Encode(nil, raw)
}

func TestManifestsAreReadAsTheyWereWritten(t *testing.T) {
	m := sampleManifest()
	data, id, err := m.encode(pack.NewEncoder(pack.Fast))
	if err != nil {
		t.Fatal(err)
	}
	got, gotID, err := parseManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	if gotID != id || len(id) != 32 {
		t.Errorf("id %q, written as %q", gotID, id)
	}
	want, _ := json.Marshal(m) // to compare with only
	if have, _ := json.Marshal(got); !bytes.Equal(have, want) {
		t.Errorf("got  %s\nwant %s", have, want)
	}
}

func TestPathsWithSignsOfHTMLComeFirstInAVolume(t *testing.T) {
	for _, name := range []string{"a&b", "<x>", "\u2028", "\xff&"} {
		w := newWorld(t)
		if err := os.WriteFile(filepath.Join(w.volume, name), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := w.backup()
		testtree.Compare(t, w.volume, w.restoreNew(s.ID), testtree.Options{})
		testtree.Compare(t, w.volume, w.scriptNew(s.ID), testtree.Options{})
		w.verify()
	}
}

func TestManifestsThatNoWriterWritesAreRefused(t *testing.T) {
	for name, change := range map[string]func(m *Manifest){
		"format 0":             func(m *Manifest) { m.Format = 0 },
		"a negative format":    func(m *Manifest) { m.Format = -1 },
		"no stack":             func(m *Manifest) { m.Stack = "" },
		"a stack that is up":   func(m *Manifest) { m.Stack = ".." },
		"a stack with a slash": func(m *Manifest) { m.Stack = "a/b" },
		"no run":               func(m *Manifest) { m.Run = "" },
		"a run that is up":     func(m *Manifest) { m.Run = "../../../../etc/" },
		"no volume name":       func(m *Manifest) { m.Volumes[0].Name = "" },
		"a volume that is up":  func(m *Manifest) { m.Volumes[0].Name = ".." },
		"a volume twice":       func(m *Manifest) { m.Volumes[1].Name = "data" },
		"volumes unsorted":     func(m *Manifest) { m.Volumes[1].Name = "aaa" },
		"packs of a bad run":   func(m *Manifest) { m.Volumes[0].Packs[0].Run = "../x" },
		"pack numbers over 2^32": func(m *Manifest) {
			m.Volumes[0].Index[0].Sizes = []uint32{1, 2}
		},
		"a pack too large": func(m *Manifest) { m.Volumes[0].Packs[0].Sizes[0] = pack.MaxSize + 1 },
	} {
		m := sampleManifest()
		change(m)
		data, _, err := m.encode(pack.NewEncoder(pack.Fast))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := parseManifest(data); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	body := encodedBody(t)
	enc := pack.NewEncoder(pack.Fast)
	for name, data := range map[string][]byte{
		"empty":                  nil,
		"not zstd":               []byte("hello"),
		"no checksum":            enc.Encode(nil, body),
		"another checksum":       enc.Encode(nil, fmt.Appendf(bytes.Clone(body), "\n"+`{"sha256":"%x"}`+"\n", sha256.Sum256(nil))),
		"something behind":       enc.Encode(nil, fmt.Appendf(bytes.Clone(body), "\n"+`{"sha256":"%x"}`+"\n{}\n", sha256.Sum256(body))),
		"an unknown member":      document(bytes.Replace(body, []byte(`{"format"`), []byte(`{"x":1,"format"`), 1)),
		"two values":             document(append(bytes.Clone(body), "{}"...)),
		"not JSON":               document([]byte("hello")),
		"null":                   document([]byte("null")),
		"a list":                 document([]byte("[]")),
		"a root out of its pack": document(bytes.Replace(body, []byte(`"len":90`), []byte(`"len":4294967295`), 1)),
		"a root of terabytes":    document(bytes.Replace(body, []byte(`"raw":500`), []byte(`"raw":4294967295`), 1)),
		"a root at level 99":     document(bytes.Replace(body, []byte(`"level":2`), []byte(`"level":99`), 1)),
		"a negative number":      document(bytes.Replace(body, []byte(`"entries":5`), []byte(`"entries":-5`), 1)),
	} {
		if _, _, err := parseManifest(data); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var newer *NewerFormatError
	if _, _, err := parseManifest(document([]byte(`{"format":2,"new":"member"}`))); !errors.As(err, &newer) || newer.Format != 2 {
		t.Errorf("a newer format: %v", err)
	}
}

func encodedBody(t testing.TB) []byte {
	t.Helper()
	data, _, err := sampleManifest().encode(pack.NewEncoder(pack.Fast))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := pack.DecodeDocument(data, maxManifest)
	if err != nil {
		t.Fatal(err)
	}
	body, _, _ := strings.Cut(string(raw), "\n")
	return []byte(body)
}

// FuzzManifest fuzzes a manifest's object, and its body, whose checksum it could not guess.
func FuzzManifest(f *testing.F) {
	f.Add(encodedBody(f))
	f.Add(document(encodedBody(f)))
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte{})
	enc := pack.NewEncoder(pack.Fast)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, data := range [][]byte{b, document(b)} {
			m, _, err := parseManifest(data)
			if err != nil {
				var newer *NewerFormatError
				if !errors.Is(err, ErrDamaged) && !errors.As(err, &newer) {
					t.Fatal(err)
				}
				continue
			}
			again, id, err := m.encode(enc)
			if err != nil {
				t.Fatal(err)
			}
			n, nid, err := parseManifest(again)
			if err != nil || nid != id {
				t.Fatalf("written again: %v, id %s and %s", err, id, nid)
			}
			x, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if y, err := json.Marshal(n); err != nil || !bytes.Equal(x, y) {
				t.Fatalf("%v\n%s\n%s", err, x, y)
			}
		}
	})
}
