package metrics

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/runs"
)

const monitoring = "../../configs/monitoring"

// exported returns the names of all metrics that an agent has, once things happened.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	at := time.Unix(1e9, 0)
	m := New("dev", []runs.Run{
		{Kind: runs.Backup, Outcome: runs.Done, Volumes: []runs.Volume{{Name: "db"}}, Finished: at},
		{Kind: runs.Drill, Outcome: runs.Done, Finished: at},
	})
	m.Repository("shop", "/backups", 1, 1, at)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "backupd_") { // the rest are of Go and of the process
			names[f.GetName()] = true
		}
	}
	return names
}

var metricName = regexp.MustCompile(`\bbackupd_[a-z_]+\b`)

func TestRulesDashboardAndDocumentationNameMetricsThatThereAre(t *testing.T) {
	names := exported(t)
	for _, file := range []string{
		filepath.Join(monitoring, "alerts.yaml"), filepath.Join(monitoring, "alerts_test.yaml"),
		filepath.Join(monitoring, "grafana-dashboard.json"), "../../docs/monitoring.md",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		used := metricName.FindAllString(string(text), -1)
		if len(used) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, n := range used {
			if !names[n] {
				t.Errorf("%s names %s, which there is not", file, n)
			}
		}
		if !strings.HasSuffix(file, ".md") {
			continue
		}
		for n := range names {
			if !strings.Contains(string(text), "`"+n) {
				t.Errorf("%s does not say what %s is", file, n)
			}
		}
	}
}

// TestPrometheusTakesTheRules checks the rules with Prometheus' own tool, and
// that they fire when they should.
func TestPrometheusTakesTheRules(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing; .ci/run installs Debian's prometheus")
		}
		t.Skip("needs promtool, from Debian's prometheus")
	}
	for _, args := range [][]string{
		{"check", "config", "prometheus.yaml"}, {"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"},
	} {
		cmd := exec.Command(tool, args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// Its queries are checked as rules, whose language is the same.
	var board struct {
		Panels []struct {
			ID      int
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	data, err := os.ReadFile(filepath.Join(monitoring, "grafana-dashboard.json"))
	if err == nil {
		err = json.Unmarshal(data, &board)
	}
	if err != nil || len(board.Panels) == 0 {
		t.Fatalf("the dashboard has %d panels, %v", len(board.Panels), err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	seen := map[int]bool{}
	for _, p := range board.Panels {
		if seen[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d stands twice, or outside of the page", p.ID)
		}
		seen[p.ID] = true
		for _, q := range p.Targets {
			rules = append(rules, rule{"a:b", strings.ReplaceAll(q.Expr, "$stack", ".*")})
		}
	}
	queries, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "queries.json") // JSON is YAML
	if err := os.WriteFile(file, queries, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "check", "rules", "--lint=none", file).CombinedOutput(); err != nil {
		t.Errorf("the dashboard's queries: %v\n%s", err, out)
	}
}
