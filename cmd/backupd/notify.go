package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
)

func (a *app) notifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "notify",
		Short: "Send a test message to everybody who is told of runs",
		Long: `Send a test message to every address of --notify (BACKUPD_NOTIFY), whatever
--notify-on says, and tell which could not be reached. The ping of --ping is left
alone: it would count as a run.
` + exitHelp,
		Example: `  docker compose exec backup backupd notify`,
		Args:    cobra.NoArgs,
	}
	a.settingFlags(cmd)
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		live, err := a.openConfig(cmd, a.ownLabels(ctx))
		if err != nil {
			return err
		}
		c := live.Current()
		if len(c.Notify) == 0 {
			return usagef("there is nobody to tell: set BACKUPD_NOTIFY to addresses as shoutrrr has them; docs/monitoring.md has examples")
		}
		teller, err := a.teller(ctx, c, slog.New(slog.DiscardHandler))
		if err != nil {
			return usagef("%w", err)
		}
		defer teller.Close(ctx)
		if err := teller.Test(ctx); err != nil {
			return fmt.Errorf("not everybody got the test message: %w", err)
		}
		a.notice("a test message was sent to %d addresses", len(c.Notify))
		return nil
	})
	return cmd
}
