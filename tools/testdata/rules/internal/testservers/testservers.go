// Package testservers stands for ours.
package testservers
