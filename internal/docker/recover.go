package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Recovered tells what a recovery found.
type Recovered struct {
	// Runs that died, whose services go on again.
	Runs []string
	// Resumed are the containers and services that had been left standing.
	Resumed []string
}

// Recover makes go on what runs that died have left stopped, paused or scaled to
// nothing, and runs the post hooks that they owe. Runs that live are left alone.
// It is called at every start, and may be called again at any time. On an error
// the journals of what could not be resumed stay, and all else goes on.
func (e *Engine) Recover(ctx context.Context, state string) (Recovered, error) {
	return e.recoverWith(ctx, state, hands{engine: e, now: time.Now})
}

func (e *Engine) recoverWith(ctx context.Context, state string, h hands) (Recovered, error) {
	var out Recovered
	names, err := LeftOver(state)
	errs := []error{err}
	for _, name := range names {
		j, err := openLeftOver(name, h.now)
		switch {
		case errors.Is(err, errOwned) || err == nil && j == nil:
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("read journal %s, which a run that died has left: %w; start by hand what stands still (docker ps -a), then remove it", name, err))
			continue
		}
		if err := h.recover(ctx, j, &out); err != nil {
			errs = append(errs, fmt.Errorf("resume what run %s has left standing still: %w", j.run, err))
		}
	}
	return out, errors.Join(errs...)
}

// recover undoes a journal and closes it.
func (h *hands) recover(ctx context.Context, j *journal, out *Recovered) error {
	if j.id != "" && h.engine.ID != "" && j.id != h.engine.ID && len(j.open()) > 0 {
		return errors.Join(fmt.Errorf("journal %s is of another engine (%s): connect to that one, or remove the file", j.f.Name(), j.id), j.f.Close())
	}
	if j.run != "" {
		out.Runs = append(out.Runs, j.run)
	}
	before := j.open()
	err := h.undo(ctx, j, func(e *entry) bool { return e.Act != actPost })
	// Hooks last, as in a run; one that fails is told and not tried for ever.
	posts := slices.DeleteFunc(j.open(), func(e *entry) bool { return e.Act != actPost })
	for _, p := range posts {
		h.reach("before post %s", p.Name)
		err = errors.Join(err, h.engine.postHook(context.WithoutCancel(ctx), j.project, p))
		h.reach("after post %s", p.Name)
	}
	err = errors.Join(err, j.mark(nil, posts))
	for _, e := range before {
		if e.resumed {
			out.Resumed = append(out.Resumed, e.Name)
		}
	}
	h.reach("settle")
	return errors.Join(err, j.settle())
}
