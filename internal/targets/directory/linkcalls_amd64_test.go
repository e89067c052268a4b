package directory

import "golang.org/x/sys/unix"

var linkCalls = []int{unix.SYS_LINK, unix.SYS_LINKAT}
