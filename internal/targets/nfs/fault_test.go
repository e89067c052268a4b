package nfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/targetstest"
	"github.com/disko/backupd/internal/testservers"
)

var sentinels = []error{store.ErrNotExist, store.ErrExist, store.ErrNoTarget, store.ErrNoSpace, store.ErrAccess, store.ErrShort}

// wantOnly makes sure that an error is one of the contract's, or none of them.
func wantOnly(t testing.TB, what string, err, want error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %v", what, want)
	}
	for _, s := range sentinels {
		if errors.Is(err, s) != errors.Is(want, s) {
			t.Errorf("%s: %v; want %v", what, err, want)
		}
	}
}

func wantObject(t testing.TB, target *Target, key string, want []byte) {
	t.Helper()
	got, err := target.Get(context.Background(), key, 0, -1)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("get %s: %d bytes, %v; want the %d written", key, len(got), err, len(want))
	}
}

func keys(t testing.TB, target *Target, prefix string) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	for info, err := range target.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := all[info.Key]; ok {
			t.Errorf("%s is listed twice", info.Key)
		}
		all[info.Key] = info.Size
	}
	return all
}

func TestAServerWithoutLinksKeepsTheContract(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	for _, says := range []status{statNotSupp, statPerm} {
		t.Run(says.words(), func(t *testing.T) {
			targetstest.Run(t, func(t *testing.T) store.Writer {
				dir, err := os.MkdirTemp(s.Dir, "target-")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { wantNoTemp(t, dir) })
				p := &proxy{answer: func(proc uint32) []byte {
					if proc == procLink {
						return refusal(says)
					}
					return nil
				}}
				return open(t, p.through(t, s, at(s, "/"+filepath.Base(dir))))
			})
		})
	}
}

func TestWithoutLinksTwoProcessesDoNotPlaceOneObject(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	p := &proxy{answer: func(proc uint32) []byte {
		if proc == procLink {
			return refusal(statNotSupp)
		}
		return nil
	}}
	target := open(t, p.through(t, s, at(s, "")))
	lock := filepath.Join(s.Dir, tmpDir, reservation("d/object"))
	if err := os.MkdirAll(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	err := target.Put(context.Background(), "d/object", []byte("x"))
	wantOnly(t, "put of what another process writes", err, nil)
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if err := target.Put(context.Background(), "d/object", []byte("x")); err != nil {
		t.Error(err)
	}
	wantNoTemp(t, s.Dir)
}

func TestALinkThatTheServerMadeTwiceIsNoError(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	p := &proxy{twice: func(proc uint32) bool { return proc == procLink }}
	target := open(t, p.through(t, s, at(s, "")))
	for i := range 4 {
		key := fmt.Sprint("d/", i)
		if err := target.Put(context.Background(), key, []byte("content")); err != nil {
			t.Error(err)
		}
		wantObject(t, target, key, []byte("content"))
		wantOnly(t, "put again", target.Put(context.Background(), key, []byte("content")), store.ErrExist)
	}
	wantNoTemp(t, s.Dir)
}

// A server that restarts behind a balancer, or whose disk failed to write
// back, says so by another verifier.
func TestWhatAServerLostBeforeTheCommitIsSentAgain(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	var losses atomic.Int32
	lose := func(of uint32) func(uint32, []byte) []byte {
		return func(proc uint32, result []byte) []byte {
			if proc == of && losses.Add(-1) >= 0 {
				result[len(result)-1] ^= 1 // the verifier is at the end of both answers
			}
			return result
		}
	}
	data := random(5 << 20)
	for name, proc := range map[string]uint32{"by COMMIT": procCommit, "by WRITE": procWrite} {
		t.Run(name, func(t *testing.T) {
			p := &proxy{change: lose(proc)}
			target := open(t, p.through(t, s, at(s, "")))
			key := "once/" + strings.ReplaceAll(name, " ", "-")
			losses.Store(1)
			if err := target.Put(context.Background(), key, data); err != nil {
				t.Fatal(err)
			}
			if n := p.count(procWrite); n != 10 {
				t.Errorf("%d WRITEs of 5 pieces, want them all twice", n)
			}
			wantObject(t, target, key, data)
		})
	}
	p := &proxy{change: lose(procCommit)}
	target := open(t, p.through(t, s, at(s, "")))
	losses.Store(1000)
	wantOnly(t, "put to a server that loses all", target.Put(context.Background(), "never", data), nil)
	if _, ok := keys(t, target, "")["never"]; ok {
		t.Error("it is there")
	}
	wantNoTemp(t, s.Dir)
}

func TestShortWritesAndReadsAreContinued(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	// The server tells of less than it did; what it is sent again is the same.
	const most = 100
	p := &proxy{change: func(proc uint32, result []byte) []byte {
		var count []byte
		switch proc {
		case procWrite:
			count = result[len(result)-16:] // count, committed, verifier
		case procRead:
			count = result[4+4+84:] // count, end, data
		}
		if count == nil || binary.BigEndian.Uint32(count) <= most {
			return result
		}
		binary.BigEndian.PutUint32(count, most)
		if proc == procRead {
			binary.BigEndian.PutUint32(count[4:], 0)
			binary.BigEndian.PutUint32(count[8:], most)
			result = result[:4+4+84+12+most]
		}
		return result
	}}
	target := open(t, p.through(t, s, at(s, "")))
	data := random(1 << 10)
	if err := target.Put(context.Background(), "short", data); err != nil {
		t.Fatal(err)
	}
	wantObject(t, target, "short", data)
	if w, r := p.count(procWrite), p.count(procRead); w < 10 || r < 10 {
		t.Errorf("%d WRITEs, %d READs", w, r)
	}
}

func TestADirectoryThatChangesIsReadFromItsStart(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	if err := os.Mkdir(filepath.Join(s.Dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(s.Dir, "d", fmt.Sprintf("object-%04d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var bad atomic.Int32
	page := 0
	p := &proxy{answer: func(proc uint32) []byte {
		if proc != procReadDirPlus {
			return nil
		}
		if page++; page%3 == 0 && bad.Add(-1) >= 0 {
			return refusal(statBadCookie)
		}
		return nil
	}}
	target := open(t, p.through(t, s, at(s, "")))
	bad.Store(3)
	if got := keys(t, target, "d/"); len(got) != 1000 {
		t.Errorf("%d objects, want 1000", len(got))
	}
	if bad.Load() > 0 {
		t.Error("the directory was read in fewer than 3 pages")
	}
	bad.Store(1 << 20)
	for _, err := range target.List(context.Background(), "d/") {
		if err == nil {
			t.Fatal("something was yielded of a directory that could not be read")
		}
		wantOnly(t, "list of what always changes", err, nil)
	}
}

func TestErrorsAreThoseThatCallersAskFor(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	var refuse atomic.Uint32
	var with atomic.Uint32
	p := &proxy{answer: func(proc uint32) []byte {
		if proc == refuse.Load() {
			return refusal(status(with.Load()))
		}
		return nil
	}}
	target := open(t, p.through(t, s, at(s, "")))
	ctx := context.Background()
	if err := target.Put(ctx, "there", random(3<<20)); err != nil {
		t.Fatal(err)
	}
	put := func() error { return target.Put(ctx, "new", random(3<<20)) }
	get := func() error { _, err := target.Get(ctx, "there", 0, -1); return err }
	for _, c := range []struct {
		act  string
		do   func() error
		proc uint32
		says status
		want error
	}{
		{"put", put, procCreate, statNoSpc, store.ErrNoSpace},
		{"put", put, procWrite, statNoSpc, store.ErrNoSpace},
		{"put", put, procWrite, statDQuot, store.ErrNoSpace},
		{"put", put, procCommit, statNoSpc, store.ErrNoSpace},
		{"put", put, procCommit, statDQuot, store.ErrNoSpace},
		{"put", put, procLink, statNoSpc, store.ErrNoSpace},
		{"put", put, procCreate, statAcces, store.ErrAccess},
		{"put", put, procCreate, statROFS, store.ErrAccess},
		{"put", put, procCreate, statJukebox, nil},
		{"put", put, procWrite, statJukebox, nil},
		{"put", put, procCommit, 5, nil},
		{"put", put, procLink, statStale, nil},
		{"put", put, procLookup, statStale, nil},
		{"get", get, procRead, 5, nil},
		{"get", get, procRead, statAcces, store.ErrAccess},
		{"get", get, procRead, statStale, nil},
		{"get", get, procLookup, statJukebox, nil},
		{"get", get, procLookup, statNoEnt, store.ErrNotExist},
		{"delete", func() error { return target.Delete(ctx, "there") }, procRemove, statPerm, store.ErrAccess},
		{"delete", func() error { return target.Delete(ctx, "there") }, procRemove, statROFS, store.ErrAccess},
	} {
		with.Store(uint32(c.says))
		refuse.Store(c.proc)
		err := c.do()
		refuse.Store(0)
		wantOnly(t, fmt.Sprintf("%s, where procedure %d says %s", c.act, c.proc, c.says.words()), err, c.want)
	}
	if got := keys(t, target, ""); len(got) != 1 {
		t.Errorf("there are %v", got)
	}
	wantNoTemp(t, s.Dir)
}

func TestATemporaryOfAKilledWriterIsNotVisibleAndIsTidied(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	for name, proc := range map[string]uint32{"WRITE": procWrite, "COMMIT": procCommit, "LINK": procLink} {
		p := &proxy{cut: func(got uint32) bool { return got == proc }}
		target := open(t, p.through(t, s, at(s, "")))
		wantOnly(t, "put that was cut at "+name, target.Put(context.Background(), "object", random(3<<20)), nil)
		if got := keys(t, target, ""); len(got) > 0 {
			t.Errorf("there are %v", got)
		}
	}
	tmp := filepath.Join(s.Dir, tmpDir)
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 3 {
		t.Fatalf("%d temporaries, %v", len(left), err)
	}
	lock := filepath.Join(tmp, "lock-of-a-killed-one")
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-25 * time.Hour)
	for _, name := range []string{left[0].Name(), left[1].Name(), filepath.Base(lock)} {
		if err := os.Chtimes(filepath.Join(tmp, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(t, at(s, "")).Put(context.Background(), "object", []byte("x")); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadDir(tmp)
	if err != nil || len(now) != 1 || now[0].Name() != left[2].Name() {
		t.Errorf("left are %v, %v; want the young one alone", now, err)
	}
}
