package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/disko/backupd/internal/testtree"
)

// set is a tree to back up.
type set struct {
	name  string
	dir   string
	files int
	bytes int64
}

func (s *set) String() string {
	return fmt.Sprintf("%s, %d files, %d MB", s.name, s.files, s.bytes/1e6)
}

// The data sets. Of trees of sources there are two: a real one, and a
// larger one that is the same on every machine.
const (
	source         = "Go's sources"
	generated      = "generated sources"
	incompressible = "incompressible"
	database       = "PostgreSQL"
)

var (
	sourceSets = []string{source, generated}
	mainSets   = []string{source, generated, incompressible, database}
)

// set gives a data set, made when first asked for, with all of it in the page cache.
func (b *bench) set(ctx context.Context, name string) (*set, error) {
	if s := b.sets[name]; s != nil {
		return s, warm(s)
	}
	short := map[string]string{source: "go", generated: "source", incompressible: "incompressible", database: "postgresql"}[name]
	s := &set{name: name, dir: filepath.Join(b.work, "set-"+short)}
	if name == source && b.sourceDir != "" {
		s.name, s.dir = b.sourceDir, b.sourceDir
		b.sets[name] = s
		return s, warm(s)
	}
	made := s.dir + ".made"
	if _, err := os.Stat(made); err != nil {
		b.note("making %s", name)
		if err := os.RemoveAll(s.dir); err != nil {
			return nil, err
		}
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			return nil, err
		}
		if err := b.make(ctx, s); err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		if err := os.WriteFile(made, nil, 0o644); err != nil {
			return nil, err
		}
		syscall.Sync()
		pastRacy()
	}
	if err := warm(s); err != nil {
		return nil, err
	}
	if name == database && !exists(filepath.Join(s.dir, "PG_VERSION")) {
		s.name = "generated pages"
	}
	b.note("%s", s)
	b.sets[name] = s
	return s, nil
}

func (b *bench) make(ctx context.Context, s *set) error {
	switch s.name {
	case source:
		return goSources(ctx, s.dir)
	case generated:
		_, err := testtree.SourceTree(s.dir, b.sourceFiles, 1)
		return err
	case incompressible:
		// Of mixed size: a sixteenth in 16 KiB files, five in 1 MiB, ten in 64 MiB.
		part := b.randomSize << 20 / 16
		return errors.Join(
			testtree.Incompressible(filepath.Join(s.dir, "small"), part, 16<<10, 2),
			testtree.Incompressible(filepath.Join(s.dir, "middle"), 5*part, 1<<20, 3),
			testtree.Incompressible(filepath.Join(s.dir, "large"), 10*part, 64<<20, 4))
	}
	err := postgresql(ctx, s.dir, b.pgScale)
	if err == nil || ctx.Err() != nil {
		return err
	}
	b.note("no PostgreSQL directory, generated pages in its place: %v", err)
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	const parts = 8
	for i := range uint64(parts) {
		if err := testtree.Pages(filepath.Join(s.dir, fmt.Sprintf("table%d", i)), b.pagesSize<<20/parts, 5+i); err != nil {
			return err
		}
	}
	return nil
}

// goSources copies what everybody has who builds Go programs: the sources of
// Go's libraries and commands, and its tests.
func goSources(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find Go's sources: %w; name another tree with -source-dir", err)
	}
	root := strings.TrimSpace(string(out))
	if out, err := exec.CommandContext(ctx, "cp", "-a", filepath.Join(root, "src"), filepath.Join(root, "test"), dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy Go's sources from %s: %w: %s; name another tree with -source-dir", root, err, out)
	}
	return nil
}

// postgresql makes dir the data directory of a PostgreSQL that ran, was filled
// by pgbench and was stopped.
func postgresql(ctx context.Context, dir string, scale int) error {
	bin, err := postgresqlBin()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var as *syscall.Credential // PostgreSQL refuses to run as root
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return err
		}
	}
	sockets, err := os.MkdirTemp("", "pg") // a socket's path must be short
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(sockets) }()
	if err := os.Chmod(sockets, 0o777); err != nil {
		return err
	}
	do := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
		cmd.Dir = sockets
		cmd.Env = append(os.Environ(), "LC_ALL=C", "PGHOST="+sockets, "PGUSER=postgres")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
		// The server that pg_ctl starts keeps its output open: no pipe, nobody waits.
		log, err := os.OpenFile(filepath.Join(sockets, "log"), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o666)
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			out, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s: %w: %s", name, err, tail(out, 1000))
		}
		return nil
	}
	if err := do("initdb", "-D", dir, "-A", "trust", "-U", "postgres", "--no-sync"); err != nil {
		return err
	}
	options := "-c listen_addresses= -c fsync=off -c max_wal_size=192MB -c min_wal_size=80MB -c unix_socket_directories=" + sockets
	if err := do("pg_ctl", "-D", dir, "-w", "-o", options, "start"); err != nil {
		return err
	}
	err = do("pgbench", "-q", "-i", "-s", strconv.Itoa(scale), "postgres")
	return errors.Join(err, do("pg_ctl", "-D", dir, "-w", "-m", "fast", "stop"))
}

// postgresqlBin is the directory with all of its programs: Debian's newest, or that in PATH.
func postgresqlBin() (string, error) {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	slices.Sort(bins)
	slices.Reverse(bins)
	if path, err := exec.LookPath("initdb"); err == nil {
		bins = append(bins, filepath.Dir(path))
	}
	for _, bin := range bins {
		if exists(filepath.Join(bin, "initdb")) && exists(filepath.Join(bin, "pg_ctl")) && exists(filepath.Join(bin, "pgbench")) {
			return bin, nil
		}
	}
	return "", errors.New("it is not installed, or without pgbench")
}

// tiny makes count files of 100 to 900 bytes, 250 to a directory.
func (b *bench) tiny(ctx context.Context, count int) (*set, error) {
	s := &set{name: fmt.Sprintf("%d tiny files", count), dir: filepath.Join(b.work, fmt.Sprintf("set-tiny-%d", count)), files: count}
	if err := os.RemoveAll(s.dir); err != nil {
		return nil, err
	}
	b.note("making %s", s.name)
	text := make([]byte, 0, 64<<10)
	for i := 0; len(text) < 60<<10; i++ {
		text = fmt.Appendf(text, "key%d = value %x\n", i, uint32(i)*2654435761)
	}
	sub := ""
	for i := range count {
		if i%250 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			sub = filepath.Join(s.dir, fmt.Sprintf("%03d", i/250/100), fmt.Sprintf("%02d", i/250%100))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return nil, err
			}
		}
		size := 100 + i*7919%800
		at := i * 104729 % (len(text) - size - 20)
		data := append(strconv.AppendInt(nil, int64(i), 10), text[at:at+size]...)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("item-%07d.conf", i)), data, 0o644); err != nil {
			return nil, err
		}
		s.bytes += int64(len(data))
	}
	syscall.Sync()
	pastRacy()
	return s, nil
}

// pastRacy waits until no file is so young that its times cannot be trusted:
// backupd reads files again that changed within 3 s before the last run.
func pastRacy() { time.Sleep(3500 * time.Millisecond) }

// warm reads all of a set once, and counts it.
func warm(s *set) error {
	s.files, s.bytes = 0, 0
	buf := make([]byte, 1<<20)
	return filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		s.files++
		s.bytes += n
		return err
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
