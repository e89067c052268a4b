// Package testtree makes, changes, copies and compares directory trees, for
// tests and for the benchmark program.
//
// It is the judge of the engine and so shares no code with it: it imports
// nothing of this module, and must never be imported by anything but tests and
// the benchmark program. Every path is reached through directory descriptors,
// so paths may be far longer than PATH_MAX, and names are bytes: they need not
// be UTF-8 and may hold newlines.
//
// Everything that takes a seed is deterministic: the same seed over the same
// tree does the same, but for the clock.
package testtree
