package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// listed is a snapshot in the output of snapshots --json.
type listed struct {
	ID       string    `json:"id"`
	Stack    string    `json:"stack"`
	Sequence uint64    `json:"sequence"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Tags     []string  `json:"tags,omitempty"`
	Trigger  string    `json:"trigger,omitempty"`
	Origin   string    `json:"origin,omitempty"`
	Seeded   string    `json:"seeded,omitempty"` // id that the installation was seeded from
	Leads    bool      `json:"leads"`            // latest may mean it
	Volumes  []string  `json:"volumes"`
	Files    uint64    `json:"files"`
	Bytes    uint64    `json:"bytes"`
	Warnings uint64    `json:"warnings"`
	Error    string    `json:"error,omitempty"`
}

func (a *app) snapshotsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "snapshots", Short: "List the snapshots", Args: cobra.NoArgs,
		Long: `List the snapshots of a stack, or of all, oldest first. One that a clone took is marked: "latest"
does not mean it.`,
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			repo, err := a.open(ctx)
			if err != nil {
				return err
			}
			defer repo.Close()
			list, err := repo.List(ctx, a.stack)
			if err != nil {
				return err
			}
			out := []listed{}
			damaged := 0
			for _, l := range list {
				e := listed{ID: l.ID, Stack: l.Stack, Sequence: l.Sequence, Volumes: []string{}}
				if l.Err != nil {
					e.Error = l.Err.Error()
					damaged++
				} else {
					m := l.Manifest
					e.Started, e.Finished, e.Tags, e.Trigger, e.Origin = m.Started, m.Finished, m.Tags, m.Trigger, m.Origin
					e.Seeded, e.Leads = m.Seeded, m.Leads()
					for _, v := range m.Volumes {
						e.Volumes = append(e.Volumes, v.Name)
						e.Files += v.Counts.Files
						e.Bytes += v.Counts.Bytes
						e.Warnings += v.Counts.Warnings
					}
				}
				out = append(out, e)
			}
			if a.json {
				if err := a.printJSON(out); err != nil {
					return err
				}
			} else if err := a.printSnapshots(out); err != nil {
				return err
			}
			if damaged > 0 {
				return &statusError{exitDamage, fmt.Sprintf("%d snapshots cannot be read; `backupd verify` tells more", damaged)}
			}
			return nil
		}),
	}
}

func (a *app) printSnapshots(list []listed) error {
	if len(list) == 0 {
		a.notice("no snapshots yet; `backupd backup` takes one")
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTAKEN\tSTACK\tVOLUMES\tFILES\tSIZE\tTAGS")
	for _, e := range list {
		if e.Error != "" {
			fmt.Fprintf(w, "%.8s\t-\t%s\tcannot be read: %s\t\t\t\n", e.ID, e.Stack, e.Error)
			continue
		}
		note := strings.Join(e.Tags, " ")
		if !e.Leads {
			note = strings.TrimSpace(note + " (of a clone)")
		}
		if e.Warnings > 0 {
			note = strings.TrimSpace(fmt.Sprintf("%s (%d warnings)", note, e.Warnings))
		}
		fmt.Fprintf(w, "%.8s\t%s\t%s\t%s\t%d\t%s\t%s\n", e.ID, e.Finished.Local().Format("2006-01-02 15:04:05"), e.Stack, strings.Join(e.Volumes, " "), e.Files, bytesize.Text(e.Bytes), note)
	}
	return w.Flush()
}

// snapshotArg opens the repository and finds a snapshot.
func (a *app) snapshotArg(ctx context.Context, name string) (*snapshot.Repository, *snapshot.Manifest, error) {
	repo, err := a.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := repo.Find(ctx, a.stack, name)
	if err != nil {
		repo.Close()
		return nil, nil, err
	}
	return repo, m, nil
}

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show SNAPSHOT", Short: "Show what a snapshot is", Args: cobra.ExactArgs(1),
		Long: "Show what a snapshot is: when and how it was taken, of what, with which warnings. --json prints its manifest.",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			repo, m, err := a.snapshotArg(ctx, args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			if a.json {
				return a.printJSON(struct {
					ID string `json:"id"`
					*snapshot.Manifest
				}{m.ID(), m})
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "snapshot\t%s\nstack\t%s\nnumber\t%d\ntaken\t%s, in %s\ntrigger\t%s\nbackupd\t%s\n", m.ID(), m.Stack, m.Sequence,
				m.Finished.Local().Format(time.RFC3339), m.Finished.Sub(m.Started).Round(time.Millisecond), m.Trigger, m.Version)
			facts := [][2]string{{"parent", m.Parent}, {"origin", index.Escape(m.Origin)}, {"tags", index.Escape(strings.Join(m.Tags, " "))}}
			if m.Seeded != "" {
				clone := m.Seeded
				if !m.Leads() {
					clone += ", by a clone: latest does not mean it"
				}
				facts = append(facts, [2]string{"seeded from", clone})
			}
			if m.About != nil {
				facts = append(facts, [2]string{"project", index.Escape(m.About.Project)})
				for _, s := range m.About.Services {
					facts = append(facts, [2]string{"service", index.Escape(strings.TrimSpace(fmt.Sprintf("%s: %s %s", s.Name, s.Image, s.ImageID)))})
				}
			}
			for _, f := range facts {
				if f[1] != "" {
					fmt.Fprintf(w, "%s\t%s\n", f[0], f[1])
				}
			}
			for _, v := range m.Volumes {
				packs, stored := 0, int64(0)
				for _, r := range append(v.Packs, v.Index...) {
					packs += len(r.Sizes)
					for _, s := range r.Sizes {
						stored += int64(s)
					}
				}
				kind := "volume"
				if v.Dump {
					kind = "dump"
				}
				fmt.Fprintf(w, "%s\t%s: %d files, %d entries, %s; in %d packs of %s\n", kind, v.Name, v.Counts.Files, v.Counts.Entries, bytesize.Text(v.Counts.Bytes), packs, bytesize.Text(stored))
				if v.Driver != "" {
					fmt.Fprintf(w, "\tdriver: %s\n", index.Escape(v.Driver))
				}
				for _, f := range []struct {
					what string
					is   map[string]string
				}{{"option", v.Options}, {"label", v.Labels}} {
					for _, k := range slices.Sorted(maps.Keys(f.is)) {
						fmt.Fprintf(w, "\t%s: %s\n", f.what, index.Escape(k+"="+f.is[k]))
					}
				}
				for _, x := range v.Excludes {
					fmt.Fprintf(w, "\texcluded: %s\n", x)
				}
				for _, x := range v.Warnings {
					fmt.Fprintf(w, "\twarning: %s\n", x)
				}
			}
			return w.Flush()
		}),
	}
}

func (a *app) lsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls SNAPSHOT [VOLUME[:PATH]]", Short: "List what a snapshot holds", Args: cobra.RangeArgs(1, 2),
		Long: `List what a snapshot holds: its volumes, or with VOLUME all that is in one, or with VOLUME:PATH
what is at and below that path. Bytes that are not printable ASCII are written as \0 and three octal digits.`,
		RunE: a.runs(func(ctx context.Context, args []string) error {
			repo, m, err := a.snapshotArg(ctx, args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			if len(args) == 1 {
				for _, v := range m.Volumes {
					if a.json {
						err = a.printJSON(map[string]any{"volume": v.Name, "files": v.Counts.Files, "entries": v.Counts.Entries, "bytes": v.Counts.Bytes})
					} else {
						_, err = fmt.Fprintln(a.stdout, v.Name)
					}
					if err != nil {
						return err
					}
				}
				return nil
			}
			volume, path, _ := strings.Cut(args[1], ":")
			path = strings.Trim(path, "/")
			if path == "" {
				path = index.Root
			}
			return repo.Walk(ctx, m, volume, path, func(e *index.Entry) error {
				if a.json {
					return a.printJSON(map[string]any{"path": index.Escape(e.Path), "type": e.Kind, "size": e.Size, "mtime": string(tarstream.AppendTime(nil, e.Mtime))})
				}
				when := "-"
				if !e.Kind.LeftOut() {
					when = time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)).Format("2006-01-02 15:04:05")
				}
				line := fmt.Sprintf("%-10s %12d  %19s  %s", e.Kind, e.Size, when, index.Escape(e.Path))
				if e.Link != "" {
					line += " = " + index.Escape(e.Link)
				}
				_, err := fmt.Fprintln(a.stdout, line)
				return err
			})
		}),
	}
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff A B", Short: "Show what differs between two snapshots", Args: cobra.ExactArgs(2),
		Long: "Show what differs between two snapshots: + added, - removed, M changed, T another type.",
		RunE: a.runs(func(ctx context.Context, args []string) error {
			repo, ma, err := a.snapshotArg(ctx, args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			mb, err := repo.Find(ctx, a.stack, args[1])
			if err != nil {
				return err
			}
			signs := map[string]string{"added": "+", "removed": "-", "changed": "M", "type": "T"}
			return repo.Diff(ctx, ma, mb, func(c snapshot.Change) error {
				if a.json {
					return a.printJSON(c)
				}
				_, err := fmt.Fprintf(a.stdout, "%s %s:%s\n", signs[c.What], c.Volume, c.Path)
				return err
			})
		}),
	}
}

func (a *app) exportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export SNAPSHOT VOLUME", Short: "Write a volume as a .tar.zst", Args: cobra.ExactArgs(2),
		Long: `Write a volume of a snapshot as a .tar.zst to stdout, or to a file. It unpacks with GNU tar:

  zstd -dc FILE | LC_ALL=C tar -xp --numeric-owner --xattrs --xattrs-include='*'`,
	}
	cmd.Flags().StringVarP(&output, "output", "o", "-", "file to write; it must not exist")
	cmd.RunE = a.runs(func(ctx context.Context, args []string) (err error) {
		out := a.stdout
		if f, ok := out.(*os.File); ok && output == "-" && term.IsTerminal(int(f.Fd())) {
			return fmt.Errorf("%w: stdout is a terminal; redirect it, or name a file with --output", snapshot.ErrUsage)
		}
		repo, m, err := a.snapshotArg(ctx, args[0])
		if err != nil {
			return err
		}
		defer repo.Close()
		if output != "-" {
			f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("export: %w", err)
			}
			out = f
			defer func() {
				if cerr := f.Close(); err == nil && cerr != nil {
					err = fmt.Errorf("export: %w", cerr)
				}
				if err != nil {
					os.Remove(output)
				}
			}()
		}
		p := &snapshot.Progress{}
		shown := a.show("export", p)
		defer shown.stop()
		warned := false
		err = repo.Export(ctx, m, args[1], out, func(w snapshot.Warning) {
			warned = true
			fmt.Fprintf(a.stderr, "backupd: warning: %s\n", w)
		}, p)
		if err == nil && warned {
			shown.stop()
			return &statusError{exitWarnings, "exported, but tar cannot restore all of it; see the warnings above"}
		}
		return err
	})
	return cmd
}

func (a *app) verifyCommand() *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use: "verify [SNAPSHOT...]", Short: "Check that snapshots are whole",
		Long: `Check that snapshots are whole; without SNAPSHOT, all of them (of --stack). Every object that a
snapshot needs must be there and have its size; with --deep every byte is read and
every checksum, frame id and index line is checked. Damage is listed on stdout; exit code 5.`,
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "read and check every byte")
	cmd.RunE = a.runs(func(ctx context.Context, args []string) error {
		a.interrupted = "interrupted; nothing was changed"
		repo, err := a.open(ctx)
		if err != nil {
			return err
		}
		defer repo.Close()
		var list []snapshot.Listed
		if len(args) == 0 {
			if list, err = repo.List(ctx, a.stack); err != nil {
				return err
			}
		}
		for _, name := range args {
			m, err := repo.Find(ctx, a.stack, name)
			if err != nil {
				return err
			}
			list = append(list, snapshot.Listed{Stack: m.Stack, Sequence: m.Sequence, ID: m.ID(), Manifest: m})
		}
		p := &snapshot.Progress{}
		shown := a.show("verify", p)
		v, err := repo.Verify(ctx, list, deep, p)
		shown.stop()
		if err != nil {
			return err
		}
		if a.json {
			if err := a.printJSON(v); err != nil {
				return err
			}
		} else {
			for _, d := range v.Damage {
				fmt.Fprintln(a.stdout, d)
			}
		}
		if len(v.Damage) > 0 {
			return &statusError{exitDamage, fmt.Sprintf("%d damages in %s; snapshots that are not named are whole", len(v.Damage), repo.Location())}
		}
		how := "are there with their sizes"
		if deep {
			how = "were read and are whole"
		}
		a.notice("%d snapshots: %d objects of %s %s", v.Snapshots, v.Objects, bytesize.Text(v.Bytes), how)
		return nil
	})
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: a.runs(func(context.Context, []string) error {
			if a.json {
				return a.printJSON(map[string]any{"version": version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH, "format": snapshot.FormatVersion})
			}
			_, err := fmt.Fprintf(a.stdout, "backupd %s (%s, %s/%s, repository format %d)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, snapshot.FormatVersion)
			return err
		}),
	}
}
