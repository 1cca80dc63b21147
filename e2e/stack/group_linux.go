// This file holds how a child process is kept on Linux.

package stack

import "syscall"

// ownGroup keeps Ctrl-C from the child, which we end in order, and ends it if we are killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
