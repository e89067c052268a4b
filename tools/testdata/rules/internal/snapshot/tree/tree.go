// Package tree breaks the engine's rules.
package tree

import (
	"context"
	"time"

	_ "github.com/aws/fake"    // want
	_ "github.com/docker/fake" // want
	_ "github.com/moby/fake"   // want
	_ "github.com/spf13/cobra" // want
	_ "github.com/spf13/pflag" // want

	_ "github.com/disko/backupd/internal/config"   // want
	_ "github.com/disko/backupd/internal/docker"   // want
	_ "github.com/disko/backupd/internal/schedule" // want
	_ "github.com/disko/backupd/internal/snapshot/pack"
	_ "github.com/disko/backupd/internal/targets"  // want
	_ "github.com/disko/backupd/internal/testtree" // want
)

// The clock is read, as a call, as a value and through a helper.
var (
	A = time.Now() // want
	B = time.Now   // want
	C = time.Unix(0, 0)
)

// D reads the clock too.
func D() time.Duration { return time.Since(C) } // want

// E makes a context of its own.
func E() context.Context { return context.Background() } // want
