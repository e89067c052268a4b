package nfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

func TestAServerThatRestartsInAPutNeverLeavesHalfAnObject(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	data := random(12 << 20)
	for name, during := range map[string]uint32{"CREATE": procCreate, "WRITE": procWrite, "COMMIT": procCommit, "GETATTR": procGetAttr, "LINK": procLink, "REMOVE": procRemove} {
		t.Run(name, func(t *testing.T) {
			var armed atomic.Bool
			restarted := make(chan struct{})
			p := &proxy{answer: func(proc uint32) []byte {
				if proc == during && armed.CompareAndSwap(true, false) {
					s.Restart(t)
					close(restarted)
				}
				return nil
			}}
			target := open(t, p.through(t, s, at(s, "")))
			key := "restart/" + name
			armed.Store(true)
			err := target.Put(context.Background(), key, data)
			if err != nil {
				wantOnly(t, "put", err, nil)
			}
			<-restarted
			_, there := keys(t, target, "restart/")[key]
			if err == nil && !there {
				t.Error("put says that it is there, and it is not")
			}
			// What a retry does:
			if again := target.Put(context.Background(), key, data); again != nil && (!there || !errors.Is(again, store.ErrExist)) {
				t.Errorf("put again: %v", again)
			}
			wantObject(t, target, key, data)
		})
	}
}

func TestAServerThatRestartsInAGetGivesTheRightBytesOrNone(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	data := random(12 << 20)
	var reads atomic.Int32
	restarted := make(chan struct{})
	p := &proxy{answer: func(proc uint32) []byte {
		if proc == procRead && reads.Add(1) == 5 {
			s.Restart(t)
			close(restarted)
		}
		return nil
	}}
	target := open(t, p.through(t, s, at(s, "")))
	if err := target.Put(context.Background(), "object", data); err != nil {
		t.Fatal(err)
	}
	got, err := target.Get(context.Background(), "object", 0, -1)
	if err != nil {
		wantOnly(t, "get", err, nil)
	} else if !bytes.Equal(got, data) {
		t.Error("other bytes than were written")
	}
	<-restarted
	wantObject(t, target, "object", data)
}

func TestAnIdleTargetOutlivesARestartOfItsServer(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	target := open(t, at(s, ""))
	for i := range 2 {
		if err := target.Put(context.Background(), fmt.Sprint("d/", i), []byte("content")); err != nil {
			t.Error(err)
		}
		s.Restart(t)
	}
	wantObject(t, target, "d/0", []byte("content"))
}

func operations(target *Target) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"put": func(ctx context.Context) error { return target.Put(ctx, "new", random(2<<20)) },
		"get": func(ctx context.Context) error { _, err := target.Get(ctx, "there", 0, -1); return err },
		"stat": func(ctx context.Context) error {
			_, err := target.Stat(ctx, "there")
			return err
		},
		"delete": func(ctx context.Context) error { return target.Delete(ctx, "there") },
		"list": func(ctx context.Context) error {
			for _, err := range target.List(ctx, "") {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"open": func(ctx context.Context) error {
			other, err := Open(ctx, target.o)
			if err == nil {
				other.Close()
			}
			return err
		},
	}
}

// A server that stands still looks as a dead network does: nothing comes back.
func TestAServerThatStandsStillEndsOperationsByTheStallTimeout(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	o := at(s, "")
	o.StallTimeout = 300 * time.Millisecond
	target := open(t, o)
	if err := target.Put(context.Background(), "there", random(1<<20)); err != nil {
		t.Fatal(err)
	}
	s.Pause(t)
	for name, do := range operations(target) {
		start := time.Now()
		wantOnly(t, name, do(context.Background()), nil)
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s ended after %s", name, d)
		}
	}
	s.Resume(t)
	if got := keys(t, target, ""); len(got) != 1 {
		t.Errorf("there are %v", got) // a deletion that was never answered may not happen later
	}
}

func TestACancelEndsOperationsOnAServerThatStandsStill(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	target := open(t, at(s, ""))
	if err := target.Put(context.Background(), "there", random(1<<20)); err != nil {
		t.Fatal(err)
	}
	for name := range operations(target) {
		s.Pause(t)
		ctx, cancel := context.WithCancel(context.Background())
		timer := time.AfterFunc(50*time.Millisecond, cancel)
		start := time.Now()
		if err := operations(target)[name](ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
		if d := time.Since(start); d > cleanupTimeout+3*time.Second {
			t.Errorf("%s ended after %s", name, d)
		}
		timer.Stop()
		s.Resume(t)
	}
}

func TestACancelledPutLeavesNothing(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	// Not at CREATE: the server may get to it after the removal.
	for name, proc := range map[string]uint32{"WRITE": procWrite, "COMMIT": procCommit} {
		ctx, cancel := context.WithCancel(context.Background())
		p := &proxy{answer: func(got uint32) []byte {
			if got == proc {
				cancel()
			}
			return nil
		}}
		target := open(t, p.through(t, s, at(s, "")))
		if err := target.Put(ctx, "object", random(5<<20)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at %s: %v", name, err)
		}
		if got := keys(t, target, ""); len(got) > 0 {
			t.Errorf("cancelled at %s: there are %v", name, got)
		}
		wantNoTemp(t, s.Dir)
	}
}

func TestOneConnectionIsEnough(t *testing.T) {
	s := testservers.Ganesha(t, testservers.NFSOptions{})
	o := at(s, "")
	o.Concurrency = 1
	target := open(t, o)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := target.Put(context.Background(), fmt.Sprint("d/", i%5, "/", i), []byte("content")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for info, err := range target.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		wantObject(t, target, info.Key, []byte("content")) // while the listing is under way
		n++
	}
	if n != 20 {
		t.Errorf("%d objects", n)
	}
}

func TestAFullDiskIsNoSpaceAndLeavesNothing(t *testing.T) {
	dir := smallDisk(t, "ext4", "12M")
	s := testservers.Ganesha(t, testservers.NFSOptions{Dir: dir})
	target := open(t, at(s, ""))
	for _, size := range []int{20 << 20, 200 << 10} {
		var err error
		n := 0
		for ; err == nil && n < 100; n++ {
			err = target.Put(context.Background(), fmt.Sprint("d/", size, "-", n), random(size))
		}
		wantOnly(t, fmt.Sprintf("put of %d bytes to a full disk", size), err, store.ErrNoSpace)
		wantNoTemp(t, dir)
	}
	for key := range keys(t, target, "") {
		if err := target.Delete(context.Background(), key); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Put(context.Background(), "d/fits", random(1<<20)); err != nil {
		t.Error(err)
	}
}

func TestAUsedUpQuotaIsNoSpace(t *testing.T) {
	dir := smallDisk(t, "btrfs", "120M")
	for _, args := range [][]string{{"quota", "enable", dir}, {"qgroup", "limit", "3M", dir}} {
		if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
			t.Fatalf("btrfs %q: %v\n%s", args, err, out)
		}
	}
	s := testservers.Ganesha(t, testservers.NFSOptions{Dir: dir})
	target := open(t, at(s, ""))
	err := target.Put(context.Background(), "large", random(6<<20))
	wantOnly(t, "put over the quota", err, store.ErrNoSpace)
	if !says(err, statDQuot) {
		t.Errorf("%v; want what says that it is a quota", err)
	}
	wantNoTemp(t, dir)
}
