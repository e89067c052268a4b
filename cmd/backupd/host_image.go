//go:build image

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/snapshot"
)

// projectFlags are no flags in the image, which has no Compose file to read: what
// reads them is a twentieth of the program (docs/adr/0022-host-code-outside-the-image.md).
type projectFlags struct{}

func (*projectFlags) flags(*pflag.FlagSet) {}

func (*projectFlags) throughCompose(context.Context, *cobra.Command, []string) (bool, error) {
	return false, nil
}

func (a *app) runThroughCompose(context.Context, *projectFlags) error {
	return fmt.Errorf("%w: the program of the image runs in the project already", snapshot.ErrUsage)
}

func (a *app) initProject(context.Context, *projectFlags, string, bool) error {
	return fmt.Errorf("%w: the program of the image edits no Compose file: run the host's `backupd init` in the project's directory; or, to create an encrypted repository, say --target TARGET", snapshot.ErrUsage)
}
