package snapshot

import "time"

// clock is where the package takes the time from when nobody passes it in:
// the only place that may ask the system.
func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}
