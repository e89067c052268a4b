package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// ErrMayNot: the engine, or a proxy before it, does not allow what would be done.
var ErrMayNot = errors.New("the Docker engine does not allow it")

// MayNotError is an ErrMayNot that says what is not allowed. Nothing was done.
type MayNotError struct {
	Doing      string   // what could not be done
	Permission string   // "POST /containers/ID/stop"
	Asked      []string // services whose labels ask for it; none: it is the default
}

func (e *MayNotError) Error() string {
	text := fmt.Sprintf("%s: %v: it refuses %s; allow that in the proxy before it (docs/quiesce.md has the list)", e.Doing, ErrMayNot, e.Permission)
	if len(e.Asked) > 0 {
		return text + ", or take the label off " + strings.Join(e.Asked, ", ")
	}
	return text + ", or label services " + labelQuiesce + "=none"
}

// Is makes it an ErrMayNot.
func (e *MayNotError) Is(target error) bool { return target == ErrMayNot }

// Demanded says whether an ErrMayNot is about something that a label asks for:
// then a backup without it is not what its owner wants, and fails.
func Demanded(err error) bool {
	var m *MayNotError
	return errors.As(err, &m) && len(m.Asked) > 0
}

// nobody is the name of a container that is not there. A request for it is
// answered by "not found" where it would be allowed, and refused where not.
const nobody = "backupd-asks-whether-it-may"

// mayFreeze asks whether all that the steps need is allowed, undoing included:
// there are proxies that let stop pass, but not start.
func (q *Quiescer) mayFreeze(ctx context.Context, steps []Step) error {
	if len(steps) == 0 {
		return nil
	}
	requests := map[Act][]permission{
		ActStop: q.engine.mayStop(ctx),
		ActPause: {
			{"POST /containers/ID/unpause", func() error { return q.engine.api.ContainerUnpause(ctx, nobody) }},
			{"POST /containers/ID/pause", func() error { return q.engine.api.ContainerPause(ctx, nobody) }},
		},
		ActScale: {q.engine.mayScale(ctx)},
	}
	doing := "make " + strings.Join(services(steps, func(Step) bool { return true }), ", ") + " stand still"
	var refused []string // all of them, so that the proxy's settings are changed once
	for _, act := range []Act{ActStop, ActPause, ActScale} {
		of := func(s Step) bool { return s.Act == act }
		if !slices.ContainsFunc(steps, of) {
			continue
		}
		for _, p := range requests[act] {
			if p.refused() {
				refused = append(refused, p.name)
			}
		}
	}
	if len(refused) > 0 {
		return &MayNotError{Doing: doing, Permission: strings.Join(refused, " and "), Asked: services(steps, func(s Step) bool { return s.Asked })}
	}
	return nil
}

// mayStop asks to stop and to start a container that is not there.
func (e *Engine) mayStop(ctx context.Context) []permission {
	return []permission{
		{"POST /containers/ID/start", func() error { return e.api.ContainerStart(ctx, nobody, container.StartOptions{}) }},
		{"POST /containers/ID/stop", func() error { return e.api.ContainerStop(ctx, nobody, container.StopOptions{}) }},
	}
}

// permission asks for something that is not there.
type permission struct {
	name    string
	request func() error
}

func (p permission) refused() bool { return Forbidden(p.request()) }
