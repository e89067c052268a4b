package retry

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
)

func TestATargetThatComesLateIsOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		came := time.Now().Add(5 * time.Minute)
		s, err := Open(context.Background(), "place", Options{}, func(context.Context) (store.Writer, error) {
			if time.Now().Before(came) {
				return nil, errors.New("connection refused")
			}
			return storetest.NewMemory(), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(context.Background(), "key", nil); err != nil {
			t.Error(err)
		}
	})
}

func TestATargetThatNeverComesEndsWithAnErrorThatNamesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := Open(context.Background(), "place", Options{Outage: time.Minute}, func(context.Context) (store.Writer, error) {
			return nil, errors.New("connection refused")
		})
		if err == nil || !strings.Contains(err.Error(), "place does not answer") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("open: %v", err)
		}
		if d := time.Since(start); d < time.Minute || d > 2*time.Minute {
			t.Errorf("gave up after %v", d)
		}
	})
}

func TestATargetThatIsNotThereIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := Open(context.Background(), "place", Options{}, func(context.Context) (store.Writer, error) {
			return nil, store.ErrNoTarget
		})
		if !errors.Is(err, store.ErrNoTarget) || time.Since(start) > 0 {
			t.Errorf("open: %v after %v", err, time.Since(start))
		}
	})
}
