// This file holds how a child process is kept where there is no Linux.

//go:build !linux

package stack

import "syscall"

// ownGroup keeps Ctrl-C from the child, which we end in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
