// Command bench measures backupd against what its users would run instead: tar
// and zstd, and restic, borg and kopia where they are installed. It makes the
// data sets, runs the sides in turn in one session on the same machine, and
// prints Markdown tables with the ratios that the project promises.
//
// It does not call the engine: it builds the binary and runs it as a user
// would. docs/benchmarks.md says what each row means.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/disko/backupd/internal/testtree"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == measureArg {
		os.Exit(measureChild(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// config is what the flags say. Sizes are in MiB.
type config struct {
	work    string
	out     string
	keep    bool
	binary  string
	rows    []string
	rounds  int
	timeout time.Duration
	peers   []string

	sourceDir   string
	sourceFiles int
	randomSize  int64
	pgScale     int
	pagesSize   int64

	nights      int
	nightsFiles int
	nightsDB    int64
	churn       float64

	scale []int

	freezeScale int
	freezeArgs  []string
	freezeGroup string
}

var allRows = []string{"first", "size", "unchanged", "churn01", "nights", "restore", "scale", "encryption", "s3", "freeze", "memory"}

func parse(args []string) (config, error) {
	var c config
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	rows := f.String("rows", strings.Join(allRows, ","), "which `rows` to run, with commas")
	peers := f.String("peers", "restic,borg,kopia", "which other `programs` to run as well, where they are installed")
	quick := f.Bool("quick", false, "small data sets and one round: shows that everything works, not how fast")
	million := f.Bool("million", false, "take a million files into the rows scale and memory")
	f.StringVar(&c.work, "work", "", "`directory` for data sets and repositories (default: a new one in TMPDIR)")
	f.StringVar(&c.out, "out", "", "`directory` for restored trees (default: the work directory)")
	f.BoolVar(&c.keep, "keep", false, "leave the work directory, and use the data sets that it already holds")
	f.StringVar(&c.binary, "backupd", "", "`path` of the binary to measure (default: builds ./cmd/backupd)")
	f.IntVar(&c.rounds, "n", 3, "`rounds` of each measurement")
	f.DurationVar(&c.timeout, "timeout", time.Hour, "most that all may take")
	f.StringVar(&c.sourceDir, "source-dir", "", "`directory` to take in place of Go's sources, only read")
	f.IntVar(&c.sourceFiles, "source-files", 23000, "`files` of the generated sources, about 21 KiB each")
	f.Int64Var(&c.randomSize, "incompressible", 1024, "`MiB` of incompressible files")
	f.IntVar(&c.pgScale, "pg-scale", 92, "`scale` of pgbench, about 15 MiB each and 200 MiB of log")
	f.Int64Var(&c.pagesSize, "pages", 1536, "`MiB` of generated pages where PostgreSQL is not installed")
	f.IntVar(&c.nights, "nights", 90, "simulated `nights`")
	f.IntVar(&c.nightsFiles, "nights-files", 5000, "small `files` in the row nights")
	f.Int64Var(&c.nightsDB, "nights-db", 64, "`MiB` of database pages in the row nights")
	f.Float64Var(&c.churn, "nights-churn", 0.01, "`fraction` of files, and of pages, that changes each night")
	f.IntVar(&c.freezeScale, "freeze-scale", 92, "`scale` of pgbench in the row freeze, about 15 MiB each and up to 1 GiB of log")
	f.StringVar(&c.freezeGroup, "freeze-cgroup", "", "parent `cgroup` of the row freeze's containers, where the bench is in it as well: on a busy machine both sides then get the same share of it")
	freezeArgs := f.String("freeze-args", "", "`flags` of backupd backup in the row freeze, as in \"--freeze-memory 1g\"")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	c.scale = []int{10_000, 100_000}
	if *million {
		c.scale = append(c.scale, 1_000_000)
	}
	if *quick {
		c.rounds, c.sourceFiles, c.randomSize, c.pgScale, c.pagesSize = 1, 1500, 64, 3, 64
		c.nights, c.nightsFiles, c.nightsDB = 20, 400, 8
		c.scale = []int{1000, 10_000}
		c.freezeScale = 5
	}
	c.freezeArgs = strings.Fields(*freezeArgs)
	c.rows, c.peers = strings.Split(*rows, ","), strings.Split(*peers, ",")
	for _, row := range c.rows {
		if !slices.Contains(allRows, row) {
			return c, fmt.Errorf("no row %q; there are %s", row, strings.Join(allRows, ","))
		}
	}
	if f.NArg() > 0 || c.rounds < 1 || c.nights < 1 || c.sourceFiles < 1 || c.nightsFiles < 1 {
		return c, errors.New("arguments that make no sense; see -help")
	}
	return c, nil
}

// bench is one session.
type bench struct {
	config
	self  string // this program, which measures children for itself
	ours  tool
	tools []tool // the peers that are installed
	sets  map[string]*set
	peaks []peak
	later []string // to be removed when nothing is measured
	start time.Time
}

func run(ctx context.Context, args []string) (err error) {
	c, err := parse(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	b := &bench{config: c, sets: map[string]*set{}, start: time.Now()}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.work != "" {
		if err := os.MkdirAll(b.work, 0o755); err != nil {
			return err
		}
	}
	// What is removed at the end is never a directory that was there before.
	if !b.keep || b.work == "" {
		if b.work, err = os.MkdirTemp(b.work, "backupd-bench-"); err != nil {
			return err
		}
	}
	if b.work, err = filepath.Abs(b.work); err != nil {
		return err
	}
	// PostgreSQL runs as its own user and must get through.
	if err := os.Chmod(b.work, 0o711); err != nil {
		return err
	}
	if !b.keep {
		defer func() {
			_ = testtree.MakeRemovable(b.work)
			err = errors.Join(err, os.RemoveAll(b.work))
		}()
	}
	if b.binary == "" {
		b.binary = filepath.Join(b.work, "backupd")
		b.note("building %s", b.binary)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", b.binary, "github.com/disko/backupd/cmd/backupd")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build backupd: %w\n%s", err, out)
		}
	} else if b.binary, err = filepath.Abs(b.binary); err != nil {
		return err
	}
	b.ours = backupd(b.binary)
	b.tools = installed(b.peers)

	b.header(ctx)
	for _, row := range allRows {
		if !slices.Contains(b.rows, row) {
			continue
		}
		b.note("row %s", row)
		if err := b.row(ctx, row); err != nil {
			return fmt.Errorf("row %s: %w", row, err)
		}
	}
	b.note("done")
	return nil
}

func (b *bench) row(ctx context.Context, row string) error {
	switch row {
	case "first":
		return b.first(ctx)
	case "size":
		return b.size(ctx)
	case "unchanged":
		return b.unchanged(ctx)
	case "churn01":
		return b.churn01(ctx)
	case "nights":
		return b.nightsRow(ctx)
	case "restore":
		return b.restore(ctx)
	case "scale":
		return b.scaleRow(ctx)
	case "encryption":
		return b.encryption(ctx)
	case "s3":
		return b.s3(ctx)
	case "freeze":
		return b.freeze(ctx)
	}
	return b.memory(ctx)
}

// note tells on stderr what goes on.
func (b *bench) note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}
