// Package cobra stands for a dependency.
package cobra
