// Command backupd-host may import cobra, and neither targets nor agents.
package main

import (
	_ "github.com/spf13/cobra"

	_ "github.com/disko/backupd/internal/host"
	_ "github.com/disko/backupd/internal/targets" // want
)

func main() {}
