package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// text is n bytes of what compresses, different for each seed.
func text(seed, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "func step%d(x int) int { return x*%d + %d }\n", i*seed%977, seed*i*7919%9973, i%13)
	}
	return b.Bytes()[:n]
}

// A target that keeps up gets what is encoded quickly, one that does not what is small.
func TestFramesAreSmallerWhileTheTargetIsWaitedFor(t *testing.T) {
	begun, gate := make(chan struct{}, 100), make(chan struct{})
	w := pack.NewWriter(context.Background(), "0123456789abcdef", 1, func(context.Context, pack.Name, []byte) error {
		begun <- struct{}{}
		<-gate
		return nil
	})
	w.Size = 1 // each frame is a pack
	fast, dense := pack.NewEncoder(pack.Fast), pack.NewEncoder(pack.Dense)
	f := newFrameStore(w, fast, dense)
	store := func(seed int) (ref pack.Ref, isFast, isDense bool) {
		t.Helper()
		raw := text(seed, 200<<10)
		ref, err := f.store(raw)
		if err != nil {
			t.Fatal(err)
		}
		return ref, int(ref.Len) == len(fast.Encode(nil, raw)), int(ref.Len) == len(dense.Encode(nil, raw))
	}
	store(1)
	if _, isFast, _ := store(2); !isFast { // the first pack is being put
		t.Error("the target kept up, and the frame is not as the quick encoder makes it")
	}
	<-begun
	go func() {
		for !w.Late() { // the second pack has to wait for the first
			runtime.Gosched()
		}
		gate <- struct{}{}
	}()
	store(3)
	<-begun
	go func() { gate <- struct{}{} }()
	if _, _, isDense := store(4); !isDense {
		t.Error("the target is waited for, and the frame is not as the slower encoder makes it")
	}
	close(gate)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
