package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/teststack"
)

// emptyImage makes an image that holds nothing, for containers that are made and never run.
func emptyImage(t *testing.T) string {
	t.Helper()
	teststack.Engine(t)
	var layer bytes.Buffer
	if err := tar.NewWriter(&layer).Close(); err != nil {
		t.Fatal(err)
	}
	name := "backupd:" + teststack.Unique("test-empty")
	cmd := exec.Command("docker", "import", "-", name)
	cmd.Stdin = &layer
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", name).Run() })
	return name
}

// covering is a stack on a real engine of which the agent alone runs, behind a proxy that
// hides all else on the machine: a service, an agent that has some of its volumes,
// and a house with the agent's target.
type covering struct {
	*house
	project string
}

func newCovering(t *testing.T) *covering {
	t.Helper()
	c := &covering{newHouse(t), teststack.Unique("coverage")}
	image := emptyImage(t)
	// What is removed last is made first.
	t.Cleanup(func() {
		for _, v := range []string{"db", "later", "uploads", "scrap", "state"} {
			_ = exec.Command("docker", "volume", "rm", "-f", c.volumeName(v)).Run()
		}
	})
	for _, v := range []string{"db", "later", "uploads", "scrap", "state"} {
		labels := []string{"--label", "com.docker.compose.project=" + c.project, "--label", "com.docker.compose.volume=" + v}
		if v == "scrap" {
			labels = append(labels, "--label", "backupd.exclude=true")
		}
		teststack.Docker(t, append(append([]string{"volume", "create"}, labels...), c.volumeName(v))...)
	}
	container := func(service, image string, args ...string) {
		name := c.container(service)
		t.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", name).Run() })
		labels := []string{"--label", "com.docker.compose.project=" + c.project, "--label", "com.docker.compose.service=" + service, "--label", "com.docker.compose.container-number=1", "--label", "com.docker.compose.oneoff=False"}
		teststack.Docker(t, slices.Concat([]string{"create", "--name", name, "--network", "none"}, labels, args, []string{image, "sleep", "infinity"})...)
	}
	container("app", image, "-v", c.volumeName("db")+":/db", "-v", c.volumeName("later")+":/later", "-v", c.volumeName("uploads")+":/uploads", "-v", c.volumeName("scrap")+":/scrap")
	container("backup", teststack.Images(t, "base")[0], "--label", "backupd.agent=true", "-e", "BACKUPD_TARGET=/backups", "-e", "BACKUPD_SCHEDULE=@daily", "-v", c.volumeName("db")+":/volumes/db:ro",
		"-v", c.volumeName("later")+":/volumes/later:ro", "-v", c.volumeName("scrap")+":/volumes/scrap:ro", "-v", c.volumeName("state")+":/var/lib/backupd")
	teststack.Docker(t, "start", c.container("backup"))
	c.env = []string{"DOCKER_HOST=" + teststack.NewSocketProxyOf(t, c.project).TCP, "BACKUPD_STACK=" + c.project, "BACKUPD_VOLUME="}
	return c
}

func (c *covering) volumeName(key string) string    { return c.project + "_" + key }
func (c *covering) container(service string) string { return c.project + "-" + service + "-1" }

// tableRows are the lines of a table, with the space between its columns as one.
func tableRows(table string) (out []string) {
	for line := range strings.Lines(table) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return out
}

// states is the first column of a table, its heading included.
func states(table string) string {
	var out []string
	for _, row := range tableRows(table) {
		state, _, _ := strings.Cut(row, " ")
		out = append(out, state)
	}
	return strings.Join(out, " ")
}

func TestCoverageShowsWhatNoSnapshotHolds(t *testing.T) {
	c := newCovering(t)
	c.write(c.volume+"/row", "of a table")
	begin := time.Now()
	id := strings.TrimSpace(c.must("backup", "--volume", "db="+c.volume))

	code, out, errs := c.call("coverage")
	app, agent := c.project+"/app", c.container("backup")
	want := []string{
		"STATE STACK VOLUME DRIVER LAST SNAPSHOT AGE AGENT SERVICES",
		"covered " + c.project + " " + c.volumeName("db") + " local " + id[:8] + " now " + agent + " " + app,
		"never " + c.project + " " + c.volumeName("later") + " local - - " + agent + " " + app,
		"excluded " + c.project + " " + c.volumeName("scrap") + " local - - - " + app,
		"own " + c.project + " " + c.volumeName("state") + " local - - - -",
		"uncovered " + c.project + " " + c.volumeName("uploads") + " local - - - " + app,
	}
	if got := tableRows(out); code != exitWarnings || !slices.Equal(got, want) {
		t.Errorf("it exited with %d and printed\n%s\nwant %d and\n%s", code, strings.Join(got, "\n"), exitWarnings, strings.Join(want, "\n"))
	}
	if errs != "backupd: 2 of 5 volumes have no backup that can be relied on\n" {
		t.Errorf("it said %q", errs)
	}

	code, out, _ = c.call("coverage", "--json")
	var rows []covered
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 5 || code != exitWarnings {
		t.Fatalf("--json exited with %d, %v: %s", code, err, out)
	}
	db := rows[0]
	if db.Volume != c.volumeName("db") || db.Key != "db" || db.State != coverOK || db.Snapshot != id || !slices.Equal(db.Agents, []string{agent}) ||
		!slices.Equal(db.Schedule, []string{"@daily"}) || !slices.Equal(db.Services, []string{app}) {
		t.Errorf("the volume with a snapshot: %+v", db)
	}
	if limit := time.Since(begin); db.Taken == nil || db.Taken.Before(begin.Add(-time.Second)) || db.Age < 0 || db.Age > int64(limit/time.Second)+1 {
		t.Errorf("taken at %v, %d s ago; it was taken since %v, and no more than %v ago", db.Taken, db.Age, begin, limit)
	}
	if up := rows[4]; up.Volume != c.volumeName("uploads") || up.State != coverNone || up.Taken != nil || len(up.Agents) > 0 {
		t.Errorf("the volume that no agent has: %+v", up)
	}

	// An age that is too much for the user is said of the volume, and of no other.
	_, out, errs = c.call("coverage", "--max-age", "1ns")
	if got := states(out); got != "STATE old never excluded own uncovered" || !strings.Contains(errs, "3 of 5 volumes") {
		t.Errorf("with --max-age it printed\n%s%s", out, errs)
	}

	// An agent that does not run keeps no schedule.
	teststack.Docker(t, "kill", agent)
	if _, out, _ = c.call("coverage"); states(out) != "STATE stopped stopped excluded own uncovered" {
		t.Errorf("of an agent that does not run it printed\n%s", out)
	}
	teststack.Docker(t, "start", agent)

	// Nothing that lacks a backup: the exit code is that of success.
	code, out, errs = c.call("coverage", "--stack", "another")
	if code != exitDone || out != "" || errs != "backupd: there are no volumes\n" {
		t.Errorf("of a stack that has none: %d %q %q", code, out, errs)
	}
	code, out, _ = c.call("coverage", "--stack", "another", "--json")
	if code != exitDone || out != "[]\n" {
		t.Errorf("of a stack that has none, as JSON: %d %q", code, out)
	}
}

func TestCoverageWithoutATargetSaysThatSnapshotsAreNotLookedFor(t *testing.T) {
	c := newCovering(t)
	c.target = ""
	code, out, errs := c.call("coverage")
	if got := states(out); code != exitWarnings || got != "STATE covered covered excluded own uncovered" {
		t.Errorf("it exited with %d and printed\n%s", code, out)
	}
	if want := "backupd: no target named: snapshots are not looked for; say --target TARGET\nbackupd: 1 of 5 volumes have no backup that can be relied on\n"; errs != want {
		t.Errorf("it said %q, want %q", errs, want)
	}
}

func TestCoverageOfATargetThatCannotBeReachedShowsNoTable(t *testing.T) {
	c := newCovering(t)
	for name, o := range map[string]struct {
		target string
		code   int
		says   string
	}{
		"a directory that is not there": {c.dir + "/nowhere", exitNotFound, `there is no directory .*/nowhere; check the path`},
		"a server that does not answer": {"sftp://user@127.0.0.1:1/backups", exitFailed, `sftp://user@127\.0\.0\.1:1/backups: .*connection refused`},
	} {
		c.target = o.target
		key := c.dir + "/known_hosts"
		c.write(key, "")
		code, out, errs := c.call("coverage", "--outage", "1ms", "--sftp-known-hosts", key)
		if ok := regexp.MustCompile(o.says).MatchString(errs); code != o.code || out != "" || !ok {
			t.Errorf("%s: it exited with %d, want %d, and said %q%q, want %q", name, code, o.code, out, errs, o.says)
		}
	}
}

func TestCoverageWithoutAnEngineSaysWhatToDo(t *testing.T) {
	h := newHouse(t)
	h.env = []string{"DOCKER_HOST=unix://" + h.dir + "/docker.sock"}
	code, out, errs := h.call("coverage")
	if code != exitFailed || out != "" || !strings.HasPrefix(errs, "backupd: coverage looks at the engine's volumes: connect to the Docker engine at unix://") || !strings.Contains(errs, "start it, or mount its socket") {
		t.Errorf("with one that does not answer: %d %q %q", code, out, errs)
	}

	// None is named, and there is none: the machine's own is hidden.
	if os.Geteuid() != 0 {
		t.Skip("needs root, to hide the machine's engine")
	}
	program, err := exec.LookPath("backupd")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs none "$(readlink -f /var/run)" && exec "$@"`, "sh", program, "coverage")
	cmd.Env = append(h.command().Env, "DOCKER_HOST=", "DOCKER_CONTEXT=", "DOCKER_CONFIG="+h.dir, "HOME="+h.dir, "XDG_RUNTIME_DIR=")
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !regexp.MustCompile(`^backupd: coverage looks at the engine's volumes: no Docker engine: .*docker\.sock.*DOCKER_HOST.*\n$`).MatchString(text.String()) {
		t.Errorf("with none: %d %q", code, text.String())
	}
}

func TestWhatAConfigurationFileSaysIsUnknownAndNotUncovered(t *testing.T) {
	now := time.Now()
	fresh, old := &snapshot.Manifest{Finished: now.Add(-time.Hour)}, &snapshot.Manifest{Finished: now.Add(-100 * time.Hour)}
	hold := func(stack, project, name, line string) docker.Holding {
		return docker.Holding{Volume: docker.Volume{Name: name, Key: "db", Project: project}, Stack: stack, Line: line, Maybe: []int{0}}
	}
	for name, tt := range map[string]struct {
		holding docker.Holding
		stopped bool
		last    map[[2]string]*snapshot.Manifest
		want    string
	}{
		"no snapshot":                   {holding: hold("shop", "shop", "shop_db", "shop"), want: coverUnknown},
		"one of the agent's stack":      {holding: hold("shop", "shop", "shop_db", "shop"), last: map[[2]string]*snapshot.Manifest{{"store", "db"}: fresh}, want: coverOK},
		"that is not of this volume":    {holding: hold("wiki", "wiki", "wiki_db", "wiki"), last: map[[2]string]*snapshot.Manifest{{"store", "db"}: fresh}, want: coverUnknown},
		"one of the machine's":          {holding: hold("wiki", "wiki", "wiki_db", "wiki"), last: map[[2]string]*snapshot.Manifest{{"wiki", "db"}: fresh}, want: coverOK},
		"an old one":                    {holding: hold("wiki", "wiki", "wiki_db", "wiki"), last: map[[2]string]*snapshot.Manifest{{"wiki", "db"}: old}, want: coverOld},
		"of an agent that does not run": {holding: hold("wiki", "wiki", "wiki_db", "wiki"), stopped: true, last: map[[2]string]*snapshot.Manifest{{"wiki", "db"}: fresh}, want: coverStopped},
	} {
		c := &docker.Coverage{Agents: []docker.Agent{{Container: "backup", Project: "shop", Stack: "store", Volumes: "mounted", Config: true, Running: !tt.stopped}}, Holdings: []docker.Holding{tt.holding}}
		if rows := judge(c, tt.last, true, 48*time.Hour, now); rows[0].State != tt.want {
			t.Errorf("%s: %s, want %s", name, rows[0].State, tt.want)
		}
	}
}
