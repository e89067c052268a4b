package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/disko/backupd/internal/snapshot/tree"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// spanned is a lab whose volume data takes several packs: in each of its
// directories small files and a large one.
func spanned(t *testing.T, c *Credentials) (l *lab, st *storetest.Memory, id string) {
	t.Helper()
	l = newLab(t)
	l.credentials = c
	for d := range uint64(40) {
		dir := fmt.Sprintf("sources/%02d", d)
		if err := os.MkdirAll(l.volume("data")+"/"+dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(20) {
			l.write("data", fmt.Sprintf("%s/%d", dir, i), noise(100+d*100+i, 12<<10))
		}
		l.write("data", dir+"/large", noise(50+d, 300<<10+int(d)*20<<10))
	}
	st = storetest.NewMemory()
	return l, st, l.mustBackup(st)
}

// packGets counts the reads of packs, of which the first ones fail.
func packGets(st *storetest.Memory, fail int64) (counted *storetest.Faulty, gets *atomic.Int64) {
	gets = &atomic.Int64{}
	return &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpGet && strings.Contains(key, "/packs/") && gets.Add(1) <= fail {
			return storetest.FailBefore
		}
		return storetest.None
	}}, gets
}

// A restore of all reads packs in spans, each of them once: not a request for
// the header of each large file, nor for those of directories.
func TestARestoreOfAllReadsEachSpanOnce(t *testing.T) {
	identity, _ := newIdentity(t)
	for name, c := range map[string]*Credentials{"plain": nil, "encrypted": identity} {
		t.Run(name, func(t *testing.T) {
			l, st, id := spanned(t, c)
			stored, packs := int64(0), int64(0)
			for info, err := range st.List(context.Background(), "stacks/") {
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(info.Key, "/packs/") && info.Size > spanSize {
					stored += info.Size
					packs++
				}
			}
			if stored < 8*spanSize {
				t.Fatalf("%d bytes in packs show nothing", stored)
			}
			counted, gets := packGets(st, 0)
			out := l.scratch()
			if err := l.restore(context.Background(), counted, id, "data", out, false); err != nil {
				t.Fatal(err)
			}
			want := stored/spanSize + packs
			if c != nil { // the header and the end of each pack
				want += 2 * packs
			}
			// A frame of headers that lies in two spans may be read by itself.
			if n := gets.Load(); n > want+3 {
				t.Errorf("%d reads of packs of %d bytes, want %d", n, stored, want)
			}
			if diffs, err := testtree.Diff(l.volume("data"), out, testtree.Options{}); err != nil || len(diffs) > 0 {
				t.Errorf("%v, %v", diffs, err)
			}
		})
	}
}

// A span that fails, though it was read before anybody knew what for, fails the
// restore as any read does: it bears its mark, and is gone on with.
func TestARestoreWhoseFirstSpansFailIsGoneOnWith(t *testing.T) {
	l, st, id := spanned(t, nil)
	broken, _ := packGets(st, 4) // all that are read while the index is
	out := l.scratch()
	if err := l.restore(context.Background(), broken, id, "data", out, false); !errors.Is(err, storetest.ErrFault) {
		t.Fatalf("%v, want the fault", err)
	}
	if _, err := os.Lstat(out + "/" + tree.IncompleteMark); err != nil {
		t.Fatalf("no mark: %v", err)
	}
	if err := l.restore(context.Background(), st, id, "data", out, false); err != nil {
		t.Fatal(err)
	}
	if diffs, err := testtree.Diff(l.volume("data"), out, testtree.Options{}); err != nil || len(diffs) > 0 {
		t.Errorf("%v, %v", diffs, err)
	}
}
