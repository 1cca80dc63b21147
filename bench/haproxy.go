// This file holds HAProxy as a peer: leastconn with a cookie that it inserts, as its users run it.

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// haproxyConfig is all but the servers.
const haproxyConfig = `global
	stats socket %[1]s mode 600 level admin

defaults
	mode http
	timeout connect 5s
	timeout client 1m
	timeout server 1m
	timeout tunnel 1h
	retries 3
	option redispatch 1
	balance leastconn
	default-server check inter 1s fall 2 observe layer4 error-limit 3 on-error mark-down%[4]s

frontend bokeh
	bind %[2]s
	use_backend %[3]s if { hdr(Upgrade) -i websocket }
	default_backend pages
`

// haproxyBackend is a backend, without its servers.
const haproxyBackend = `
backend %s
	cookie SRV insert indirect nocache
`

// Where websockets have a backend of their own, leastconn counts them for themselves.
const (
	oneBackend  = "pages"
	twoBackends = "sockets"
)

// haproxy is a running HAProxy.
type haproxy struct {
	proxy
	*stack.Process
	socket   string
	backends []string
	names    map[string]string // of the servers
}

// startHAProxy returns how to start HAProxy with one backend for all, or another one for websockets.
func startHAProxy(sockets, more string) func(*run, site) (front, error) {
	return func(_ *run, s site) (front, error) {
		addrs, err := freeAddrs(1)
		if err != nil {
			return nil, err
		}
		f := &haproxy{proxy: proxy{addrs[0]}, socket: filepath.Join(s.dir, "admin.sock"), backends: []string{oneBackend}, names: map[string]string{}}
		if sockets != oneBackend {
			f.backends = append(f.backends, sockets)
		}
		file := filepath.Join(s.dir, "haproxy.cfg")
		if err := os.WriteFile(file, []byte(f.config(s, sockets, more)), 0o600); err != nil {
			return nil, err
		}
		f.Process, err = stack.Start("haproxy", nil, nil, "haproxy", "-db", "-f", file)
		if err != nil {
			return nil, err
		}
		return listening(f, f.Process, f.addr)
	}
}

func (f *haproxy) config(s site, sockets, more string) string {
	var config strings.Builder
	fmt.Fprintf(&config, haproxyConfig, f.socket, f.addr, sockets, more)
	for _, backend := range f.backends {
		fmt.Fprintf(&config, haproxyBackend, backend)
		for i, addr := range append(slices.Clone(s.servers), s.late...) {
			disabled := ""
			if i >= len(s.servers) {
				disabled = " disabled"
			}
			f.names[addr] = fmt.Sprint("s", i+1)
			fmt.Fprintf(&config, "\tserver %[1]s %[2]s cookie %[1]s%[3]s\n", f.names[addr], addr, disabled)
		}
	}
	return config.String()
}

// join takes a server into service that the config has as disabled.
func (f *haproxy) join(addr string) error {
	for _, backend := range f.backends {
		if err := f.ready(backend + "/" + f.names[addr]); err != nil {
			return err
		}
	}
	return nil
}

func (f *haproxy) ready(server string) error {
	conn, err := net.DialTimeout("unix", f.socket, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "set server %s state ready\n", server)
	answer, err := io.ReadAll(conn)
	if text := strings.TrimSpace(string(answer)); err == nil && text != "" {
		err = errors.New("haproxy says: " + text)
	}
	return err
}

func (f *haproxy) pid() int { return f.Pid() }
func (f *haproxy) stop()    { f.Kill() }

func haproxyVersion(*bench) (string, error) { return said("haproxy", "-v") }
