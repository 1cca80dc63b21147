// This file holds what is said where the name of an upstream leads to several servers.

package caddybokeh

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"go.uber.org/zap"
)

// lookedUp takes note of the addresses that the name of m has, when a connection was to be made. Each connection may go to
// another one then, so where they are several servers a page and its websocket meet by luck. One address of each family
// is one server, and so are all that a name of this machine has.
func (s *Selection) lookedUp(m *member, found []net.IPAddr) {
	addresses := 1
	if !isLocal(m.name) {
		addresses = mostOfAFamily(found)
	}
	m.addresses.Store(int32(addresses))
	if addresses <= 1 || m.told.Load() || !s.pacers.names.lets(m.name, s.table.now()) {
		return
	}
	m.told.Store(true)
	s.logger.Warn("upstream's name has several addresses, and each connection may go to another one: a page and its websocket meet by luck, and the app runs more than once a visit"+
		" (if they are several servers, find each by itself: put these lines into the block in place of the address, with the resolvers that the transport has)",
		zap.String("upstream", m.name), zap.Int("addresses", addresses), zap.String("caddyfile", s.eachByItself(m.name)))
}

// mostOfAFamily returns how many addresses there are of IPv4 or of IPv6, of whichever there are more.
func mostOfAFamily(found []net.IPAddr) int {
	seen := make(map[netip.Addr]bool)
	var four, six int
	for _, addr := range found {
		ip, ok := netip.AddrFromSlice(addr.IP)
		if ip = ip.Unmap(); !ok || seen[ip] {
			continue
		}
		seen[ip] = true
		if ip.Is4() {
			four++
		} else {
			six++
		}
	}
	return max(four, six)
}

// eachByItself returns the lines of a Caddyfile that find every address of the handler's upstreams.
func (s *Selection) eachByItself(name string) string {
	if len(s.static) <= 1 {
		return "dynamic " + discoverBy(name)
	}
	var lines strings.Builder
	for _, u := range s.static {
		fmt.Fprintf(&lines, "\t%s\n", discoverBy(upstreamName(u.Dial)))
	}
	return "dynamic multi {\n" + lines.String() + "}"
}

// discoverBy returns the source that finds all addresses of the named upstream.
func discoverBy(name string) string {
	host, port, _ := net.SplitHostPort(name)
	return fmt.Sprintf("a %s %s", host, port)
}
