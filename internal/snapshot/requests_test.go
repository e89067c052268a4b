package snapshot

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/store/storetest"
)

// docs/targets.md prices a backup by its requests: these are they.
func TestABackupAsksItsTargetNoMoreThanTheDocumentsSay(t *testing.T) {
	believeStats(t)
	l := newLab(t)
	st := storetest.NewMemory()
	l.mustBackup(st)
	l.change()
	l.mustBackup(st)
	count := func(run func(w *storetest.Faulty)) map[string]int {
		n := map[string]int{}
		mu := make(chan struct{}, 1)
		run(&storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
			mu <- struct{}{}
			if (op == storetest.OpPut || op == storetest.OpGet) && strings.Contains(key, "/volumes/") {
				op = "data"
			}
			n[op]++
			<-mu
			return storetest.None
		}})
		delete(n, "data")
		return n
	}
	// Nothing changed: a marker read, two looks for what restores without
	// backupd, an intent that comes and goes, a manifest.
	backup := count(func(w *storetest.Faulty) { l.mustBackup(w) })
	want := map[string]int{storetest.OpList: 6, storetest.OpGet: 1, storetest.OpStat: 3, storetest.OpPut: 2, storetest.OpDelete: 2}
	if !maps.Equal(backup, want) {
		t.Errorf("backup: %v, want %v", backup, want)
	}
	restore := count(func(w *storetest.Faulty) {
		if err := l.restore(context.Background(), w, "latest", "data", l.scratch(), false); err != nil {
			t.Error(err)
		}
	})
	// With the manifests in the cache: the marker, and three listings.
	want = map[string]int{storetest.OpList: 3, storetest.OpGet: 1}
	if !maps.Equal(restore, want) {
		t.Errorf("restore: %v, want %v", restore, want)
	}
}
