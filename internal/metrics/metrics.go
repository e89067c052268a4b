// Package metrics counts what runs did, for Prometheus, and answers on HTTP:
// /metrics, /healthz and /readyz.
//
// Invariants: what is said of the past outlives a restart, for it is counted from
// the history of runs first; names and units are after Prometheus' conventions
// (seconds, bytes, _total for counters). docs/monitoring.md lists them.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/disko/backupd/internal/runs"
)

// Metrics are one agent's.
type Metrics struct {
	registry *prometheus.Registry

	lastSuccess, lastDrill, lastRun, lastGood, duration, frozen, warnings *prometheus.GaugeVec
	runs, read, stored                                                    *prometheus.CounterVec
	snapshots, repository, newest                                         *prometheus.GaugeVec
	next, seeded                                                          prometheus.Gauge
}

// New returns metrics that count the past already.
func New(version string, past []runs.Run) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "backupd", Name: name, Help: help}, labels)
		m.registry.MustRegister(g)
		return g
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "backupd", Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.lastSuccess = gauge("last_success_timestamp_seconds", "When the newest backup that has the volume ended.", "stack", "volume")
	m.lastDrill = gauge("last_drill_timestamp_seconds", "When a drill last proved that a snapshot of the stack restores.", "stack")
	m.lastRun = gauge("last_run_timestamp_seconds", "When the last run ended, however.", "kind", "policy", "stack")
	m.lastGood = gauge("last_run_success", "1 if the last run did what it was for, 0 if it failed.", "kind", "policy", "stack")
	m.duration = gauge("last_run_duration_seconds", "How long the last run took.", "kind", "policy", "stack")
	m.frozen = gauge("last_run_frozen_seconds", "How long services stood still during the last backup.", "policy", "stack")
	m.warnings = gauge("last_run_warnings", "Warnings of the last run.", "kind", "policy", "stack")
	m.runs = counter("runs_total", "Runs, by how they ended.", "kind", "policy", "stack", "outcome")
	m.read = counter("read_bytes_total", "Bytes read from volumes.", "stack", "volume")
	m.stored = counter("stored_bytes_total", "Bytes written to targets.", "stack", "volume")
	m.snapshots = gauge("snapshots", "Complete snapshots on the target.", "stack", "target")
	m.repository = gauge("repository_bytes", "Bytes that the snapshots of the stack need on the target.", "stack", "target")
	m.newest = gauge("newest_snapshot_timestamp_seconds", "When the newest complete snapshot on the target was taken.", "stack", "target")
	m.next = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "backupd", Name: "next_run_timestamp_seconds", Help: "When the next run is due; 0 where none is."})
	m.seeded = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "backupd", Name: "ready", Help: "1 when the volumes are seeded and the schedule is kept."})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "backupd", Name: "build_info", Help: "1, with the version."}, []string{"version"})
	m.registry.MustRegister(m.next, m.seeded, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build.WithLabelValues(version).Set(1)
	for i := range past {
		m.Observe(&past[i])
	}
	return m
}

// Observe counts a run that has ended.
func (m *Metrics) Observe(r *runs.Run) {
	kind, end := string(r.Kind), seconds(r.Finished)
	m.runs.WithLabelValues(kind, r.Policy, r.Stack, string(r.Outcome)).Inc()
	m.lastRun.WithLabelValues(kind, r.Policy, r.Stack).Set(end)
	m.duration.WithLabelValues(kind, r.Policy, r.Stack).Set(r.Took().Seconds())
	warnings := len(r.Warnings)
	for _, v := range r.Volumes {
		warnings += int(v.Warnings)
		m.read.WithLabelValues(r.Stack, v.Name).Add(float64(v.Read))
		m.stored.WithLabelValues(r.Stack, v.Name).Add(float64(v.Stored))
	}
	m.warnings.WithLabelValues(kind, r.Policy, r.Stack).Set(float64(warnings))
	if r.Outcome != runs.Interrupted { // a restart of the machine is no failure
		good := 0.
		if r.Outcome.Good() {
			good = 1
		}
		m.lastGood.WithLabelValues(kind, r.Policy, r.Stack).Set(good)
	}
	if !r.Outcome.Good() {
		return
	}
	switch r.Kind {
	case runs.Backup:
		m.frozen.WithLabelValues(r.Policy, r.Stack).Set(r.Frozen)
		for _, v := range r.Volumes {
			m.lastSuccess.WithLabelValues(r.Stack, v.Name).Set(end)
		}
	case runs.Drill:
		m.lastDrill.WithLabelValues(r.Stack).Set(end)
	}
}

// Repository says what a stack has on a target: how many complete snapshots,
// the bytes that they need, and when the newest was taken.
func (m *Metrics) Repository(stack, target string, snapshots int, bytes int64, newest time.Time) {
	m.snapshots.WithLabelValues(stack, target).Set(float64(snapshots))
	m.repository.WithLabelValues(stack, target).Set(float64(bytes))
	if !newest.IsZero() {
		m.newest.WithLabelValues(stack, target).Set(seconds(newest))
	}
}

// Next says when the next run is due; the zero time for never.
func (m *Metrics) Next(t time.Time) {
	if t.IsZero() {
		m.next.Set(0)
		return
	}
	m.next.Set(seconds(t))
}

// Ready says whether the volumes are seeded and the schedule is kept.
func (m *Metrics) Ready(yes bool) {
	if yes {
		m.seeded.Set(1)
		return
	}
	m.seeded.Set(0)
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// Handler answers /metrics; /healthz, which says whether the process is well;
// and /readyz, which says whether it is ready for dependents. The two functions return what is wrong, or nil.
func (m *Metrics) Handler(healthy, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	answer := func(check func() error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write([]byte(err.Error() + "\n"))
				return
			}
			_, _ = w.Write([]byte("ok\n"))
		}
	}
	mux.HandleFunc("GET /healthz", answer(healthy))
	mux.HandleFunc("GET /readyz", answer(ready))
	return mux
}
