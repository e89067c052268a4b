// Package aws stands for a dependency.
package aws
