// Package teststack stands for ours.
package teststack
