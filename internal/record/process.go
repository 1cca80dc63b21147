// This file holds how to tell that another process of this machine is gone.

package record

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Process names a process such that no other is meant, also after its number was given to another
// one. It is empty where the system does not tell.
type Process struct {
	Boot      string `json:"boot,omitempty"`      // of the machine
	Namespace string `json:"namespace,omitempty"` // in which its number counts
	PID       int    `json:"pid,omitempty"`
	Started   string `json:"started,omitempty"` // in ticks since the boot
}

// proc is where Linux tells of processes. It is a variable for tests.
var proc = "/proc"

// ThisProcess returns the process that runs this.
func ThisProcess() Process {
	boot, err := os.ReadFile(filepath.Join(proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return Process{}
	}
	namespace, err := os.Readlink(filepath.Join(proc, "self/ns/pid"))
	if err != nil {
		return Process{}
	}
	pid := os.Getpid()
	started, err := startOf(pid)
	if err != nil {
		return Process{}
	}
	return Process{strings.TrimSpace(string(boot)), namespace, pid, started}
}

// startOf returns when a process was started.
func startOf(pid int) (string, error) {
	stat, err := os.ReadFile(filepath.Join(proc, fmt.Sprint(pid), "stat"))
	if err != nil {
		return "", err
	}
	// proc_pid_stat(5): the second field is the program's name in parentheses, which may hold anything;
	// the start time is the 22nd.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", errors.New("unknown format of stat")
	}
	return fields[19], nil
}

// IsGone says whether p is certainly gone: it was a process of the same machine and namespace as
// self, and is there no more. Of another machine's we cannot tell.
func (p Process) IsGone(self Process) bool {
	if p.PID <= 0 || p.Boot != self.Boot || p.Namespace != self.Namespace {
		return false
	}
	started, err := startOf(p.PID)
	return errors.Is(err, fs.ErrNotExist) && !isThere(p.PID) || err == nil && started != p.Started
}

// isThere says whether there is a process with a number. Who is not told of other users' processes (hidepid of the file
// system, ProtectProc of systemd) can tell by this that they are there.
func isThere(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return true
	}
	defer func() { _ = p.Release() }()
	return !errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone)
}
