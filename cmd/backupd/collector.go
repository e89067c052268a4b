package main

import "runtime/debug"

// By how many percent the heap may grow beyond what is in use until it is
// collected.
const (
	// Packs and frames under way are most of a backup's memory: a collector
	// that lets them double doubles all. They hold no pointers, so that going
	// over them often costs nothing: 25 took 14 MiB less than 50, and no more time.
	collectPacking = 25
	// A restore holds little, and reads much: collecting that often took a tenth of its time.
	collectReading = 200
)

// collect sets it until the function that it returns is called.
func collect(percent int) (back func()) {
	before := debug.SetGCPercent(percent)
	return func() { debug.SetGCPercent(before) }
}
