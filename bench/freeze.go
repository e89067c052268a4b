package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What the project promises of a service under load: seconds, and the share of
// what stop-copy-start takes.
const (
	aimFrozen      = 2.0
	aimFrozenShare = 0.05
)

const (
	freezeImage = "backupd-test/postgres"
	freezeData  = "/var/lib/postgresql/data"
	// maxStep bounds what should be quick.
	maxStep = 3 * time.Minute
)

// load is what pgbench does meanwhile.
type load struct {
	name string
	args string
}

var loads = []load{
	{"50 transactions/s", "-c 4 -R 50"},
	{"full speed, 4 clients", "-c 4"},
}

// standstill is one backup, seen by the service.
type standstill struct {
	stopped time.Duration // from when it was told to stand still until it went on
	ready   time.Duration // until PostgreSQL answers again; 0 where it was not asked
	gap     time.Duration // the longest time in which no client's transaction ended
	wall    time.Duration // the whole backup
	tps     float64       // of the load, meanwhile
}

// freezer is the stack that the row freeze measures: one database, and what
// works on it.
type freezer struct {
	b       *bench
	project string
	image   string // backupd's
	logs    string // directory of pgbench's logs
	n       int
}

// freeze: how long a PostgreSQL under load stands still while it is backed up,
// and while it is stopped, copied and started.
func (b *bench) freeze(ctx context.Context) (err error) {
	if err := freezeParts(ctx); err != nil {
		b.note("row freeze is left out: %v", err)
		fmt.Printf("\nThe row `freeze` is left out: %v.\n", err)
		return nil
	}
	f := &freezer{b: b, project: fmt.Sprintf("backupd-bench-%d", os.Getpid()), logs: b.dir("pgbench")}
	defer func() { err = errors.Join(err, f.remove(context.WithoutCancel(ctx))) }()
	if err := f.build(ctx); err != nil {
		return err
	}
	b.note("filling PostgreSQL, scale %d", b.freezeScale)
	if err := f.fill(ctx); err != nil {
		return err
	}
	size, err := stored(f.directory(ctx))
	if err != nil {
		return err
	}
	copied := map[string][]standstill{}
	taken := map[string][]standstill{}
	for range b.rounds {
		for _, l := range loads {
			if err := f.copyRound(ctx, l, copied); err != nil {
				return err
			}
			for _, act := range []string{"pause", "stop"} {
				if err := f.backupRound(ctx, l, act, taken); err != nil {
					return err
				}
			}
		}
	}
	title(fmt.Sprintf("How long a PostgreSQL under load stands still, %s MB", megabytes(size)), "load", "side", "min s", "median s", "most s",
		"longest gap for clients s", "whole backup s", "transactions/s", "backupd ÷ stop-copy-start", "by gap", "aim", "verdict")
	for _, l := range loads {
		leader := copied[l.name]
		f.line(l.name, "stop, tar | zstd, start", leader, nil)
		for _, act := range []string{"pause", "stop"} {
			for _, which := range []string{"first", "next"} {
				f.line(l.name, fmt.Sprintf("backupd, %s, %s backup", act, which), taken[l.name+act+which], leader)
			}
		}
	}
	return f.check(ctx)
}

// freezeParts says what is missing.
func freezeParts(ctx context.Context) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return errors.New("there is no docker")
	}
	if out, err := exec.CommandContext(ctx, "docker", "version").CombinedOutput(); err != nil {
		return fmt.Errorf("no engine answers: %s", lastLine(out))
	}
	if exec.CommandContext(ctx, "docker", "image", "inspect", freezeImage).Run() != nil {
		return fmt.Errorf("there is no image %s; test/images postgres makes it", freezeImage)
	}
	if os.Geteuid() != 0 {
		return errors.New("stop-copy-start reads the volume's directory, which takes root")
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

func (f *freezer) docker(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, maxCommand)
	defer cancel()
	if args[0] == "run" && f.b.freezeGroup != "" {
		args = append([]string{"run", "--cgroup-parent", f.b.freezeGroup}, args[1:]...)
	}
	cmd := exec.CommandContext(ctx, "docker", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, tail(stderr.Bytes(), 2000))
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (f *freezer) name(of string) string { return f.project + "-" + of }

// build makes an image of the binary that is measured.
func (f *freezer) build(ctx context.Context) error {
	if err := os.MkdirAll(f.logs, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(f.logs, 0o777); err != nil { //nolint:gosec // pgbench's user writes there
		return err
	}
	dir := f.b.dir("image")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	binary, err := os.ReadFile(f.b.binary)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "backupd"), binary, 0o755) //nolint:gosec // a program
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY backupd /backupd\nENTRYPOINT [\"/backupd\"]\n"), 0o600)
	}
	if err != nil {
		return err
	}
	f.image = f.project
	if _, err := f.docker(ctx, "build", "-q", "-t", f.image, dir); err != nil {
		return err
	}
	for _, v := range []string{"data", "state", "backups", "run", "restored"} {
		if _, err := f.docker(ctx, "volume", "create", "--label", "com.docker.compose.project="+f.project, "--label", "com.docker.compose.volume="+v, f.name(v)); err != nil {
			return err
		}
	}
	return nil
}

// remove takes away all that the row made.
func (f *freezer) remove(ctx context.Context) error {
	f.unload(ctx)
	ids, err := f.docker(ctx, "ps", "-aq", "--filter", "label=com.docker.compose.project="+f.project)
	if err == nil && ids != "" {
		_, err = f.docker(ctx, append([]string{"rm", "-fv"}, strings.Fields(ids)...)...)
	}
	vols, verr := f.docker(ctx, "volume", "ls", "-q", "--filter", "label=com.docker.compose.project="+f.project)
	if verr == nil && vols != "" {
		_, verr = f.docker(ctx, append([]string{"volume", "rm"}, strings.Fields(vols)...)...)
	}
	if f.image != "" {
		_, ierr := f.docker(ctx, "image", "rm", "-f", f.image)
		verr = errors.Join(verr, ierr)
	}
	return errors.Join(err, verr)
}

// labels are Compose's, of a service.
func (f *freezer) labels(service string) []string {
	return []string{
		"--label", "com.docker.compose.project=" + f.project, "--label", "com.docker.compose.service=" + service,
		"--label", "com.docker.compose.container-number=1", "--label", "com.docker.compose.oneoff=False",
	}
}

// database starts PostgreSQL on a volume, as Compose would, and waits until it answers.
func (f *freezer) database(ctx context.Context, service, volume, socket string, more ...string) error {
	if _, err := f.docker(ctx, "rm", "-fv", f.name(service)); err != nil {
		return err
	}
	args := append([]string{"run", "-d", "--name", f.name(service), "--network", "none", "-e", "POSTGRES_PASSWORD=bench", "-v", volume + ":" + freezeData}, f.labels(service)...)
	if socket != "" {
		args = append(args, "-v", socket+":/var/run/postgresql")
	}
	if _, err := f.docker(ctx, append(append(args, more...), freezeImage)...); err != nil {
		return err
	}
	_, err := f.ready(ctx, service)
	return err
}

// ready waits until PostgreSQL answers queries, and says how long that took.
func (f *freezer) ready(ctx context.Context, service string) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, maxStep)
	defer cancel()
	for {
		// The first start of all has a server for a while that listens on no address.
		_, err := f.docker(ctx, "exec", f.name(service), "bash", "-c", `grep -qx postgres /proc/1/comm && psql -U postgres -qtc "select 1"`)
		if err == nil {
			return time.Since(began), nil
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("wait until PostgreSQL answers: %w", err)
		}
	}
}

// inDB runs a program in the database's container.
func (f *freezer) inDB(ctx context.Context, service string, args ...string) (string, error) {
	return f.docker(ctx, append([]string{"exec", "-u", "postgres", f.name(service)}, args...)...)
}

func (f *freezer) fill(ctx context.Context) error {
	if err := f.database(ctx, "db", f.name("data"), f.name("run")); err != nil {
		return err
	}
	_, err := f.inDB(ctx, "db", "pgbench", "-q", "-i", "-s", strconv.Itoa(f.b.freezeScale), "postgres")
	return err
}

// directory is where the engine keeps the data.
func (f *freezer) directory(ctx context.Context) string {
	dir, _ := f.docker(ctx, "volume", "inspect", "-f", "{{.Mountpoint}}", f.name("data"))
	return dir
}

// start runs the database with a way to make it stand still, and the load on it.
func (f *freezer) start(ctx context.Context, l load, act string) error {
	if _, err := f.docker(ctx, "stop", "-t", "60", f.name("db")); err != nil {
		return err
	}
	if err := f.database(ctx, "db", f.name("data"), f.name("run"), "--label", "backupd.quiesce="+act); err != nil {
		return err
	}
	f.n++
	// Clients of their own container, so that they see what a client sees. pgbench
	// ends when its connections do; clients connect again.
	line := fmt.Sprintf(`cd /logs && while :; do pgbench -n -h /var/run/postgresql -U postgres %s -T 3600 --log --log-prefix=%d postgres >/dev/null 2>&1; sleep 0.02; done`, l.args, f.n)
	args := append([]string{"run", "-d", "--name", f.name("load"), "--network", "none", "--user", "postgres", "--init"}, f.labels("load")...)
	args = append(args, "-v", f.name("run")+":/var/run/postgresql", "-v", f.logs+":/logs", "--entrypoint", "bash", freezeImage, "-c", line)
	if _, err := f.docker(ctx, args...); err != nil {
		return err
	}
	return f.loggedAfter(ctx, time.Now().Add(3*time.Second))
}

func (f *freezer) unload(ctx context.Context) {
	_, _ = f.docker(ctx, "rm", "-fv", f.name("load"))
}

// loggedAfter waits until the log has a transaction that ended after that time:
// then it has all that ended before. pgbench writes it by the page.
func (f *freezer) loggedAfter(ctx context.Context, t time.Time) error {
	deadline := time.Now().Add(maxStep)
	for {
		ends, err := f.transactions()
		if err != nil {
			return err
		}
		if len(ends) > 0 && ends[len(ends)-1].After(t) {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("pgbench's clients get no transaction through")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// transactions are when the present load's transactions ended, in order.
func (f *freezer) transactions() ([]time.Time, error) {
	files, err := filepath.Glob(filepath.Join(f.logs, fmt.Sprintf("%d.*", f.n)))
	if err != nil {
		return nil, err
	}
	var ends []time.Time
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(data) {
			// client, number, latency, script, seconds, microseconds, and with -R the lag
			w := bytes.Fields(line)
			if len(w) < 6 || line[len(line)-1] != '\n' {
				continue
			}
			sec, err := strconv.ParseInt(string(w[4]), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("pgbench's log %s: %w", file, err)
			}
			usec, err := strconv.ParseInt(string(w[5]), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("pgbench's log %s: %w", file, err)
			}
			ends = append(ends, time.Unix(sec, usec*1000))
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	return ends, nil
}

// seen completes what the clients saw between two times.
func (f *freezer) seen(ctx context.Context, s *standstill, from, to time.Time) error {
	if err := f.loggedAfter(ctx, to); err != nil {
		return err
	}
	ends, err := f.transactions()
	if err != nil {
		return err
	}
	n := 0
	for i := 1; i < len(ends); i++ {
		if ends[i].Before(from) || ends[i-1].After(to) {
			continue
		}
		n++
		s.gap = max(s.gap, ends[i].Sub(ends[i-1]))
	}
	s.wall = to.Sub(from)
	s.tps = float64(n) / s.wall.Seconds()
	return nil
}

// copyRound stops the database, copies it and starts it, as the leader does it.
func (f *freezer) copyRound(ctx context.Context, l load, into map[string][]standstill) error {
	if err := f.start(ctx, l, "none"); err != nil {
		return err
	}
	defer f.unload(context.WithoutCancel(ctx))
	out := f.b.dir("leader.tar.zst")
	defer os.Remove(out)
	var s standstill
	from := time.Now()
	if _, err := f.docker(ctx, "stop", f.name("db")); err != nil {
		return err
	}
	if _, _, err := f.b.measure(ctx, shell(tarZstd, f.directory(ctx), out)); err != nil {
		return err
	}
	if _, err := f.docker(ctx, "start", f.name("db")); err != nil {
		return err
	}
	s.stopped = time.Since(from)
	if _, err := f.ready(ctx, "db"); err != nil {
		return err
	}
	s.ready = time.Since(from)
	if err := f.seen(ctx, &s, from, time.Now()); err != nil {
		return err
	}
	f.b.note("freeze: %s: stop-copy-start: %.2f s, %.2f s until it answered, gap %.2f s, %.0f tps", l.name, s.stopped.Seconds(), s.ready.Seconds(), s.gap.Seconds(), s.tps)
	into[l.name] = append(into[l.name], s)
	return nil
}

// backupRound takes a first backup and one after it.
func (f *freezer) backupRound(ctx context.Context, l load, act string, into map[string][]standstill) error {
	for _, v := range []string{"state", "backups"} {
		if err := f.empty(ctx, v); err != nil {
			return err
		}
	}
	if err := f.start(ctx, l, act); err != nil {
		return err
	}
	defer f.unload(context.WithoutCancel(ctx))
	for _, which := range []string{"first", "next"} {
		from := time.Now()
		out, err := f.backupd(ctx, []string{"--volume", f.name("data") + ":/volumes/data:ro", "--volume", "/var/run/docker.sock:/var/run/docker.sock"},
			append([]string{"backup", "--json"}, f.b.freezeArgs...)...)
		if err != nil {
			return err
		}
		to := time.Now()
		var sum struct {
			ID      string
			Frozen  float64  `json:"frozen_seconds"`
			Notes   []string `json:"notes"`
			Volumes []struct {
				BytesStored int64 `json:"bytes_stored"`
			}
		}
		if err := json.Unmarshal([]byte(out), &sum); err != nil {
			return fmt.Errorf("what the backup printed: %w: %s", err, out)
		}
		if sum.Frozen == 0 || len(sum.Volumes) != 1 {
			return fmt.Errorf("the database was not frozen: %s", out)
		}
		s := standstill{stopped: time.Duration(sum.Frozen * float64(time.Second))}
		if err := f.seen(ctx, &s, from, to); err != nil {
			return err
		}
		f.b.note("freeze: %s: %s, %s: frozen %.2f s, gap %.2f s, whole backup %.1f s, %s MB stored, %.0f tps", l.name, act, which, s.stopped.Seconds(), s.gap.Seconds(), s.wall.Seconds(), megabytes(sum.Volumes[0].BytesStored), s.tps)
		into[l.name+act+which] = append(into[l.name+act+which], s)
	}
	return nil
}

// backupd runs a command in a container of the image, with the rights of configs/.
func (f *freezer) backupd(ctx context.Context, mounts []string, args ...string) (string, error) {
	run := []string{"run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL"}
	for _, c := range []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"} {
		run = append(run, "--cap-add", c)
	}
	run = append(append(run, f.labels("backup")...), mounts...)
	run = append(run, "--volume", f.name("state")+":/var/lib/backupd", "--volume", f.name("backups")+":/backups", f.image, args[0], "--quiet", "--stack", "bench", "--target", "/backups")
	return f.docker(ctx, append(run, args[1:]...)...)
}

// empty removes all that a volume holds.
func (f *freezer) empty(ctx context.Context, volume string) error {
	_, err := f.docker(ctx, "run", "--rm", "--network", "none", "-v", f.name(volume)+":/v", "--entrypoint", "find", freezeImage, "/v", "-mindepth", "1", "-delete")
	return err
}

// line prints one side.
func (f *freezer) line(loaded, side string, all, leader []standstill) {
	stopped := func(s standstill) time.Duration { return s.stopped }
	gap := func(s standstill) time.Duration { return s.gap }
	mid, longest := median(all, stopped), median(all, gap)
	most := slices.MaxFunc(all, func(a, b standstill) int { return int(a.stopped - b.stopped) }).stopped
	least := slices.MinFunc(all, func(a, b standstill) int { return int(a.stopped - b.stopped) }).stopped
	by, byGap, aim, verdict := "", "", "", ""
	if leader != nil {
		share := mid.Seconds() / median(leader, stopped).Seconds()
		by = fmt.Sprintf("%.3f", share)
		byGap = fmt.Sprintf("%.3f", longest.Seconds()/median(leader, gap).Seconds())
		aim = fmt.Sprintf("≤ %g s, ≤ %g", aimFrozen, aimFrozenShare)
		verdict = "aim met"
		if mid.Seconds() > aimFrozen || share > aimFrozenShare {
			verdict = "**missed**"
		}
	} else {
		side = fmt.Sprintf("%s (answers after %s s)", side, seconds(median(all, func(s standstill) time.Duration { return s.ready })))
	}
	cells(loaded, side, seconds(least), seconds(mid), seconds(most), seconds(longest), seconds(median(all, func(s standstill) time.Duration { return s.wall })),
		fmt.Sprintf("%.0f", median(all, func(s standstill) float64 { return s.tps })), by, byGap, aim, verdict)
}

// check takes a last backup of the database, paused under full load, and looks
// whether what it restores to is whole.
func (f *freezer) check(ctx context.Context) error {
	if err := f.start(ctx, loads[len(loads)-1], "pause"); err != nil {
		return err
	}
	defer f.unload(context.WithoutCancel(ctx))
	if _, err := f.backupd(ctx, []string{"--volume", f.name("data") + ":/volumes/data:ro", "--volume", "/var/run/docker.sock:/var/run/docker.sock"}, "backup", "--json"); err != nil {
		return err
	}
	f.unload(ctx)
	if _, err := f.docker(ctx, "rm", "-fv", f.name("db")); err != nil {
		return err
	}
	if _, err := f.backupd(ctx, []string{"--volume", f.name("restored") + ":/volumes/data"}, "restore", "--volume", "data=/volumes/data"); err != nil {
		return err
	}
	began := time.Now()
	if err := f.database(ctx, "restored", f.name("restored"), ""); err != nil {
		return fmt.Errorf("the restored database: %w", err)
	}
	started := time.Since(began)
	if _, err := f.inDB(ctx, "restored", "pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--jobs=2"); err != nil {
		return fmt.Errorf("the restored database: %w", err)
	}
	// Each transaction adds the same to all four tables.
	sums, err := f.inDB(ctx, "restored", "psql", "-qAt", "-d", "postgres", "-c",
		`select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
		and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)
		and (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_history)`)
	if err != nil {
		return fmt.Errorf("the restored database: %w", err)
	}
	same, rows, _ := strings.Cut(sums, "|")
	if same != "t" {
		return errors.New("the restored database: pgbench's tables do not agree with each other")
	}
	fmt.Printf("\nRestored from a backup taken under full load while paused: PostgreSQL starts in %s s, pg_amcheck --heapallindexed finds nothing, and the sums of pgbench's tables agree over %s transactions.\n", seconds(started), rows)
	return nil
}
