package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets/retry"
	"github.com/disko/backupd/internal/targets/s3"
	"github.com/disko/backupd/internal/testservers"
)

// The faults of the wire and of servers, asked of every operation: the target
// under retry.Store, before a real server. Whatever happens, the result is
// right or an error, in bounded time, and what is stored is whole.

const (
	// faultStall is for faults that stand still. Others get patience, for the
	// machine may be busy.
	faultStall, faultPatience = 500 * time.Millisecond, 10 * time.Second
	// faultBound is for one operation with its attempts: far more than it takes,
	// far less than for ever.
	faultBound = 40 * time.Second
)

var faultRetries = retry.Options{
	Base: time.Millisecond, Max: 5 * time.Millisecond,
	Outage:    15 * time.Second,
	OpTimeout: func(retry.Op, int64) time.Duration { return 5 * time.Second },
	Budget:    -1,
}

// faultCase is a fault and what is known of its consequences.
type faultCase struct {
	fault testservers.Fault
	// kind is the sentinel that it must end with; nil: an operation with one
	// such fault succeeds.
	kind   error
	stalls bool
	// damages: the server sends other bytes, and nothing that would betray it.
	// What is stored has hashes of its own.
	damages bool
}

func faultCases() []faultCase {
	const still, brk = 20, 40 // within every body that is read here
	return []faultCase{
		{fault: testservers.FaultInternal()},
		{fault: testservers.FaultSlowDown("")},
		{fault: testservers.FaultError(http.StatusBadGateway, "", "")},
		{fault: testservers.FaultError(http.StatusOK, "", "")}, // a gateway's page
		{fault: testservers.FaultError(http.StatusRequestTimeout, "RequestTimeout", "")},
		{fault: testservers.FaultExpired(), kind: store.ErrAccess},
		{fault: testservers.FaultReset()},
		{fault: testservers.FaultResetRequest(0)},
		{fault: testservers.FaultResetRequest(1000)},
		{fault: testservers.FaultResetAnswer(0)},
		{fault: testservers.FaultResetAnswer(brk)},
		{fault: testservers.FaultLost()},
		{fault: testservers.FaultSilence(), stalls: true},
		{fault: testservers.FaultSlow(still, time.Millisecond), stalls: true},
		{fault: testservers.FaultCut(0)},
		{fault: testservers.FaultCut(brk)},
		{fault: testservers.FaultCutChunked(brk)},
		{fault: testservers.FaultShort(0)},
		{fault: testservers.FaultShortChunked(0)},
		{fault: testservers.FaultShort(brk)},
		{fault: testservers.FaultShortChunked(brk)},
		{fault: testservers.FaultErrorBody("InternalError")},
		{fault: testservers.FaultIgnoreRange()},
		{fault: testservers.FaultOtherRange()},
		{fault: testservers.FaultFlipAnswer(brk), damages: true},
		{fault: testservers.FaultFlipRequest(brk)},
		{fault: testservers.FaultLatency(20*time.Millisecond, testservers.FaultNone)},
		{fault: testservers.FaultLatency(20*time.Millisecond, testservers.FaultLost())},
	}
}

func faultPattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i/251) ^ seed
	}
	return b
}

var (
	faultThere = faultPattern(3000, 1)
	faultSmall = faultPattern(2000, 2)
	faultLarge = faultPattern(300<<10, 3) // too large for being put twice
	// What is there before an operation that reads, and one that writes.
	faultPlace    = map[string][]byte{"there": faultThere, "other": []byte("x"), "below/it": []byte("y")}
	faultWritable = map[string][]byte{"there": faultThere}
)

// errWrong is a result that is none of the allowed ones.
var errWrong = errors.New("wrong result")

// faultOp is an operation on a place of its own, where three objects are: it
// returns errWrong where it succeeds with a result that is not right.
type faultOp struct {
	name string
	do   func(ctx context.Context, s store.Writer, at string) error
	// kind is what it ends with where nothing fails.
	kind error
	// leaves changes what is there, if it was done.
	leaves func(there map[string][]byte)
	reads  bool // an object's content
	writes bool
}

func faultGet(off, n int64, want []byte) func(context.Context, store.Writer, string) error {
	return func(ctx context.Context, s store.Writer, at string) error {
		got, err := s.Get(ctx, at+"there", off, n)
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("%w: %d bytes %.60q, want %d", errWrong, len(got), got, len(want))
		}
		return err
	}
}

func faultPut(key string, data []byte) func(context.Context, store.Writer, string) error {
	return func(ctx context.Context, s store.Writer, at string) error { return s.Put(ctx, at+key, data) }
}

func faultList(ctx context.Context, s store.Writer, at string) error {
	got := map[string]int64{}
	for info, err := range s.List(ctx, at) {
		if err != nil {
			return err
		}
		if _, twice := got[info.Key]; twice {
			return fmt.Errorf("%w: %s twice", errWrong, info.Key)
		}
		got[info.Key] = info.Size
	}
	if want := map[string]int64{at + "there": 3000, at + "other": 1, at + "below/it": 1}; !maps.Equal(got, want) {
		return fmt.Errorf("%w: %v", errWrong, got)
	}
	return nil
}

func faultStat(key string, size int64) func(context.Context, store.Writer, string) error {
	return func(ctx context.Context, s store.Writer, at string) error {
		info, err := s.Stat(ctx, at+key)
		if err == nil && info != (store.Info{Key: at + key, Size: size}) {
			err = fmt.Errorf("%w: %+v", errWrong, info)
		}
		return err
	}
}

// variants: what a target has learned of the server counts for writing only.
func (op faultOp) variants() int {
	if op.writes {
		return 2
	}
	return 1
}

func faultOps() []faultOp {
	return []faultOp{
		{name: "get", do: faultGet(0, -1, faultThere), reads: true},
		{name: "get all by length", do: faultGet(0, 3000, faultThere), reads: true},
		{name: "get a range", do: faultGet(1000, 500, faultThere[1000:1500]), reads: true},
		{name: "get a tail", do: faultGet(2900, -1, faultThere[2900:]), reads: true},
		{name: "get too much", do: faultGet(2900, 200, nil), kind: store.ErrShort, reads: true},
		{name: "get at the end", do: faultGet(3000, -1, nil), reads: true},
		{name: "stat", do: faultStat("there", 3000)},
		{name: "stat nothing", do: faultStat("none", 0), kind: store.ErrNotExist},
		{name: "put", writes: true, do: faultPut("new", faultSmall), leaves: func(m map[string][]byte) { m["new"] = faultSmall }},
		{name: "put much", writes: true, do: faultPut("new", faultLarge), leaves: func(m map[string][]byte) { m["new"] = faultLarge }},
		{name: "put over another", writes: true, do: faultPut("there", faultSmall), kind: store.ErrExist},
		{name: "delete", writes: true, do: func(ctx context.Context, s store.Writer, at string) error { return s.Delete(ctx, at+"there") }, leaves: func(m map[string][]byte) { delete(m, "there") }},
		{name: "list", do: faultList},
	}
}

// faultBench is a server, a proxy before it, and a bucket.
type faultBench struct {
	direct  *s3.Target
	proxied s3.Options
	reader  *s3.Target // proxied
	places  atomic.Int64
	plan    atomic.Pointer[faultPlan]
}

// faultPlan says which of an operation's requests meet a fault.
type faultPlan struct {
	fault testservers.Fault
	hits  func(n int) bool
	n     atomic.Int64
}

func newFaultBench(t *testing.T, server *testservers.S3, stall time.Duration) *faultBench {
	b := &faultBench{}
	proxy := server.FaultProxy(t, func(*http.Request, int) testservers.Fault {
		p := b.plan.Load()
		if p == nil || !p.hits(int(p.n.Add(1)-1)) {
			return testservers.FaultNone
		}
		return p.fault
	})
	o := s3.Options{Bucket: server.Bucket(t), Endpoint: server.Endpoint, Region: server.Region, StallTimeout: stall}
	dir := t.TempDir()
	o.AccessKeyIDFile, o.SecretAccessKeyFile = filepath.Join(dir, "id"), filepath.Join(dir, "secret")
	for name, content := range map[string]string{o.AccessKeyIDFile: server.AccessKey, o.SecretAccessKeyFile: server.SecretKey} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.proxied = o
	b.proxied.Endpoint = proxy.URL
	o.StallTimeout = faultPatience
	b.direct, b.reader = openFault(t, o), openFault(t, b.proxied)
	for key, data := range faultPlace {
		if err := b.direct.Put(t.Context(), "place/0/"+key, data); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func openFault(t *testing.T, o s3.Options) *s3.Target {
	t.Helper()
	s, err := s3.Open(t.Context(), o)
	for i := 0; i < 10 && err != nil && o.StallTimeout == faultStall; i++ {
		s, err = s3.Open(t.Context(), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run does an operation at a new place, checks what is there afterwards, and
// returns what it said and how many requests it made.
func (b *faultBench) run(t *testing.T, op faultOp, learned bool, o retry.Options, fault testservers.Fault, hits func(n int) bool) (requests int, err error) {
	t.Helper()
	ctx := t.Context()
	at, target := "place/0/", b.reader
	if op.writes {
		at = fmt.Sprintf("place/%d/", b.places.Add(1))
		for key, data := range faultWritable {
			if err := b.direct.Put(ctx, at+key, data); err != nil {
				t.Fatal(err)
			}
		}
		target = openFault(t, b.proxied) // that has learned nothing yet
	}
	if learned {
		if err := retry.New(target, faultRetries).Put(ctx, strings.Replace(at, "place", "learn", 1)+"x", nil); err != nil {
			t.Fatal(err)
		}
	}
	plan := &faultPlan{fault: fault, hits: hits}
	b.plan.Store(plan)
	start := time.Now()
	err = op.do(ctx, retry.New(target, o), at)
	b.plan.Store(nil)
	if took := time.Since(start); took > faultBound {
		t.Errorf("%s took %v", op.name, took)
	}
	if !op.writes {
		return int(plan.n.Load()), err
	}
	done := maps.Clone(faultWritable)
	if op.leaves != nil {
		op.leaves(done)
	}
	got := b.look(t, at)
	switch {
	case err == nil && !equalObjects(got, done):
		t.Errorf("%s succeeded, and there is %v", op.name, sizes(got))
	case err != nil && !equalObjects(got, done) && !equalObjects(got, faultWritable):
		t.Errorf("%s failed (%v), and left %v", op.name, err, sizes(got))
	}
	return int(plan.n.Load()), err
}

// look reads all objects of a place, past the proxy.
func (b *faultBench) look(t *testing.T, at string) map[string][]byte {
	t.Helper()
	got := map[string][]byte{}
	for info, err := range b.direct.List(t.Context(), at) {
		if err != nil {
			t.Fatal(err)
		}
		data, err := b.direct.Get(t.Context(), info.Key, 0, info.Size)
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimPrefix(info.Key, at)] = data
	}
	return got
}

func equalObjects(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

func sizes(m map[string][]byte) map[string]int {
	n := map[string]int{}
	for key, data := range m {
		n[key] = len(data)
	}
	return n
}

// judge compares what an operation said with what it must say.
func (c faultCase) judge(t *testing.T, op faultOp, requests int, err error, where string, args ...any) {
	t.Helper()
	where = op.name + ", " + fmt.Sprintf(where, args...)
	switch {
	case errors.Is(err, op.kind): // also nil
	case errors.Is(err, errWrong) && c.damages && op.reads:
	case c.kind != nil && errors.Is(err, c.kind):
	default:
		t.Errorf("%s (%d requests): %v", where, requests, err)
	}
}

// eachFault runs the faults beside each other, for they mostly wait.
func eachFault(t *testing.T, test func(t *testing.T, b *faultBench, c faultCase)) {
	t.Helper()
	server := testservers.Versitygw(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range faultCases() {
		wg.Go(func() {
			stall := faultPatience
			if c.stalls {
				stall = faultStall
			}
			t.Run(c.fault.String(), func(t *testing.T) { test(t, newFaultBench(t, server, stall), c) })
		})
	}
}

func TestOneFaultAtAnyRequestOfAnOperationIsSurvived(t *testing.T) {
	t.Parallel()
	eachFault(t, func(t *testing.T, b *faultBench, c faultCase) {
		for _, op := range faultOps() {
			for _, learned := range []bool{false, true}[:op.variants()] {
				if learned && c.stalls {
					continue // as a broken connection, only slower
				}
				for i, requests := 0, 1; i < requests && i < 6; i++ {
					var err error
					requests, err = b.run(t, op, learned, faultRetries, c.fault, func(n int) bool { return n == i })
					c.judge(t, op, requests, err, "request %d", i)
				}
			}
		}
	})
}

func TestEveryThirdRequestThatFailsIsSurvived(t *testing.T) {
	if testing.Short() {
		t.Skip("10 s of faults")
	}
	t.Parallel()
	eachFault(t, func(t *testing.T, b *faultBench, c faultCase) {
		if c.kind != nil {
			t.Skip("is for good")
		}
		random := rand.New(rand.NewPCG(1, 2))
		for _, op := range faultOps() {
			if !op.writes && op.name != "list" {
				continue
			}
			for range op.variants() {
				requests, err := b.run(t, op, false, faultRetries, c.fault, func(int) bool { return random.IntN(3) == 0 })
				c.judge(t, op, requests, err, "a third of the requests")
			}
		}
	})
}

func TestAFaultForEverEndsWithAnErrorOrTheRightResult(t *testing.T) {
	t.Parallel()
	o := faultRetries
	o.Outage, o.Base, o.Max, o.Attempts = 100*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond, 10
	eachFault(t, func(t *testing.T, b *faultBench, c faultCase) {
		o := o
		if c.stalls {
			o.Attempts = 1 // each waits for the stall
		}
		for _, op := range faultOps() {
			_, err := b.run(t, op, false, o, c.fault, func(int) bool { return true })
			if errors.Is(err, errWrong) && !(c.damages && op.reads) {
				t.Errorf("%s: %v", op.name, err)
			}
			if c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("%s: %v, want %v", op.name, err, c.kind)
			}
			if err != nil && !errors.Is(err, op.kind) && strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("%s: an error of more than a line: %v", op.name, err)
			}
		}
	})
}

// A server that never heard of conditional writes keeps objects all the same.
func TestAServerWithoutConditionsOverwritesNothing(t *testing.T) {
	b := newFaultBench(t, testservers.Versitygw(t), faultPatience)
	for _, op := range faultOps() {
		requests, err := b.run(t, op, false, faultRetries, testservers.FaultIgnoreCondition(), func(int) bool { return true })
		faultCase{}.judge(t, op, requests, err, "conditions ignored")
	}
	// It has learned what the server is while it ignored conditions.
	plan := &faultPlan{fault: testservers.FaultIgnoreCondition(), hits: func(int) bool { return true }}
	b.plan.Store(plan)
	defer b.plan.Store(nil)
	s := retry.New(openFault(t, b.proxied), faultRetries)
	for i := range 3 {
		want := store.ErrExist
		if i == 0 {
			want = nil
		}
		if err := s.Put(t.Context(), "again", faultPattern(100, byte(i))); !errors.Is(err, want) {
			t.Errorf("put %d: %v, want %v", i, err, want)
		}
	}
	if got, err := b.direct.Get(t.Context(), "again", 0, -1); err != nil || !bytes.Equal(got, faultPattern(100, 0)) {
		t.Errorf("the first object is gone: %v", err)
	}
}

// What a listing lacks cannot be noticed by the target; that it is no error
// and invents nothing can.
func TestAStaleListingIsAnOlderOne(t *testing.T) {
	b := newFaultBench(t, testservers.Versitygw(t), faultPatience)
	s := retry.New(openFault(t, b.proxied), faultRetries)
	list := func() (keys []string) {
		for info, err := range s.List(t.Context(), "old/") {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, info.Key)
		}
		return keys
	}
	for i, want := range []int{1, 1} {
		if err := b.direct.Put(t.Context(), fmt.Sprint("old/", i), nil); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(got) != want {
			t.Errorf("%q", got)
		}
		b.plan.Store(&faultPlan{fault: testservers.FaultStaleList(), hits: func(int) bool { return true }})
	}
	// Nor does it hide an object from Put.
	if err := s.Put(t.Context(), "old/1", []byte("new")); !errors.Is(err, store.ErrExist) {
		t.Errorf("%v, want ErrExist", err)
	}
}

func TestTheServersRetryAfterIsWaitedFor(t *testing.T) {
	b := newFaultBench(t, testservers.Versitygw(t), faultPatience)
	start := time.Now()
	for _, op := range faultOps() {
		if op.name != "put" {
			continue
		}
		requests, err := b.run(t, op, false, faultRetries, testservers.FaultSlowDown("1"), func(n int) bool { return n == 1 })
		faultCase{}.judge(t, op, requests, err, "slow down")
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("it took %v", took)
	}
}
