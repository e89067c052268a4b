package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store"
)

func (a *app) initCommand() *cobra.Command {
	var project projectFlags
	var image string
	var yes bool
	cmd := &cobra.Command{
		Use: "init", Short: "Add backupd to a Compose project, or create an encrypted repository", Args: cobra.NoArgs,
		Long: `Without --target: add a backup service to the Compose project of this directory,
with its volumes, and let the services that use them wait until they are
filled. The change is shown, and made if you agree (or with --yes). Comments
and the layout of the file stay.

With --target: create an encrypted repository on an empty target. It can be opened with the
passphrase (--passphrase-file), or by whoever holds an identity of a --recipient
(age-keygen makes one; ssh keys do as well).

The agent key that is printed lets a server write snapshots and read none back.
A first "backupd backup --passphrase-file FILE" creates a repository just as well.
` + exitHelp,
		Example: `  backupd init
  backupd init --target s3://backups/shop --recipient age1... --recipient ~/.ssh/id_ed25519.pub
  backupd init --target /backups --passphrase-file /run/secrets/passphrase`,
	}
	cmd.Flags().BoolVar(&a.secrets.postQuantum, "post-quantum", false, "use a hybrid post-quantum key pair; reading it without backupd needs age 1.3")
	project.flags(cmd.Flags())
	cmd.Flags().StringVar(&image, "image", "backupd:latest", "`image` of the backup service")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "write the change without asking")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		if len(a.targets) == 0 {
			return a.initProject(ctx, &project, image, yes)
		}
		name, err := a.oneTarget()
		if err != nil {
			return err
		}
		o, err := a.options()
		if err != nil {
			return err
		}
		st, err := a.createTarget(ctx, name)
		if err != nil {
			return err
		}
		repo, agentKey, err := snapshot.Init(ctx, st, o)
		if err != nil {
			return err
		}
		defer repo.Close()
		a.notice("created encrypted repository %.8s in %s", repo.ID, repo.Location())
		a.notice("KEEP SAFE, away from the target: the passphrase, or an identity of a recipient. Without one of them nobody can restore, and nobody can help.")
		a.notice("the agent key below is for servers (BACKUPD_AGENT_KEY_FILE): it writes snapshots and reads none; keep it secret, too")
		return a.printAgentKey(repo.ID, agentKey)
	})
	return cmd
}

func (a *app) printAgentKey(repository, key string) error {
	if a.json {
		return a.printJSON(map[string]string{"repository": repository, "agent_key": key})
	}
	_, err := fmt.Fprintln(a.stdout, key)
	return err
}

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "List, add, remove and rotate the keys of an encrypted repository",
		Long: `What is stored is encrypted to one key pair, the repository's. Its secret half
lies on the target, locked once for every passphrase and every recipient: adding
and removing them touches no snapshot.
` + exitHelp,
	}
	cmd.AddCommand(a.keyListCommand(), a.keyAddCommand(), a.keyRemoveCommand(), a.keyRotateCommand(), a.keyAgentCommand())
	return cmd
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what opens the repository", Args: cobra.NoArgs,
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			repo, err := a.open(ctx)
			if err != nil {
				return err
			}
			defer repo.Close()
			list, err := repo.Keys(ctx)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(list)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KEY\tKIND\tADDED\tGENERATION\tFOR")
			for _, k := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", k.Name, k.Kind, k.Created.Local().Format(time.DateTime), k.Generation, strings.Join(k.Recipients, " "))
			}
			return w.Flush()
		}),
	}
}

// changeKeys opens the repository to change its keys.
func (a *app) changeKeys(ctx context.Context, change func(*snapshot.Repository, store.Writer) error) error {
	name, err := a.oneTarget()
	if err != nil {
		return err
	}
	o, err := a.options()
	if err != nil {
		return err
	}
	st, err := a.openTarget(ctx, name)
	if err != nil {
		return err
	}
	repo, err := snapshot.Open(ctx, st, o)
	if err != nil {
		return err
	}
	defer repo.Close()
	return change(repo, st)
}

func (a *app) keyAddCommand() *cobra.Command {
	var added secrets
	cmd := &cobra.Command{
		Use: "add", Short: "Let another passphrase or recipient open the repository", Args: cobra.NoArgs,
		Long: "Let another passphrase or recipient open the repository, which --passphrase-file or --identity open now.\n" + exitHelp,
		Example: `  backupd key add --target /backups --passphrase-file old --new-recipient age1...
  backupd key add --target /backups --identity key.txt --new-passphrase-file new`,
	}
	added.newFlags(cmd)
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		c, err := added.newLocks()
		if err != nil {
			return err
		}
		return a.changeKeys(ctx, func(repo *snapshot.Repository, st store.Writer) error { return repo.AddKeys(ctx, st, c) })
	})
	return cmd
}

// newFlags are the flags for what is to open the repository from now on.
func (s *secrets) newFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.passphraseFile, "new-passphrase-file", "", "`FILE` that holds the new passphrase")
	f.StringArrayVar(&s.recipients, "new-recipient", nil, "age recipient or ssh public key (or a file of them); may be repeated")
}

func (s *secrets) newLocks() (*snapshot.Credentials, error) {
	c, err := s.credentials()
	if err == nil && c == nil {
		err = fmt.Errorf("%w: say who is to open the repository: --new-passphrase-file FILE or --new-recipient RECIPIENT", snapshot.ErrUsage)
	}
	return c, err
}

func (a *app) keyRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove KEY", Short: "Take away a way to open the repository", Args: cobra.ExactArgs(1),
		Long: `Take away a way to open the repository. Whoever had it may have read the
repository's own key with it before: "backupd key rotate" shuts them out of what
is written from now on. What was read cannot be taken back.
` + exitHelp,
		RunE: a.runs(func(ctx context.Context, args []string) error {
			return a.changeKeys(ctx, func(repo *snapshot.Repository, st store.Writer) error {
				if err := repo.RemoveKey(ctx, st, args[0]); err != nil {
					return err
				}
				a.notice("removed key %s; if it is in wrong hands, rotate the keys as well", args[0])
				return nil
			})
		}),
	}
}

func (a *app) keyRotateCommand() *cobra.Command {
	var added secrets
	cmd := &cobra.Command{
		Use: "rotate", Short: "Give the repository a new key pair, and print the new agent key", Args: cobra.NoArgs,
		Long: `Give the repository a new key pair for what is written from now on, locked for
the passphrase and recipients that are named; all others are taken away. What was
written before stays readable with the new keys. Agents need the new agent key.
` + exitHelp,
		Example: `  backupd key rotate --target /backups --passphrase-file old --new-passphrase-file new --new-recipient age1...`,
	}
	added.newFlags(cmd)
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		c, err := added.newLocks()
		if err != nil {
			return err
		}
		return a.changeKeys(ctx, func(repo *snapshot.Repository, st store.Writer) error {
			done, err := repo.RotateKeys(ctx, st, c)
			if err != nil {
				return err
			}
			for _, l := range done.Refused {
				fmt.Fprintf(a.stderr, "backupd: warning: snapshot %.8s of stack %s was committed while the keys were rotated, and counts no more; take another backup\n", l.ID, l.Stack)
			}
			a.notice("rotated; give servers this new agent key, the old one is refused from now on")
			return a.printAgentKey(repo.ID, done.AgentKey)
		})
	})
	return cmd
}

func (a *app) keyAgentCommand() *cobra.Command {
	return &cobra.Command{
		Use: "agent", Short: "Print the agent key again", Args: cobra.NoArgs,
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			repo, err := a.open(ctx)
			if err != nil {
				return err
			}
			defer repo.Close()
			key, err := repo.AgentKey()
			if err != nil {
				return err
			}
			return a.printAgentKey(repo.ID, key)
		}),
	}
}
