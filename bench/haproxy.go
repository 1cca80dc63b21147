// This file holds HAProxy as a peer: leastconn with a cookie that it inserts, as its users run it.

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
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
	option redispatch

listen bokeh
	bind %[2]s
	balance leastconn
	cookie SRV insert indirect nocache
`

// haproxy is a running HAProxy.
type haproxy struct {
	proxy
	*stack.Process
	socket string
	names  map[string]string // of the servers
}

func startHAProxy(_ *run, s site) (front, error) {
	addrs, err := freeAddrs(1)
	if err != nil {
		return nil, err
	}
	f := &haproxy{proxy: proxy{addrs[0]}, socket: filepath.Join(s.dir, "admin.sock"), names: map[string]string{}}
	var config strings.Builder
	fmt.Fprintf(&config, haproxyConfig, f.socket, f.addr)
	server := func(addr, more string) {
		name := fmt.Sprint("s", len(f.names)+1)
		f.names[addr] = name
		fmt.Fprintf(&config, "\tserver %[1]s %[2]s cookie %[1]s check%[3]s\n", name, addr, more)
	}
	for _, addr := range s.servers {
		server(addr, "")
	}
	for _, addr := range s.late {
		server(addr, " disabled")
	}
	file := filepath.Join(s.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		return nil, err
	}
	f.Process, err = stack.Start("haproxy", nil, nil, "haproxy", "-db", "-f", file)
	if err != nil {
		return nil, err
	}
	return listening(f, f.Process, f.addr)
}

// join takes a server into service that the config has as disabled.
func (f *haproxy) join(addr string) error {
	conn, err := net.DialTimeout("unix", f.socket, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "set server bokeh/%s state ready\n", f.names[addr])
	answer, err := io.ReadAll(conn)
	if text := strings.TrimSpace(string(answer)); err == nil && text != "" {
		err = errors.New("haproxy says: " + text)
	}
	return err
}

func (f *haproxy) pid() int { return f.Pid() }
func (f *haproxy) stop()    { f.Kill() }

func haproxyVersion(*bench) (string, error) { return said("haproxy", "-v") }
