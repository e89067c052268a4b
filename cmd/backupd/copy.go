package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store"
)

// copyFlags are copy's own flags.
type copyFlags struct {
	from, to string
	source   secrets // of the repository to copy from, where it has others
	plain    bool    // that one is not encrypted
}

func (a *app) copyCommand() *cobra.Command {
	var f copyFlags
	cmd := &cobra.Command{
		Use:   "copy [SNAPSHOT...]",
		Short: "Copy snapshots to another target",
		Long: `Copy snapshots from one target to another: those that are named, or all of
--stack (of every stack without it) that are not there yet, the oldest first.
What is stored is copied as it is, not compressed again; an encrypted repository's
is encrypted anew, to the other one's keys. An empty target becomes a repository.

--passphrase-file and the like open both repositories; --from-passphrase-file and
the like the one to copy from, where it has others. A backup to several targets
needs no copy: name them all with --target.
` + exitHelp,
		Example: `  backupd copy --from /backups --to s3://offsite/shop --stack shop
  backupd copy latest --from /backups --to /mnt/disk --stack shop
  backupd copy --from /backups --from-plain --to s3://offsite/all --passphrase-file secret`,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.from, "from", "", "`TARGET` to copy from")
	fl.StringVar(&f.to, "to", "", "`TARGET` to copy to")
	fl.BoolVar(&f.plain, "from-plain", false, "the repository to copy from is not encrypted, though the other one is")
	f.source.fromFlags(fl)
	cmd.RunE = a.runs(func(ctx context.Context, args []string) error { return a.copy(ctx, args, f) })
	return cmd
}

func (s *secrets) fromFlags(f *pflag.FlagSet) {
	f.StringVar(&s.passphraseFile, "from-passphrase-file", "", "`FILE` that holds the passphrase of the repository to copy from")
	f.StringArrayVar(&s.identities, "from-identity", nil, "`FILE` with identities for the repository to copy from; may be repeated")
}

func (a *app) copy(ctx context.Context, names []string, f copyFlags) error {
	a.interrupted = "interrupted; snapshots that were copied are there, the one under way is not"
	if f.from == "" || f.to == "" {
		return fmt.Errorf("%w: say where to copy from and to: --from TARGET --to TARGET", snapshot.ErrUsage)
	}
	from, err := a.copySource(ctx, f)
	if err != nil {
		return err
	}
	defer from.Close()
	list, err := a.copyList(ctx, from, names)
	if err != nil {
		return err
	}
	to, w, err := a.copyDestination(ctx, f.to)
	if err != nil {
		return err
	}
	defer to.Close()
	if to.ID == from.ID {
		return fmt.Errorf("%w: %s and %s are one repository", snapshot.ErrUsage, f.from, f.to)
	}
	p := &snapshot.Progress{}
	shown := a.show("copy", p)
	defer shown.stop()
	done := []*snapshot.Copied{}
	for _, m := range list {
		c, err := from.CopyTo(ctx, to, w, m, p)
		if err != nil {
			return err
		}
		done = append(done, c)
	}
	shown.stop()
	if a.json {
		return a.printJSON(done)
	}
	for _, c := range done {
		if _, err := fmt.Fprintln(a.stdout, c.ID); err != nil {
			return err
		}
		if c.Existed {
			a.notice("snapshot %.8s of stack %s is there already, as %.8s", c.Source, c.Stack, c.ID)
		} else {
			a.notice("snapshot %.8s of stack %s is now %.8s there, number %d; copied %s in %d objects", c.Source, c.Stack, c.ID, c.Sequence, bytesize.Text(c.Bytes), c.Objects)
		}
	}
	return nil
}

func (a *app) copySource(ctx context.Context, f copyFlags) (*snapshot.Repository, error) {
	o, err := a.options()
	if err != nil {
		return nil, err
	}
	own, err := f.source.credentials()
	switch {
	case err != nil:
		return nil, err
	case own != nil:
		o.Credentials = own
	case f.plain:
		o.Credentials = nil
	}
	st, err := a.openTarget(ctx, f.from)
	if err != nil {
		return nil, err
	}
	return snapshot.Open(ctx, readOnly{st}, o)
}

func (a *app) copyDestination(ctx context.Context, name string) (*snapshot.Repository, store.Writer, error) {
	o, err := a.options()
	if err != nil {
		return nil, nil, err
	}
	st, err := a.createTarget(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	repo, err := snapshot.Ensure(ctx, st, o)
	return repo, st, err
}

// copyList are the snapshots to copy, the oldest of each stack first.
func (a *app) copyList(ctx context.Context, from *snapshot.Repository, names []string) ([]*snapshot.Manifest, error) {
	var out []*snapshot.Manifest
	for _, name := range names {
		m, err := from.Find(ctx, a.stack, name)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	if len(names) > 0 {
		slices.SortStableFunc(out, func(x, y *snapshot.Manifest) int { return x.Finished.Compare(y.Finished) })
		return out, nil
	}
	list, err := from.List(ctx, a.stack)
	if err != nil {
		return nil, err
	}
	var bad []error
	for _, l := range list {
		if l.Err != nil {
			bad = append(bad, l.Err)
			continue
		}
		out = append(out, l.Manifest)
	}
	if len(out) == 0 && len(bad) == 0 {
		return nil, fmt.Errorf("%w: there is nothing to copy in %s", snapshot.ErrNoSnapshot, from.Location())
	}
	if len(bad) > 0 {
		return nil, fmt.Errorf("not every snapshot can be read; nothing was copied, name those that shall be: %w", errors.Join(bad...))
	}
	return out, nil
}
