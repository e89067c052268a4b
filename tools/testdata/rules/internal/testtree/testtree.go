// Package testtree stands for ours.
package testtree
