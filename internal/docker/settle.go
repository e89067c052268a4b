package docker

import (
	"context"
	"slices"
	"time"
)

// checkpoint has PostgreSQL write to its files what it holds in memory.
const checkpoint = postgresLogin + `
run='exec psql -XAtqw -d postgres -c checkpoint'
` + asSystemUser

// checkpointTime bounds a checkpoint, which writes as much as the server may hold back:
// max_wal_size, by default 1 GB.
const checkpointTime = 5 * time.Minute

// Settle has each PostgreSQL that is about to be stopped write a checkpoint. It
// writes one on its way down in any case, at the same speed, but then its clients wait
// for it, and so does the reading of all that it changed. It says whether one did.
// One that refuses, or may not be asked, is stopped without: that is as safe.
func (q *Quiescer) Settle(ctx context.Context) bool {
	p, err := q.Plan(ctx)
	if err != nil {
		return false // Freeze says so
	}
	settled := false
	for _, s := range p.Steps {
		if s.Act == ActPause {
			continue // which has nothing written
		}
		for _, c := range s.Containers {
			kinds, err := q.engine.databasesIn(ctx, c)
			if err == nil && slices.Contains(kinds, Postgres) && q.engine.run(ctx, c, command{script: checkpoint}, checkpointTime) == nil {
				settled = true
			}
		}
	}
	return settled
}
