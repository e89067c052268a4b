package seed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func openLedger(t *testing.T, dir string) *Ledger {
	t.Helper()
	l, err := OpenLedger(context.Background(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTheLedgerRemembers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "dir")
	l := openLedger(t, dir)
	want := &Record{
		Identity: Identity{Inode: 1 << 63, Born: -5}, Verdict: Pending, Since: time.Unix(1, 2).UTC(), Snapshot: "aaaa",
		Listing: []Entry{{"a\xffb", File, 5, 6, -7, 8}, {`"quoted"`, Dir, 1, 2, 3, 0}, {"ä\ufffd", Symlink, 1, 2, 3, 0}},
	}
	l.book.stack("shop").Volumes["db"] = want
	l.book.stack("shop").Seeded = "aaaa"
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	got, err := Records(dir, "shop")
	if err != nil || !reflect.DeepEqual(got["db"], *want) {
		t.Errorf("%+v, %v; want %+v", got["db"], err, *want)
	}
	if s, err := Seeded(dir, "shop"); s != "aaaa" || err != nil {
		t.Errorf("seeded from %q, %v", s, err)
	}
	if s, err := Seeded(dir, "blog"); s != "" || err != nil {
		t.Errorf("another stack is seeded from %q, %v", s, err)
	}
}

func TestTakeOverForgetsWhereTheStackCameFrom(t *testing.T) {
	dir := t.TempDir()
	l := openLedger(t, dir)
	l.book.stack("shop").Seeded = "aaaa"
	l.book.stack("blog").Seeded = "bbbb"
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	for i, want := range []string{"aaaa", ""} {
		if was, err := TakeOver(context.Background(), dir, "shop"); was != want || err != nil {
			t.Errorf("take-over %d: %q, %v", i, was, err)
		}
	}
	if s, _ := Seeded(dir, "blog"); s != "bbbb" {
		t.Errorf("another stack is seeded from %q", s)
	}
}

func TestTheLedgerIsOnesAlone(t *testing.T) {
	dir := t.TempDir()
	first := openLedger(t, dir)
	waits := make(chan struct{})
	second := make(chan error)
	go func() {
		l, err := OpenLedger(context.Background(), dir, func() { close(waits) })
		if err == nil {
			if l.book.stack("shop").Seeded != "aaaa" {
				err = errors.New("the second does not see what the first did")
			}
			l.Close()
		}
		second <- err
	}()
	<-waits
	first.book.stack("shop").Seeded = "aaaa"
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-second:
		t.Fatalf("the second did not wait: %v", err)
	default:
	}
	first.Close()
	if err := <-second; err != nil {
		t.Fatal(err)
	}
}

func TestWaitingForTheLedgerEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	defer openLedger(t, dir).Close()
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := OpenLedger(ctx, dir, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestALedgerThatCannotBeUnderstoodIsAnError(t *testing.T) {
	for _, text := range []string{
		``, `{`, `null`, `{}`, `{"version":1}`, `{"version":1,"stacks":null}`, `{"version":1,"stacks":{"a":null}}`,
		`{"version":1,"stacks":{"a":{"volumes":null}}}`, `{"version":1,"stacks":{"a":{"volumes":{"db":null}}}}`,
		`{"version":1,"stacks":{"a":{"volumes":{"db":{"verdict":"perhaps"}}}}}`, `{"version":1,"stacks":{},"more":1}`,
		`{"version":1,"stacks":{}}x`, `{"version":0,"stacks":{}}`,
	} {
		if _, err := parseBook([]byte(text)); !errors.Is(err, ErrLedger) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := parseBook([]byte(`{"version":2,"shelves":[]}`)); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer ledger: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ledgerFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLedger(context.Background(), dir, nil); !errors.Is(err, ErrLedger) {
		t.Errorf("%v", err)
	}
	l, err := OpenLedger(context.Background(), t.TempDir(), nil)
	if err != nil {
		t.Fatalf("the lock was not given back: %v", err)
	}
	l.Close()
}

// A ledger that is understood is written as it was read, and read as it was written.
func FuzzLedger(f *testing.F) {
	full := book{Version: 1, Stacks: map[string]*stackRecord{"shop": {Seeded: "a", Seeding: "b", Volumes: map[string]*Record{
		"db": {Identity: Identity{1, 2}, Verdict: Pending, Since: time.Unix(1, 2).UTC(), Why: "w", Snapshot: "s", Listing: []Entry{{"a\xff", File, 1, 2, 3, 4}}},
	}}}}
	b, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"stacks":{}}`))
	f.Add([]byte(`{"version":1,"stacks":{"a":{"volumes":{"db":{"identity":{"inode":"1","born":"2"},"verdict":"kept","since":"2026-01-02T03:04:05Z"}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseBook(b)
		if err != nil {
			return
		}
		once, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseBook(once)
		if err != nil {
			t.Fatalf("%v\n%s", err, once)
		}
		twice, err := json.Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%v\n%s\n%s", err, once, twice)
		}
	})
}
