//go:build !linux

package snapshot

import "time"

// uptime is not told here: where a target has no clock of its own, nothing is pruned.
func uptime() (boot string, since time.Duration) { return "", 0 }
