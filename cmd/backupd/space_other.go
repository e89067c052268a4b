//go:build !linux

package main

// freeSpace is not asked for: nothing is restored here.
func freeSpace(string) (free int64, known bool) { return 0, false }
