// Package targets stands for ours.
package targets
