// This file holds what is done with the processes of a peer: asked for their version, awaited, and measured.

package main

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"

	"github.com/prometheus/procfs"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// said returns the first line that a program says.
func said(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// freeAddrs returns loopback addresses that nobody uses.
func freeAddrs(n int) ([]string, error) {
	ports, err := stack.FreePorts(n)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, n)
	for i, port := range ports {
		addrs[i] = fmt.Sprint("127.0.0.1:", port)
	}
	return addrs, nil
}

// listening returns the front once its process takes connections, or ends the process.
func listening(f front, p *stack.Process, addr string) (front, error) {
	err := p.Await(20*time.Second, func() error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		p.Kill()
		return nil, err
	}
	return f, nil
}

// usage is what a group of processes has used.
type usage struct {
	cpu    float64 // seconds
	memory float64 // bytes
}

// used asks the kernel. What has ended counts for its parent.
func used(group int) (u usage, err error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return u, err
	}
	ticks := 100.
	for _, p := range all {
		s, err := p.Stat()
		if err != nil || s.PGRP != group {
			continue
		}
		u.cpu += s.CPUTime() + float64(s.CUTime+s.CSTime)/ticks
		u.memory += float64(s.ResidentMemory())
	}
	return u, nil
}
