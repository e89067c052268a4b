package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/targets"
)

// openTarget opens a target that exists.
func (a *app) openTarget(_ context.Context, name string) (store.Writer, error) {
	st, err := targets.Open(name)
	if err != nil {
		return nil, usage(err)
	}
	return st, nil
}

// createTarget opens a target to write to, made where only its last part is missing.
func (a *app) createTarget(_ context.Context, name string) (store.Writer, error) {
	st, err := targets.Create(name)
	if err != nil {
		return nil, usage(err)
	}
	return st, nil
}

// readOnly hides what can write, so that no reader does.
type readOnly struct{ store.Reader }

func noTarget() error {
	return fmt.Errorf("%w: no target named; say --target DIR, or set BACKUPD_TARGET", snapshot.ErrUsage)
}

// usage makes an error about a target's name one of usage.
func usage(err error) error {
	if errors.Is(err, store.ErrNoTarget) || errors.Is(err, store.ErrAccess) {
		return err
	}
	return fmt.Errorf("%w: %w", snapshot.ErrUsage, err)
}
