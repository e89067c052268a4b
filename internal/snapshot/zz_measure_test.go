package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/disko/backupd/internal/testtree"
)

func TestZZMeasure(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.volume, "table")
	if err := testtree.Pages(path, 1300<<20, 1); err != nil {
		t.Fatal(err)
	}
	for _, frac := range []float64{0, 0.0005, 0.005, 0.02, 0.1} {
		if frac == 0 { // the first backup
		}
		var frozen time.Duration
		var at time.Time
		f := &freezer{freeze: func(context.Context) error {
			if frac > 0 {
				if err := testtree.ChurnPages(path, frac, uint64(frac*1e6)); err != nil {
					return err
				}
			}
			at = time.Now()
			return nil
		}, thaw: func(context.Context) error { frozen = time.Since(at); return nil }}
		began := time.Now()
		s, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Freeze: f})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(os.Stderr, "churn %.2f%%: whole %.2fs frozen read %.3fs new frames %d stored %d read %d\n", frac*100, time.Since(began).Seconds(), frozen.Seconds(), s.Volumes[0].FramesNew, s.Volumes[0].BytesStored>>20, s.Volumes[0].BytesRead>>20)
	}
}
