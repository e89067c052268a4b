// Package compose stands for a dependency.
package compose
