package snapshot

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// uptime is the one clock that nobody can set: which boot this is, and how
// long it has lasted, suspension included. Empty where the system does not tell.
func uptime() (boot string, since time.Duration) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var ts unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return "", 0
	}
	return strings.TrimSpace(string(id)), time.Duration(ts.Nano())
}
