package nfs

import (
	"context"
	"errors"
	"fmt"

	"github.com/disko/backupd/internal/store"
)

// explain gives an error the sentinel that callers ask for, and says the act.
// What may be better the next time gets none: a broken connection, a server
// that asks to try again later, a handle that went stale twice.
func (t *Target) explain(act, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrShort), errors.Is(err, store.ErrExist), errors.Is(err, store.ErrAccess),
		errors.Is(err, store.ErrNoTarget), errors.Is(err, store.ErrNoSpace),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s: %w", act, what, err)
	case says(err, statNoSpc):
		return fmt.Errorf("%s %s: %w (%w)", act, what, store.ErrNoSpace, err)
	case says(err, statDQuot):
		return fmt.Errorf("%s %s: %w: the quota of user %d is used up (%w)", act, what, store.ErrNoSpace, t.o.caller().uid, err)
	case says(err, statROFS):
		return fmt.Errorf("%s %s: %w: the server exports it read-only, or its disk is (%w)", act, what, store.ErrAccess, err)
	case says(err, statAcces, statPerm):
		return fmt.Errorf("%s %s: %w (%w); %s", act, what, store.ErrAccess, err, t.identityHint())
	case absent(err):
		return fmt.Errorf("%s %s: %w (%w)", act, what, store.ErrNotExist, err)
	}
	return fmt.Errorf("%s %s: %w", act, what, err)
}

func (t *Target) identityHint() string {
	c := t.o.caller()
	if c.uid == 0 {
		return "the server takes root for nobody, as exports with root_squash do: name the directory's owner by ?uid=N&gid=N, or export with no_root_squash"
	}
	return fmt.Sprintf("user %d, group %d may not: give them the directory, or name its owner by ?uid=N&gid=N", c.uid, c.gid)
}
