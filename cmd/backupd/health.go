package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/disko/backupd/internal/agent"
)

func (a *app) healthCommand() *cobra.Command {
	var only string
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Say whether the agent here is well",
		Long: `Say whether the agent (backupd serve) in this container is well: its volumes
are seeded, its scheduler is alive, the last run did not fail, and the newest
snapshot is not older than the schedule allows. It is the image's HEALTHCHECK.

Services that wait for backupd by "condition: service_healthy" do not start
while a run's failure is unhealthy, if they are created anew. With
--health=seeded runs do not matter: what is wrong is told by notifications
and metrics only.
` + exitHelp,
		Args:        cobra.NoArgs,
		Annotations: map[string]string{lenientAnnotation: "all"},
	}
	cmd.Flags().StringVar(&only, "health", "all", "what counts: all, or seeded (the volumes are seeded and the scheduler is alive)")
	cmd.RunE = a.runs(func(ctx context.Context, _ []string) error {
		if only != "all" && only != "seeded" {
			return usagef("--health %q: write all or seeded", only)
		}
		s, err := agent.Ask(ctx, a.agentName())
		if err != nil {
			return err
		}
		if a.json {
			if err := a.printJSON(s); err != nil {
				return err
			}
		}
		if err := s.Health(time.Now(), only == "seeded"); err != nil {
			return fmt.Errorf("not healthy: %w", err)
		}
		if !a.json {
			fmt.Fprintln(a.stdout, describeStatus(&s))
		}
		return nil
	})
	return cmd
}

func describeStatus(s *agent.Status) string {
	text := "healthy"
	if s.Stack != "" {
		text += "; stack " + s.Stack
	}
	if !s.Next.IsZero() {
		text += "; next run " + s.Next.Local().Format("2006-01-02 15:04:05 MST")
	}
	return text
}
