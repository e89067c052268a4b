package snapshot

import "time"

// Now is the one place.
var Now = time.Now
