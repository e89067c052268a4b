package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/disko/backupd/internal/testtree"
)

// What the project promises.
var (
	goalFirst     = goal{must: 1.2, aim: 0.9}
	goalSize      = goal{must: 0.85, aim: 0.75}
	goalUnchanged = goal{must: 0.5}
	goalKopia     = goal{must: 0, aim: 1}
	goalUploaded  = goal{must: 64} // KiB
	goalChurn     = goal{must: 2, aim: 1}
	goalNights    = goal{must: 1.5, aim: 1.1}
	goalRestore   = goal{must: 1, aim: 0.7}
	goalMemory    = goal{must: 192, aim: 128} // MiB
)

const (
	tarZstd = `tar -C "$1" -c . | zstd -q -T0 -3 -f -o "$2"`
	untar   = `zstd -dc "$1" | tar -C "$2" -x`
	// What makes the shell's output as durable as backupd's is before it says so.
	andSync = ` && sync -f "$2"`
)

func (b *bench) dir(parts ...string) string {
	return filepath.Join(append([]string{b.work}, parts...)...)
}

func (b *bench) all() []tool { return append([]tool{b.ours}, b.tools...) }

func (b *bench) peer(name string) (tool, bool) {
	for _, t := range b.tools {
		if t.name == name {
			return t, true
		}
	}
	return tool{}, false
}

// first: the first backup against tar and zstd, and the peers.
func (b *bench) first(ctx context.Context) error {
	title("First backup", speedColumns...)
	for _, name := range mainSets {
		s, err := b.set(ctx, name)
		if err != nil {
			return err
		}
		size := map[string]int64{}
		dir := b.dir("first")
		out := filepath.Join(dir, "out.tar.zst")
		shellSide := func(name, line string) side {
			return side{
				name:   name,
				before: func(context.Context, int) error { return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)) },
				run:    func(int) command { return shell(line, s.dir, out) },
				after: func(context.Context, int, []byte) (err error) {
					size[name], err = stored(out)
					return err
				},
			}
		}
		var sides []side
		for _, t := range b.all() {
			sides = append(sides, side{
				name:   t.name,
				before: func(ctx context.Context, _ int) error { return b.fresh(ctx, t, dir) },
				run:    func(int) command { return t.backup(dir, s.dir) },
				after: func(context.Context, int, []byte) (err error) {
					size[t.name], err = stored(repo(dir))
					return err
				},
			})
			if t.name == b.ours.name { // next to what it is compared with
				sides = append(sides, shellSide("tar | zstd", tarZstd), shellSide("tar | zstd && sync", tarZstd+andSync))
			}
		}
		all, err := b.alternate(ctx, "first backup of "+s.name, b.rounds, sides)
		if err != nil {
			return err
		}
		for i, side := range sides {
			var ours series
			var g goal
			if i > 0 {
				ours = all[0]
			}
			if i == 1 {
				g = goalFirst
			}
			speed(s.String(), side.name, all[i], ours, size[side.name], g)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// size: what a first backup of sources stores, against the peers.
func (b *bench) size(ctx context.Context) error {
	title("Stored size of sources", "data", "side", "stored MB", "backupd ÷ it", "must", "aim", "verdict")
	for _, name := range sourceSets {
		s, err := b.set(ctx, name)
		if err != nil {
			return err
		}
		if err := b.sizeOf(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) sizeOf(ctx context.Context, s *set) error {
	var ours int64
	for _, t := range b.all() {
		dir := b.dir("size")
		if err := b.fresh(ctx, t, dir); err != nil {
			return err
		}
		if _, _, err := b.measure(ctx, t.backup(dir, s.dir)); err != nil {
			return err
		}
		n, err := stored(repo(dir))
		if err != nil {
			return err
		}
		if t.name == b.ours.name {
			ours = n
			cells(s.String(), t.name, megabytes(n), "", "", "", "")
			continue
		}
		var g goal
		if t.name == "restic" {
			g = goalSize
		}
		ratio := float64(ours) / float64(n)
		cells(s.String(), t.name, megabytes(n), fmt.Sprintf("%.2f", ratio), limit(g.must, ""), limit(g.aim, ""), g.verdict(ratio))
	}
	// Where one zstd stream stands, so that two machines' trees can be compared.
	out := b.dir("size.tar.zst")
	if _, _, err := b.measure(ctx, shell(tarZstd, s.dir, out)); err != nil {
		return err
	}
	n, err := stored(out)
	if err != nil {
		return err
	}
	cells(s.String(), "tar | zstd -3", megabytes(n), fmt.Sprintf("%.2f", float64(ours)/float64(n)), "", "", "")
	return errors.Join(os.Remove(out), os.RemoveAll(b.dir("size")))
}

// unchanged: a backup of a tree in which nothing changed since the last.
func (b *bench) unchanged(ctx context.Context) error {
	title("Nothing changed since the last backup", append(speedColumns[:6:6], "uploaded KiB", "backupd ÷ it", "must", "aim", "verdict")...)
	for _, name := range mainSets {
		s, err := b.set(ctx, name)
		if err != nil {
			return err
		}
		base := b.dir("unchanged")
		var sides []side
		uploaded := map[string]int64{}
		for _, t := range b.all() {
			dir := filepath.Join(base, t.name)
			if err := b.fresh(ctx, t, dir); err != nil {
				return err
			}
			if _, _, err := b.measure(ctx, t.backup(dir, s.dir)); err != nil {
				return err
			}
			var had int64
			sides = append(sides, side{
				name: t.name,
				before: func(context.Context, int) (err error) {
					had, err = stored(repo(dir))
					return err
				},
				run: func(int) command { return t.backup(dir, s.dir) },
				after: func(context.Context, int, []byte) error {
					has, err := stored(repo(dir))
					uploaded[t.name] = max(uploaded[t.name], has-had)
					return err
				},
			})
		}
		all, err := b.alternate(ctx, "unchanged "+s.name, b.rounds+2, sides)
		if err != nil {
			return err
		}
		for i, side := range sides {
			var g goal
			switch side.name {
			case "restic":
				g = goalUnchanged
			case "kopia":
				g = goalKopia
			}
			by, verdict := "", ""
			up := float64(uploaded[side.name]) / 1024
			must := limit(g.must, "")
			if i == 0 {
				must, verdict = limit(goalUploaded.must, " KiB"), goalUploaded.verdict(up)
			} else {
				ratio := all[0].wall().Seconds() / all[i].wall().Seconds()
				by, verdict = fmt.Sprintf("%.2f", ratio), g.verdict(ratio)
			}
			cells(s.String(), side.name, seconds(all[i].min()), seconds(all[i].wall()), seconds(all[i].cpu()), mebibytes(all[i].rss()),
				fmt.Sprintf("%.1f", up), by, must, limit(g.aim, ""), verdict)
		}
		if err := os.RemoveAll(base); err != nil {
			return err
		}
	}
	return nil
}

// churn01: 0.1 % of the small files changed, spread evenly.
func (b *bench) churn01(ctx context.Context) error {
	s, err := b.set(ctx, generated)
	if err != nil {
		return err
	}
	base := b.dir("churn01")
	tree := filepath.Join(base, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", s.dir+"/.", tree).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the source tree: %w: %s", err, out)
	}
	syscall.Sync()
	pastRacy()
	all := b.all()
	for _, t := range all {
		if err := b.fresh(ctx, t, filepath.Join(base, t.name)); err != nil {
			return err
		}
		if _, _, err := b.measure(ctx, t.backup(filepath.Join(base, t.name), tree)); err != nil {
			return err
		}
	}
	const fraction = 0.001
	title(fmt.Sprintf("%.1f %% of the files of the %s changed", 100*fraction, s),
		"round", "side", "s", "changed files", "changed KiB", "uploaded KiB", "uploaded ÷ changed", "must", "aim", "verdict")
	for round := range b.rounds {
		paths, changed, err := testtree.Churn(tree, fraction, uint64(100+round))
		if err != nil {
			return err
		}
		syscall.Sync()
		pastRacy()
		for _, t := range all {
			dir := filepath.Join(base, t.name)
			had, err := stored(repo(dir))
			if err != nil {
				return err
			}
			one, err := b.alternate(ctx, "0.1 % changed", 1, []side{{name: t.name, run: func(int) command { return t.backup(dir, tree) }}})
			if err != nil {
				return err
			}
			has, err := stored(repo(dir))
			if err != nil {
				return err
			}
			var g goal
			if t.name == b.ours.name {
				g = goalChurn
			}
			ratio := float64(has-had) / float64(changed)
			cells(fmt.Sprint(round+1), t.name, seconds(one[0].wall()), fmt.Sprint(len(paths)), fmt.Sprintf("%.1f", float64(changed)/1024),
				fmt.Sprintf("%.1f", float64(has-had)/1024), fmt.Sprintf("%.2f", ratio), limit(g.must, ""), limit(g.aim, ""), g.verdict(ratio))
		}
	}
	return os.RemoveAll(base)
}

// restore: of sources, against zstd and tar.
func (b *bench) restore(ctx context.Context) error {
	title("Restore into an empty directory", speedColumns...)
	// All that was restored stays to the end: ext4 without a journal searches long
	// for inodes after many files were removed.
	defer b.clear()
	for _, name := range sourceSets {
		s, err := b.set(ctx, name)
		if err != nil {
			return err
		}
		if err := b.restoreOf(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) restoreOf(ctx context.Context, s *set) error {
	base := b.dir("restore-" + strings.Map(letters, s.name))
	b.later = append(b.later, base)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	archive := filepath.Join(base, "archive.tar.zst")
	if _, _, err := b.measure(ctx, shell(tarZstd, s.dir, archive)); err != nil {
		return err
	}
	outs, err := os.MkdirTemp(cmp.Or(b.out, base), "restored-")
	if err != nil {
		return err
	}
	b.later = append(b.later, outs)
	out := func(name string, round int) string {
		return filepath.Join(outs, fmt.Sprintf("%s-%d", strings.Map(letters, name), round))
	}
	same := func(_ context.Context, round int, _ []byte) error {
		if round > 0 {
			return nil
		}
		diffs, err := testtree.Diff(s.dir, out(b.ours.name, round), testtree.Options{})
		if err == nil && len(diffs) > 0 {
			err = fmt.Errorf("the restored tree differs:\n%s", strings.Join(diffs[:min(len(diffs), 10)], "\n"))
		}
		return err
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
	for _, t := range b.all() {
		if t.restore == nil {
			continue
		}
		dir := filepath.Join(base, t.name)
		if err := b.fresh(ctx, t, dir); err != nil {
			return err
		}
		if _, _, err := b.measure(ctx, t.backup(dir, s.dir)); err != nil {
			return err
		}
		run := func(out string) command { return t.restore(dir, out) }
		if t.name != b.ours.name {
			add(t.name, run, nil)
			continue
		}
		add(t.name, run, same)
		add("zstd | tar", func(out string) command { return shell(untar, archive, out) }, nil)
		// Both as durable as they can be: the files, the directories, the metadata.
		add(t.name+" && sync", func(out string) command {
			return shell(`"${@:3}"`+andSync, append([]string{archive, out}, run(out).args...)...)
		}, nil)
		add("zstd | tar && sync", func(out string) command { return shell(untar+andSync, archive, out) }, nil)
	}
	if err := warm(&set{dir: base}); err != nil { // archive and repositories: not all of them are written through the cache
		return err
	}
	all, err := b.alternate(ctx, "restore of "+s.name, b.rounds, sides)
	if err != nil {
		return err
	}
	for i, side := range sides {
		switch i {
		case 0, 2:
			speed(s.String(), side.name, all[i], nil, 0, goal{})
		case 1:
			speed(s.String(), side.name, all[i], all[0], 0, goalRestore)
		case 3:
			speed(s.String(), side.name, all[i], all[2], 0, goal{})
		default:
			speed(s.String(), side.name, all[i], all[0], 0, goal{})
		}
	}
	return nil
}

func letters(r rune) rune {
	if r < 'a' || r > 'z' {
		return -1
	}
	return r
}

// scaleRow: seconds and memory against the number of files.
func (b *bench) scaleRow(ctx context.Context) error {
	title("Cost against the number of files", "files", "MB", "first s", "µs a file", "peak MiB", "unchanged s", "µs a file", "peak MiB", "restore s", "µs a file", "peak MiB")
	defer b.clear()
	for _, count := range b.scale {
		if err := b.scaleTo(ctx, count, true); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scaleTo(ctx context.Context, count int, show bool) error {
	s, err := b.tiny(ctx, count)
	if err != nil {
		return err
	}
	if err := warm(s); err != nil {
		return err
	}
	dir, out := b.dir(fmt.Sprintf("scale-%d", count)), filepath.Join(cmp.Or(b.out, b.work), fmt.Sprintf("scale-out-%d", count))
	if err := b.fresh(ctx, b.ours, dir); err != nil {
		return err
	}
	line := []string{fmt.Sprint(count), megabytes(s.bytes)}
	for _, step := range []struct {
		name string
		c    command
	}{{"first backup", b.ours.backup(dir, s.dir)}, {"unchanged", b.ours.backup(dir, s.dir)}, {"restore", b.ours.restore(dir, out)}} {
		if step.name == "restore" {
			if err := os.Mkdir(out, 0o755); err != nil {
				return err
			}
		}
		one, err := b.alternate(ctx, fmt.Sprintf("%s, %d files", step.name, count), 1, []side{{name: b.ours.name, run: func(int) command { return step.c }}})
		if err != nil {
			return err
		}
		wall := one[0].wall()
		line = append(line, seconds(wall), fmt.Sprintf("%.1f", float64(wall.Microseconds())/float64(count)), mebibytes(one[0].rss()))
	}
	if show {
		cells(line...)
	}
	b.later = append(b.later, dir, out, s.dir)
	return nil
}

// clear removes what could not be removed while something was measured.
func (b *bench) clear() {
	for _, dir := range b.later {
		if err := os.RemoveAll(dir); err != nil {
			b.note("%v", err)
		}
	}
	b.later = nil
}

// memory: the most that backupd took for anything in this session.
func (b *bench) memory(ctx context.Context) error {
	defer b.clear()
	if len(b.peaks) == 0 {
		if err := b.scaleTo(ctx, b.scale[len(b.scale)-1], false); err != nil {
			return err
		}
	}
	title("Peak memory of backupd", "for", "peak MiB", "must", "aim", "verdict")
	most, order := map[string]int64{}, []string{}
	for _, p := range b.peaks {
		if most[p.what] == 0 {
			order = append(order, p.what)
		}
		most[p.what] = max(most[p.what], p.rss)
	}
	for _, what := range order {
		mib := float64(most[what]) / (1 << 20)
		cells(what, fmt.Sprintf("%.0f", mib), limit(goalMemory.must, ""), limit(goalMemory.aim, ""), goalMemory.verdict(mib))
	}
	return nil
}
