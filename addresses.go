// This file holds what is said where the name of an upstream leads to several servers.

package caddybokeh

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// lookedUp takes note of the addresses that the name of m has, when a connection was to be made. Each connection may go to
// another one then, so where they are several servers a page and its websocket meet by luck. One address of each family
// is one server, and so are all that a name of this machine has.
func (s *Selection) lookedUp(m *member, found []net.IPAddr) {
	four, six := byFamily(found)
	addresses := 1
	if !isLocal(m.Name) {
		addresses = max(four, six)
	}
	m.Addresses.Store(int32(addresses))
	m.AddressFamily.Store(int32(familyOf(four, six)))
	if addresses <= 1 || m.told.Load() || !s.pacers.names.allows(m.Name, s.table.Now()) {
		return
	}
	m.told.Store(true)
	s.logger.Warn("upstream's name has several addresses, and each connection may go to another one: a page and its websocket meet by luck, and the app runs more than once a visit"+
		" (if they are several servers, find each by itself: put these lines into the block in place of the address, with the resolvers that the transport has)",
		zap.String("upstream", m.Name), zap.Int("addresses", addresses), zap.String("caddyfile", s.eachByItself(m.Upstream)))
}

// isHostOf says whether a host is that of the named upstream, as it is dialed.
func isHostOf(name, host string) bool {
	own, _, err := net.SplitHostPort(name)
	return err == nil && strings.EqualFold(strings.TrimSuffix(host, "."), own)
}

// byFamily returns how many addresses there are of IPv4 and of IPv6.
func byFamily(found []net.IPAddr) (four, six int) {
	seen := make(map[netip.Addr]bool)
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
	return four, six
}

// family is that of the addresses by which a source should find the servers of a name.
type family int32

const (
	onlyFamily family = 0 // that which the name has
	family4    family = 4
	family6    family = 6
)

// familyOf returns the family to name where there are so many addresses of IPv4 and of IPv6. Where a server has one of
// each, a source that is told of none finds it twice, and takes it for two servers.
func familyOf(four, six int) family {
	switch {
	case four == 0 || six == 0:
		return onlyFamily
	case six > four:
		return family6
	}
	return family4
}

// eachByItself returns the lines of a Caddyfile that find every address of the handler's upstreams, of which u is one.
func (s *Selection) eachByItself(u *sessions.Upstream) string {
	if len(s.static) <= 1 {
		return "dynamic " + discoverBy(u.Name, family(u.AddressFamily.Load()), "")
	}
	var lines strings.Builder
	for _, other := range s.static {
		m := s.members.get(other.Dial)
		of := family(m.AddressFamily.Load())
		if isLocal(m.Name) {
			of = family4
		}
		fmt.Fprintf(&lines, "\t%s\n", discoverBy(m.Name, of, "\t"))
	}
	return "dynamic multi {\n" + lines.String() + "}"
}

// discoverBy returns the source that finds all addresses of the named upstream, with an indent from its second line on.
func discoverBy(name string, of family, indent string) string {
	source, ok := api.Source(name)
	if !ok || of == onlyFamily {
		return source
	}
	host, _, _ := net.SplitHostPort(name)
	if _, err := netip.ParseAddr(host); err == nil {
		return source
	}
	return fmt.Sprintf("%s {\n%s\tversions ipv%d\n%s}", source, indent, of, indent)
}
