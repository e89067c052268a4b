package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// command is what to run.
type command struct {
	args []string
	dir  string
	env  []string // on top of this process's
}

// shell is a command line for bash, in which "$1" and so on are args.
func shell(line string, args ...string) command {
	return command{args: append([]string{"bash", "-c", "set -o pipefail; " + line, "bash"}, args...)}
}

// cost is what a command took, with all its children.
type cost struct {
	Wall, User, Sys time.Duration
	RSS             int64 // the largest process's peak, in bytes
}

func (c cost) cpu() time.Duration { return c.User + c.Sys }

// measureArg makes this program run and measure a command. Linux hands the
// peak memory of the process that forks down to the child that it becomes, so
// the bench, which may have grown large, must not start the measured one itself.
const measureArg = "measure-child"

// maxCommand bounds one command.
const maxCommand = 15 * time.Minute

func measureChild(args []string) int {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	report := os.NewFile(3, "report")
	defer report.Close()
	c := cost{Wall: wall, User: cmd.ProcessState.UserTime(), Sys: cmd.ProcessState.SystemTime(), RSS: usage.Maxrss << 10}
	if json.NewEncoder(report).Encode(c) != nil {
		return 126
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	fmt.Fprintln(os.Stderr, err)
	return 125
}

// measure runs a command to its end.
func (b *bench) measure(ctx context.Context, c command) (cost, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, maxCommand)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return cost{}, nil, err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, b.self, append([]string{measureArg}, c.args...)...)
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), c.env...)
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	_ = w.Close()
	if err != nil {
		return cost{}, nil, fmt.Errorf("%s: %w\n%s", strings.Join(c.args, " "), err, tail(stderr.Bytes(), 2000))
	}
	var got cost
	if err := json.NewDecoder(io.LimitReader(r, 4096)).Decode(&got); err != nil {
		return cost{}, nil, fmt.Errorf("%s: it was not measured: %w", c.args[0], err)
	}
	return got, stdout.Bytes(), nil
}

func tail(b []byte, n int) []byte { return b[max(len(b)-n, 0):] }

// side is one of the programs that a row compares.
type side struct {
	name string
	// before prepares a round; its time does not count.
	before func(ctx context.Context, round int) error
	run    func(round int) command
	// after looks at what a round left; its time does not count.
	after func(ctx context.Context, round int, stdout []byte) error
}

// series are the costs of one side, a round each.
type series []cost

func (s series) wall() time.Duration {
	return median(s, func(c cost) time.Duration { return c.Wall })
}
func (s series) cpu() time.Duration { return median(s, cost.cpu) }
func (s series) min() time.Duration {
	return slices.MinFunc(s, func(a, b cost) int { return int(a.Wall - b.Wall) }).Wall
}

func (s series) rss() int64 {
	var most int64
	for _, c := range s {
		most = max(most, c.RSS)
	}
	return most
}

func median[T any, N int64 | float64 | time.Duration](all []T, value func(T) N) N {
	values := make([]N, len(all))
	for i, v := range all {
		values[i] = value(v)
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// alternate runs all sides in turn, rounds times. Before each it writes back
// what others left dirty, so that nobody pays for it.
func (b *bench) alternate(ctx context.Context, what string, rounds int, sides []side) ([]series, error) {
	all := make([]series, len(sides))
	for round := range rounds {
		for i, s := range sides {
			if s.before != nil {
				if err := s.before(ctx, round); err != nil {
					return nil, fmt.Errorf("prepare %s: %w", s.name, err)
				}
			}
			syscall.Sync()
			c, stdout, err := b.measure(ctx, s.run(round))
			if err != nil {
				return nil, err
			}
			b.note("%s: %s: %.2f s, CPU %.2f s, %d MiB", what, s.name, c.Wall.Seconds(), c.cpu().Seconds(), c.RSS>>20)
			all[i] = append(all[i], c)
			if s.name == b.ours.name {
				b.peaks = append(b.peaks, peak{what, c.RSS})
			}
			if s.after != nil {
				if err := s.after(ctx, round, stdout); err != nil {
					return nil, err
				}
			}
		}
	}
	return all, nil
}

// peak is the memory that backupd took for something.
type peak struct {
	what string
	rss  int64
}
