// Package docker stands for a dependency.
package docker
