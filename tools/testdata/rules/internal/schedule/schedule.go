// Package schedule stands for ours.
package schedule
