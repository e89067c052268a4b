package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/disko/backupd/internal/testtree"
)

var (
	goalS3First    = goal{must: 1.0, aim: 0.7}
	goalS3Restic   = goal{aim: 0.5}
	goalS3Restore  = goal{must: 1.0}
	goalS3ResticRe = goal{aim: 0.4}
	goalEncryption = goal{must: 1.15}
	goalFarMemory  = goal{must: 256} // MiB
)

const (
	s3Key    = "bench-access"
	s3Secret = "bench-secret-key"
	s3Bucket = "bench"
)

// s3Server is a versitygw with its files in memory, if there is a place for that.
type s3Server struct {
	cmd  *exec.Cmd
	addr string
	dir  string
}

func (b *bench) startS3(ctx context.Context) (*s3Server, error) {
	script, err := filepath.Abs("test/servers")
	if err != nil {
		return nil, err
	}
	b.note("building versitygw, if it is not there yet")
	if out, err := exec.CommandContext(ctx, script, "versitygw").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("test/servers versitygw (run the bench in the checkout): %w\n%s", err, out)
	}
	dir, err := os.MkdirTemp(cmp.Or(b.out, b.work), "bench-s3-")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &s3Server{addr: l.Addr().String(), dir: dir}
	if err := errors.Join(l.Close(), os.MkdirAll(filepath.Join(dir, "data", s3Bucket), 0o755), os.Mkdir(filepath.Join(dir, "meta"), 0o755)); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(".cache/servers/versitygw", "--port", s.addr, "--keep-alive", "--region", "us-east-1", "--quiet", "posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s3Key, "ROOT_SECRET_KEY="+s3Secret)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		res, err := http.Get("http://" + s.addr + "/") //nolint:noctx // loopback; any answer will do
		if err == nil {
			_ = res.Body.Close()
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	s.stop()
	return nil, errors.New("versitygw does not answer")
}

func (s *s3Server) stop() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	_ = os.RemoveAll(s.dir)
}

// empty removes what rounds before left: nothing of it may be paid for later.
func (s *s3Server) empty(prefix string) error {
	return errors.Join(
		os.RemoveAll(filepath.Join(s.dir, "data", s3Bucket, prefix)),
		os.RemoveAll(filepath.Join(s.dir, "meta", s3Bucket, prefix)))
}

// far are the sides of a backup to an S3 server at addr.
type far struct {
	b    *bench
	srv  *s3Server
	addr string
}

func (f far) env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + s3Key, "AWS_SECRET_ACCESS_KEY=" + s3Secret, "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
		"RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_FAR_TYPE=s3", "RCLONE_CONFIG_FAR_PROVIDER=Other", "RCLONE_CONFIG_FAR_ENDPOINT=http://" + f.addr,
		"RCLONE_CONFIG_FAR_ACCESS_KEY_ID=" + s3Key, "RCLONE_CONFIG_FAR_SECRET_ACCESS_KEY=" + s3Secret, "RCLONE_CONFIG_FAR_REGION=us-east-1",
		"AWS_CA_BUNDLE=", "RCLONE_S3_NO_CHECK_BUCKET=true", "RESTIC_PASSWORD=bench", "RESTIC_PROGRESS_FPS=",
	}
}

func (f far) with(c command) command {
	c.env = append(c.env, f.env()...)
	return c
}

// tools are backupd and restic, with their repositories behind addr.
func (f far) tools() []tool {
	ours := f.b.ours
	base := func(dir, verb string) []string {
		return []string{
			f.b.binary, verb, "--target", "s3://" + s3Bucket + "/backupd?endpoint=http://" + f.addr, "--stack", stackName,
			"--state-dir", filepath.Join(dir, "state"), "--quiet",
		}
	}
	all := []tool{{
		name: ours.name,
		init: func(string) []command { return nil },
		backup: func(dir, src string) command {
			return f.with(command{args: append(base(dir, "backup"), "--volume", volumeName+"="+src)})
		},
		restore: func(dir, out string) command {
			return f.with(command{args: append(base(dir, "restore"), "--volume", volumeName+"="+out)})
		},
	}}
	if _, ok := f.b.peer("restic"); ok {
		in := func(dir string, args ...string) command {
			return f.with(command{args: append([]string{"restic", "--quiet", "--repo", "s3:http://" + f.addr + "/" + s3Bucket + "/restic", "--cache-dir", filepath.Join(dir, "cache")}, args...)})
		}
		all = append(all, tool{
			name: "restic",
			init: func(dir string) []command { return []command{in(dir, "init", "--repository-version", "2")} },
			backup: func(dir, src string) command {
				c := in(dir, "backup", "--host", "bench", ".")
				c.dir = src
				return c
			},
			restore: func(dir, out string) command { return in(dir, "restore", "latest", "--target", out) },
		})
	}
	return all
}

const (
	rcat   = `tar -C "$1" -c . | zstd -q -T0 -3 | rclone rcat far:` + s3Bucket + `/rclone/out.tar.zst`
	rcatRe = `rclone cat far:` + s3Bucket + `/rclone/out.tar.zst | zstd -dc | tar -C "$1" -x`
)

// s3 measures backups to an S3 server on loopback, and restores from it, with
// and without latency.
func (b *bench) s3(ctx context.Context) error {
	if _, err := exec.LookPath("rclone"); err != nil {
		return errors.New("rclone is not installed, and it is what this row compares with")
	}
	srv, err := b.startS3(ctx)
	if err != nil {
		return err
	}
	defer srv.stop()
	for _, latency := range []time.Duration{0, 20 * time.Millisecond} {
		f := far{b: b, srv: srv, addr: srv.addr}
		what := "S3 on loopback"
		if latency > 0 {
			line, err := delay(srv.addr, latency, 0)
			if err != nil {
				return err
			}
			defer line.close()
			f.addr, what = line.addr(), fmt.Sprintf("S3 with %v of latency", latency)
		}
		if err := f.first(ctx, what); err != nil {
			return err
		}
		if err := f.restore(ctx, what); err != nil {
			return err
		}
	}
	return b.slowTarget(ctx, srv)
}

// slowRate is in bytes a second for each connection: slower than any disk.
const slowRate = 10 << 20

// slowTarget measures the memory of a backup whose target cannot keep up.
func (b *bench) slowTarget(ctx context.Context, srv *s3Server) error {
	s, err := b.set(ctx, incompressible)
	if err != nil {
		return err
	}
	line, err := delay(srv.addr, 20*time.Millisecond, slowRate)
	if err != nil {
		return err
	}
	defer line.close()
	f := far{b: b, srv: srv, addr: line.addr()}
	t, dir := f.tools()[0], b.dir("far")
	secret := b.dir("passphrase")
	if err := os.WriteFile(secret, []byte("correct horse battery staple"), 0o600); err != nil {
		return err
	}
	title("Peak memory with a target slower than the disk, 10 MiB/s a connection", "data", "side", "seconds", "peak MiB", "must", "verdict")
	for _, extra := range [][]string{nil, {"--passphrase-file", secret}} {
		if err := errors.Join(srv.empty(t.name), b.fresh(ctx, t, dir)); err != nil {
			return err
		}
		c := t.backup(dir, s.dir)
		c.args = slices.Concat(c.args, extra)
		cost, _, err := b.measure(ctx, c)
		if err != nil {
			return err
		}
		name := strings.Join(append([]string{t.name}, extra[:min(len(extra), 1)]...), " ")
		cells(s.String(), name, seconds(cost.Wall), mebibytes(cost.RSS), limit(goalFarMemory.must, ""), goalFarMemory.verdict(float64(cost.RSS>>20)))
	}
	return nil
}

func (f far) first(ctx context.Context, what string) error {
	title("First backup to "+what, speedColumns...)
	for _, name := range mainSets {
		s, err := f.b.set(ctx, name)
		if err != nil {
			return err
		}
		var sides []side
		for _, t := range f.tools() {
			dir := f.b.dir("far")
			sides = append(sides, side{
				name: t.name,
				before: func(ctx context.Context, _ int) error {
					if err := f.srv.empty(t.name); err != nil {
						return err
					}
					return f.b.fresh(ctx, t, dir)
				},
				run: func(int) command { return t.backup(dir, s.dir) },
			})
			if t.name == f.b.ours.name {
				sides = append(sides, side{
					name:   "tar | zstd | rclone rcat",
					before: func(context.Context, int) error { return f.srv.empty("rclone") },
					run:    func(int) command { return f.with(shell(rcat, s.dir)) },
				})
			}
		}
		all, err := f.b.alternate(ctx, "first backup of "+s.name+" to "+what, f.b.rounds, sides)
		if err != nil {
			return err
		}
		printSpeeds(s, sides, all, []goal{{}, goalS3First, goalS3Restic})
	}
	return nil
}

// printSpeeds prints a table's lines; the first side is ours.
func printSpeeds(s *set, sides []side, all []series, goals []goal) {
	for i, side := range sides {
		var ours series
		if i > 0 {
			ours = all[0]
		}
		speed(s.String(), side.name, all[i], ours, 0, goals[i])
	}
}

func (f far) restore(ctx context.Context, what string) error {
	s, err := f.b.set(ctx, source)
	if err != nil {
		return err
	}
	outs, err := os.MkdirTemp(cmp.Or(f.b.out, f.b.work), "far-")
	if err != nil {
		return err
	}
	f.b.later = append(f.b.later, outs)
	defer f.b.clear()
	out := func(name string, round int) string {
		return filepath.Join(outs, fmt.Sprintf("%s-%d", strings.Map(letters, name), round))
	}
	var sides []side
	add := func(name string, run func(out string) command, after func(context.Context, int, []byte) error) {
		sides = append(sides, side{
			name:   name,
			before: func(_ context.Context, round int) error { return os.Mkdir(out(name, round), 0o755) },
			run:    func(round int) command { return run(out(name, round)) },
			after:  after,
		})
	}
	for _, t := range f.tools() {
		dir := f.b.dir("far-" + t.name)
		if err := errors.Join(f.srv.empty(t.name), f.b.fresh(ctx, t, dir)); err != nil {
			return err
		}
		if _, _, err := f.b.measure(ctx, t.backup(dir, s.dir)); err != nil {
			return err
		}
		run := func(out string) command { return t.restore(dir, out) }
		if t.name != f.b.ours.name {
			add(t.name, run, nil)
			continue
		}
		add(t.name, run, func(_ context.Context, round int, _ []byte) error {
			diffs, err := testtree.Diff(s.dir, out(t.name, round), testtree.Options{})
			if err == nil && len(diffs) > 0 {
				err = fmt.Errorf("the restored tree differs:\n%s", strings.Join(diffs[:min(len(diffs), 10)], "\n"))
			}
			return err
		})
		if _, _, err := f.b.measure(ctx, f.with(shell(rcat, s.dir))); err != nil {
			return err
		}
		add("rclone cat | zstd | tar", func(out string) command { return f.with(shell(rcatRe, out)) }, nil)
	}
	all, err := f.b.alternate(ctx, "restore of "+s.name+" from "+what, f.b.rounds, sides)
	if err != nil {
		return err
	}
	title("Restore from "+what, speedColumns...)
	printSpeeds(s, sides, all, []goal{{}, goalS3Restore, goalS3ResticRe})
	return nil
}

// encryption measures what it costs to encrypt.
func (b *bench) encryption(ctx context.Context) error {
	secret := b.dir("passphrase")
	if err := os.WriteFile(secret, []byte("correct horse battery staple"), 0o600); err != nil {
		return err
	}
	title("Encryption: a first backup with it, against one without", "data", "plain s", "encrypted s", "ratio by min", "ratio by median", "ratio of CPU", "must", "verdict")
	for _, name := range mainSets {
		s, err := b.set(ctx, name)
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp(cmp.Or(b.out, b.work), "encryption-")
		if err != nil {
			return err
		}
		var sides []side
		for _, extra := range [][]string{nil, {"--passphrase-file", secret}} {
			sides = append(sides, side{
				name:   strings.Join(append([]string{b.ours.name}, extra[:min(len(extra), 1)]...), " "),
				before: func(ctx context.Context, _ int) error { return b.fresh(ctx, b.ours, dir) },
				run: func(int) command {
					c := b.ours.backup(dir, s.dir)
					c.args = slices.Concat(c.args, extra)
					return c
				},
			})
		}
		all, err := b.alternate(ctx, "encryption of "+s.name, b.rounds, sides)
		if err != nil {
			return err
		}
		ratio := all[1].wall().Seconds() / all[0].wall().Seconds()
		cells(s.String(), seconds(all[0].wall()), seconds(all[1].wall()), fmt.Sprintf("%.2f", all[1].min().Seconds()/all[0].min().Seconds()),
			fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f", all[1].cpu().Seconds()/all[0].cpu().Seconds()), limit(goalEncryption.must, ""), goalEncryption.verdict(ratio))
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
