package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/disko/backupd/internal/testtree"
)

// keep is how many daily, weekly and monthly snapshots are kept.
type keep struct{ daily, weekly, monthly int }

// kept gives the numbers of the nights that k keeps: as restic and borg do it,
// the last one of each of the latest days, ISO weeks and months.
func (k keep) kept(nights []time.Time) []int {
	var kept []int
	for _, rule := range []struct {
		most  int
		which func(time.Time) string
	}{
		{k.daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{k.weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, "-", w) }},
		{k.monthly, func(t time.Time) string { return t.Format("2006-01") }},
	} {
		last, left := "", rule.most
		for i := len(nights) - 1; i >= 0 && left > 0; i-- {
			if of := rule.which(nights[i]); of != last {
				kept, last, left = append(kept, i), of, left-1
			}
		}
	}
	slices.Sort(kept)
	return slices.Compact(kept)
}

// nightsRow: what remains of many nights of small changes.
func (b *bench) nightsRow(ctx context.Context) error {
	base := b.dir("nights")
	tree := filepath.Join(base, "tree")
	src, table := filepath.Join(tree, "src"), filepath.Join(tree, "db", "table")
	if err := os.MkdirAll(filepath.Dir(table), 0o755); err != nil {
		return err
	}
	size, err := testtree.SourceTree(src, b.nightsFiles, 7)
	if err != nil {
		return err
	}
	if b.nightsDB > 0 {
		if err := testtree.Pages(table, b.nightsDB<<20, 8); err != nil {
			return err
		}
	}
	tools := []tool{b.ours}
	if t, ok := b.peer("restic"); ok {
		tools = append(tools, t)
	}
	for _, t := range tools {
		if err := b.fresh(ctx, t, filepath.Join(base, t.name)); err != nil {
			return err
		}
	}
	spent, uploaded := map[string]series{}, map[string]int64{}
	ids := make([]string, b.nights) // of our snapshots
	times := make([]time.Time, b.nights)
	var changed int64
	for night := range b.nights {
		times[night] = time.Date(2025, 1, 1, 2, 0, 0, 0, time.UTC).AddDate(0, 0, night)
		if night > 0 {
			_, n, err := testtree.Churn(src, b.churn, uint64(1000+night))
			if err != nil {
				return err
			}
			changed += n
			if b.nightsDB > 0 {
				if err := testtree.ChurnPages(table, b.churn, uint64(1000+night)); err != nil {
					return err
				}
				changed += int64(float64(b.nightsDB<<20) * b.churn)
			}
		}
		pastRacy() // as a day would
		for _, t := range tools {
			dir := filepath.Join(base, t.name)
			run := t.backup(dir, tree)
			if t.at != nil {
				run = t.at(dir, tree, times[night])
			}
			c, stdout, err := b.measure(ctx, run)
			if err != nil {
				return err
			}
			spent[t.name] = append(spent[t.name], c)
			if t.name == b.ours.name {
				b.peaks = append(b.peaks, peak{"a night", c.RSS})
				var result struct {
					ID string `json:"id"`
				}
				if err := json.Unmarshal(stdout, &result); err != nil || result.ID == "" {
					return fmt.Errorf("backupd's result %q: %w", stdout, err)
				}
				ids[night] = result.ID
			}
		}
		if night%10 == 9 {
			b.note("night %d", night+1)
		}
	}
	k := keep{7, 4, 3}
	nights := k.kept(times)
	title(fmt.Sprintf("%d nights, each with %.1f %% of %d files (%d MB) and of a %d MiB database changed; %d snapshots kept",
		b.nights, 100*b.churn, b.nightsFiles, size/1e6, b.nightsDB, len(nights)),
		"side", "median s a night", "all snapshots MB", "kept snapshots MB", "backupd ÷ it", "must", "aim", "verdict")
	var ours int64
	for _, t := range tools {
		dir := filepath.Join(base, t.name)
		if uploaded[t.name], err = stored(repo(dir)); err != nil {
			return err
		}
		if t.name == b.ours.name {
			var drop []string
			for night, id := range ids {
				if !slices.Contains(nights, night) {
					drop = append(drop, id)
				}
			}
			if err := b.forgetAndPrune(ctx, dir, drop); err != nil {
				return err
			}
			if ours, err = stored(repo(dir)); err != nil {
				return err
			}
			cells(t.name, seconds(spent[t.name].wall()), megabytes(uploaded[t.name]), megabytes(ours), "", "", "", "")
			continue
		}
		if _, _, err := b.measure(ctx, t.prune(dir, k)); err != nil {
			return err
		}
		n, err := stored(repo(dir))
		if err != nil {
			return err
		}
		ratio := float64(ours) / float64(n)
		cells(t.name, seconds(spent[t.name].wall()), megabytes(uploaded[t.name]), megabytes(n), fmt.Sprintf("%.2f", ratio),
			limit(goalNights.must, ""), limit(goalNights.aim, ""), goalNights.verdict(ratio))
	}
	fmt.Printf("\nChanged in all: %s MB.\n", megabytes(changed))
	return os.RemoveAll(base)
}

// forgetAndPrune forgets snapshots of ours and frees the space. All nights were
// this night, so they are named; and between the two prunes the waiting time is
// made to have passed, on a machine that was started anew.
func (b *bench) forgetAndPrune(ctx context.Context, dir string, ids []string) error {
	run := func(verb string, more ...string) error {
		_, _, err := b.measure(ctx, b.ours.act(dir, verb, more...))
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	if err := run("forget", ids...); err != nil {
		return err
	}
	if err := run("prune"); err != nil {
		return err
	}
	lists, err := filepath.Glob(filepath.Join(repo(dir), "stacks", stackName, "condemned", "*"))
	if err != nil || len(lists) == 0 {
		return fmt.Errorf("prune condemned nothing (%w)", err)
	}
	boot := regexp.MustCompile(`"boot":"[^"]*"`)
	past := time.Now().Add(-8 * 24 * time.Hour)
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err == nil {
			err = os.WriteFile(list, boot.ReplaceAll(data, []byte(`"boot":"bench"`)), 0o640)
		}
		if err == nil {
			err = os.Chtimes(list, past, past)
		}
		if err != nil {
			return err
		}
	}
	return run("prune")
}
