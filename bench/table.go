package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// goal is what a ratio must not exceed, and what it should not; 0 for none.
type goal struct{ must, aim float64 }

func (g goal) verdict(ratio float64) string {
	switch {
	case g == goal{}:
		return ""
	case ratio <= g.aim:
		return "aim met"
	case ratio <= g.must:
		return "must met"
	}
	return "**missed**"
}

func limit(f float64, unit string) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf("≤ %g%s", f, unit)
}

// title begins a row's table.
func title(text string, columns ...string) {
	fmt.Printf("\n### %s\n\n| %s |\n|%s\n", text, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
}

func cells(c ...string) {
	for i := range c {
		c[i] = strings.ReplaceAll(c[i], "|", `\|`)
	}
	fmt.Printf("| %s |\n", strings.Join(c, " | "))
}

var speedColumns = []string{"data", "side", "min s", "median s", "CPU s", "peak MiB", "stored MB", "backupd ÷ it", "by min", "must", "aim", "verdict"}

// speed prints one side's line; ours is backupd's series, nil for its own line.
func speed(data, side string, s, ours series, storedBytes int64, g goal) {
	size := ""
	if storedBytes > 0 {
		size = megabytes(storedBytes)
	}
	by, byMin, verdict := "", "", ""
	if ours != nil {
		ratio := ours.wall().Seconds() / s.wall().Seconds()
		by, verdict = fmt.Sprintf("%.2f", ratio), g.verdict(ratio)
		byMin = fmt.Sprintf("%.2f", ours.min().Seconds()/s.min().Seconds())
	}
	cells(data, side, seconds(s.min()), seconds(s.wall()), seconds(s.cpu()), mebibytes(s.rss()), size, by, byMin, limit(g.must, ""), limit(g.aim, ""), verdict)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }
func megabytes(n int64) string       { return fmt.Sprintf("%.1f", float64(n)/1e6) }
func mebibytes(n int64) string       { return fmt.Sprint(n >> 20) }

// header says on what was measured, and what.
func (b *bench) header(ctx context.Context) {
	line := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			return name + ": not found"
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return strings.Trim(first, "* ")
	}
	field := func(file, key string) string {
		data, _ := os.ReadFile(file)
		for l := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return "?"
	}
	fmt.Printf("- Machine: %d × %s, %s memory; Linux %s; %s\n", runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		field("/proc/meminfo", "MemTotal"), line("uname", "-r"), line("findmnt", "-no", "FSTYPE,SOURCE", "-T", b.work))
	versions := []string{"backupd " + line(b.binary, "version"), line("tar", "--version"), line("zstd", "--version")}
	for _, t := range b.tools {
		flag := "--version"
		if t.name == "restic" {
			flag = "version"
		}
		versions = append(versions, line(t.name, flag))
	}
	fmt.Printf("- Sides: %s\n", strings.Join(versions, "; "))
	commit := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" || s.Key == "vcs.modified" && s.Value == "true" {
				commit += " " + s.Value
			}
		}
	}
	fmt.Printf("- Run: %s, %s%s, %d rounds in turn, page cache warm, sync before each\n", b.start.UTC().Format("2006-01-02 15:04 MST"), runtime.Version(), commit, b.rounds)
}
