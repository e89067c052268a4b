// Package docker stands for ours.
package docker
