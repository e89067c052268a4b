//go:build !amd64

package directory

import "golang.org/x/sys/unix"

var linkCalls = []int{unix.SYS_LINKAT}
