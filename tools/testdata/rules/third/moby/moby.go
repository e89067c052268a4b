// Package moby stands for a dependency.
package moby
