// Command backupd may import cobra, and no test helper.
package main

import (
	"context"
	"fmt"
	"time"

	_ "github.com/docker/fake" // want
	_ "github.com/spf13/cobra"
	_ "github.com/spf13/pflag"

	_ "github.com/disko/backupd/internal/config"
	_ "github.com/disko/backupd/internal/testservers" // want
	_ "github.com/disko/backupd/internal/teststack"   // want
	_ "github.com/disko/backupd/internal/testtree"    // want
)

func main() { fmt.Println(time.Now(), context.Background()) }
