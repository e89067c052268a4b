package agent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestAnAgentIsHealthyWhenItServesAndNothingIsWrong(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, c := range []struct {
		name       string
		s          Status
		onlySeeded bool
		want       string // in the error; empty for healthy
	}{
		{name: "serving", s: Status{Phase: Serving, Beat: now.Add(-time.Minute)}},
		{name: "seeding", s: Status{Phase: Seeding, Beat: now}, want: "being seeded"},
		{name: "nothing yet", s: Status{}, want: "the agent is"},
		{name: "silent", s: Status{Phase: Serving, Beat: now.Add(-4 * time.Minute)}, want: "no sign of life"},
		{name: "failed", s: Status{Phase: Serving, Beat: now, Problems: []string{"the last run failed", "old"}}, want: "the last run failed; old"},
		{name: "failed, but who cares", s: Status{Phase: Serving, Beat: now, Problems: []string{"the last run failed"}}, onlySeeded: true},
	} {
		err := c.s.Health(now, c.onlySeeded)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestAStatusIsReadByAnotherProcessAndGoneWithTheAgent(t *testing.T) {
	name := fmt.Sprintf("test-%d-%s", os.Getpid(), t.Name())
	b := &Board{}
	b.Update(func(s *Status) { s.Phase, s.Stack, s.Problems = Serving, "shop", []string{"one"} })
	ctx, cancel := context.WithCancel(t.Context())
	wait, err := b.Publish(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Ask(t.Context(), name)
	if err != nil || s.Phase != Serving || s.Stack != "shop" || len(s.Problems) != 1 {
		t.Errorf("the agent says %+v, %v", s, err)
	}
	if _, err := b.Publish(ctx, name); err == nil {
		t.Error("two agents serve under one name")
	}
	cancel()
	wait()
	if s, err := Ask(t.Context(), name); err == nil {
		t.Errorf("an agent that has ended says %+v", s)
	}
}
