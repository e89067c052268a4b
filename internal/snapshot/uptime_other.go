//go:build !linux

package snapshot

import "time"

// uptime is not asked for.
func uptime() (boot string, since time.Duration) { return "", 0 }
