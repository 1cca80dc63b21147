// This file holds a front: a relay before Caddy whose connections a test can cut.

package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// front passes connections on to Caddy.
type front struct {
	net.Listener
	to string

	mu       sync.Mutex // guards all below
	conns    map[net.Conn]bool
	accepted int
}

func newFront(t *testing.T, to string) *front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{Listener: ln, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		ln.Close()
		f.cut()
	})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go f.relay(c)
		}
	}()
	return f
}

func (f *front) port() int { return f.Addr().(*net.TCPAddr).Port }

func (f *front) relay(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer up.Close()
	f.mu.Lock()
	f.conns[c] = true
	f.accepted++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.conns, c)
		f.mu.Unlock()
	}()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{c, up}, {up, c}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			done <- struct{}{}
		}()
	}
	<-done // whichever side ends, both do
}

// cut closes all connections.
func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}
