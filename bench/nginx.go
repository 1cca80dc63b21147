// This file holds nginx as a peer.

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// nginxConfig is the config: folder, user, listener, method, servers, stickiness. The zone lets its workers count together.
const nginxConfig = `daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
%[2]s
worker_processes auto;
worker_rlimit_nofile 20000;

events {
	worker_connections 10000;
}

http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	large_client_header_buffers 4 32k;

	map $http_upgrade $connection_upgrade {
		default upgrade;
		'' close;
	}

	upstream bokeh {
		zone bokeh 256k;
		%[4]s
		%[5]s%[6]s
	}

	server {
		listen %[3]s;

		location / {
			proxy_pass http://bokeh;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_read_timeout 1h;
		}
	}
}
`

// nginxFront is a running nginx.
type nginxFront struct {
	proxy
	*stack.Process
	servers []string
	dir     string
	method  string
	sticky  string
}

// nginx returns how to start nginx with a method.
func nginx(method, sticky string) func(*run, site) (front, error) {
	return func(_ *run, s site) (front, error) {
		addrs, err := freeAddrs(1)
		if err != nil {
			return nil, err
		}
		f := &nginxFront{proxy: proxy{addrs[0]}, servers: s.servers, dir: s.dir, method: method, sticky: sticky}
		if err := f.write(); err != nil {
			return nil, err
		}
		f.Process, err = stack.Start("nginx", nil, nil, "nginx", "-p", s.dir, "-c", f.file(), "-e", filepath.Join(s.dir, "error.log"))
		if err != nil {
			return nil, err
		}
		return listening(f, f.Process, f.addr)
	}
}

func (f *nginxFront) file() string { return filepath.Join(f.dir, "nginx.conf") }

func (f *nginxFront) write() error {
	user := ""
	if os.Getuid() == 0 {
		// Its workers must reach their folder.
		user = "user root;"
	}
	var servers strings.Builder
	for _, addr := range f.servers {
		servers.WriteString("server " + addr + ";\n\t\t")
	}
	text := fmt.Sprintf(nginxConfig, f.dir, user, f.addr, f.method, servers.String(), f.sticky)
	return os.WriteFile(f.file(), []byte(text), 0o600)
}

// join writes the config anew and has nginx read it.
func (f *nginxFront) join(addr string) error {
	f.servers = append(f.servers, addr)
	if err := f.write(); err != nil {
		return err
	}
	// Only the first process knows what the signal means.
	return syscall.Kill(f.Pid(), syscall.SIGHUP)
}

func (f *nginxFront) pid() int { return f.Pid() }
func (f *nginxFront) stop()    { f.Kill() }

func nginxVersion(*bench) (string, error) { return said("nginx", "-v") }

// nginxStickyVersion fails where nginx has no cookies: before 1.29.6.
func nginxStickyVersion(b *bench) (string, error) {
	version, err := nginxVersion(b)
	if err != nil {
		return "", err
	}
	_, number, _ := strings.Cut(version, "/")
	var major, minor, patch int
	_, _ = fmt.Sscanf(number, "%d.%d.%d", &major, &minor, &patch)
	if major < 1 || major == 1 && (minor < 29 || minor == 29 && patch < 6) {
		return "", errors.New(version + " has no sticky cookie")
	}
	return version, nil
}
