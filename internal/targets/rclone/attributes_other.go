//go:build !linux

package rclone

import (
	"os"
	"syscall"
)

// childAttributes: nothing here ends a child with its parent.
func childAttributes() *syscall.SysProcAttr { return nil }

// killGroup ends a process.
func killGroup(p *os.Process) { _ = p.Kill() }
