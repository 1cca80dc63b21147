// This file holds the one name of an upstream.

package caddybokeh

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
)

// schemePorts are the ports that Caddy dials for the schemes an upstream may be written with.
var schemePorts = map[string]string{"http": "80", "h2c": "80", "https": "443"}

// upstreamName returns the one name of the upstream that Caddy dials at addr, placeholders
// expanded: host and port in lower case, IPv6 in its canonical form, no scheme, no "tcp/", no
// trailing dot; or unix/ and the path. It asks no DNS: two names of one server stay two upstreams.
func upstreamName(addr string) string {
	scheme, rest, hasScheme := strings.Cut(addr, "://")
	if hasScheme {
		addr = rest
	}
	network, host, port, err := caddy.SplitNetworkAddress(addr)
	if err != nil {
		return strings.ToLower(addr)
	}
	if caddy.IsUnixNetwork(network) {
		return "unix/" + host
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	}
	if port == "" {
		port = "80"
		if p, ok := schemePorts[strings.ToLower(scheme)]; hasScheme && ok {
			port = p
		}
	}
	name := net.JoinHostPort(host, port)
	if network == "" || strings.HasPrefix(network, "tcp") {
		return name
	}
	return network + "/" + name
}

// sharedName is the name of an upstream in what several nodes read. A loopback or unix-socket
// upstream is a different server on every machine, so its name takes the host's with it.
func sharedName(name string) string { return sharedNameAt(name, hostname()) }

// hostname is this machine's. A process keeps to the one that it began with.
var hostname = sync.OnceValue(func() string {
	name, _ := os.Hostname()
	return name
})

func sharedNameAt(name, host string) string {
	if !isLocal(name) {
		return name
	}
	return name + "@" + host
}

func isLocal(name string) bool {
	if strings.HasPrefix(name, "unix/") {
		return true
	}
	_, host, _, err := caddy.SplitNetworkAddress(name)
	if err != nil {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost")
}
