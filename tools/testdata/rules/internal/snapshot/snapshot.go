// Package snapshot stands for ours.
package snapshot
