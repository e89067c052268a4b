package metrics

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/disko/backupd/internal/runs"
)

var noon = time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)

func backup(o runs.Outcome, at time.Time) runs.Run {
	return runs.Run{
		Kind: runs.Backup, Policy: "nightly", Stack: "shop", Outcome: o, Started: at.Add(-90 * time.Second), Finished: at, Frozen: 1.5,
		Volumes: []runs.Volume{{Name: "db", Read: 1000, Stored: 10, Warnings: 2}},
	}
}

func scrape(t *testing.T, m *Metrics, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	bad := func() error { return errors.New("the last run failed") }
	m.Handler(bad, func() error { return nil }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

func TestMetricsTellOfRunsBeforeTheRestart(t *testing.T) {
	m := New("1.2.3", []runs.Run{
		backup(runs.Done, noon), backup(runs.Failed, noon.Add(time.Hour)),
		{Kind: runs.Drill, Stack: "shop", Outcome: runs.Done, Finished: noon.Add(time.Minute)},
		{Kind: runs.Drill, Stack: "shop", Outcome: runs.Failed, Finished: noon.Add(time.Hour)},
	})
	interrupted := backup(runs.Interrupted, noon.Add(2*time.Hour))
	m.Observe(&interrupted)
	m.Repository("shop", "/backups", 3, 4096, noon)
	m.Next(noon.Add(24 * time.Hour))
	_, text := scrape(t, m, "/metrics")
	for _, want := range []string{
		`backupd_last_success_timestamp_seconds{stack="shop",volume="db"} 1.7750448e+09`,
		`backupd_last_drill_timestamp_seconds{stack="shop"} 1.77504486e+09`,
		`backupd_last_run_success{kind="backup",policy="nightly",stack="shop"} 0`,
		`backupd_last_run_duration_seconds{kind="backup",policy="nightly",stack="shop"} 90`,
		`backupd_last_run_frozen_seconds{policy="nightly",stack="shop"} 1.5`,
		`backupd_last_run_warnings{kind="backup",policy="nightly",stack="shop"} 2`,
		`backupd_runs_total{kind="backup",outcome="failed",policy="nightly",stack="shop"} 1`,
		`backupd_read_bytes_total{stack="shop",volume="db"} 3000`,
		`backupd_snapshots{stack="shop",target="/backups"} 3`,
		`backupd_repository_bytes{stack="shop",target="/backups"} 4096`,
		`backupd_build_info{version="1.2.3"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("%s is not in:\n%s", want, text)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestHealthIsAnsweredWithItsReason(t *testing.T) {
	m := New("dev", nil)
	if code, text := scrape(t, m, "/healthz"); code != 503 || !strings.Contains(text, "the last run failed") {
		t.Errorf("/healthz: %d %q", code, text)
	}
	if code, text := scrape(t, m, "/readyz"); code != 200 || text != "ok\n" {
		t.Errorf("/readyz: %d %q", code, text)
	}
}
