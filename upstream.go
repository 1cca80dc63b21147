// This file holds the name of an upstream, and what one policy knows of the upstreams of its pool.

package caddybokeh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

const (
	// healthPause is how long after an upstream was found unhealthy we look again.
	healthPause = 5 * time.Second
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

// member is an upstream as one policy sees it.
type member struct {
	*sessions.Upstream
	static bool // in the config, so known for as long as that lasts
	inUse  bool // and that has started
	keyed  atomic.Pointer[keyed]

	seen      atomic.Int64                          // when it was last in use, a minute sharp, on the table's clock
	last      atomic.Pointer[reverseproxy.Upstream] // as discovery last had it
	downSince atomic.Int64                          // when it was first seen unhealthy; 0 if it was healthy when last looked at
	watched   atomic.Bool                           // somebody looks until it is healthy again
	dropped   atomic.Bool                           // the policy has forgotten it
	told      atomic.Bool                           // it was logged that its name has several addresses
	taken     bool                                  // it has left the pool, and is another one's by now
	noTLS     sessions.Failure                      // of the TLS handshake, which may be this site's fault alone, if none has succeeded since
	software  atomic.Pointer[software]              // that answered its last page; nil before the first
}

// failing says whether the last connection to m could not be made, not long ago.
func (m *member) failing(now time.Duration) bool {
	return m.IsFailing(now) || m.IsSilent(now) || m.noTLS.JustNow(now)
}

// troubled says whether new sessions should go elsewhere, as long as there is another upstream.
func (m *member) troubled(now time.Duration) bool {
	return m.Breaker.Blocks(now) || m.noTLS.JustNow(now)
}

// unreachable says whether the last connection to m could not be made, however long ago.
func (m *member) unreachable() bool {
	return m.IsUnreachable() || m.noTLS.Was()
}

// shookHands tells how a TLS handshake with m ended. A server that is slow at it may be building
// a page.
func (m *member) shookHands(now time.Duration, err error) {
	if err == nil {
		m.noTLS.Clear()
		return
	}
	if sessions.IsTimeout(err) || errors.Is(err, context.Canceled) {
		return
	}
	m.noTLS.Note(now)
}

// keyed is what the keys of a ring make of an upstream's name.
type keyed struct {
	ring  *stamp.Keyring
	tags  []stamp.Tag // one for each key
	order uint64      // by the first key, for the rendezvous order
}

// keyedBy returns what the given ring makes of the name of m.
func (m *member) keyedBy(ring *stamp.Keyring) *keyed {
	if x := m.keyed.Load(); x != nil && x.ring == ring {
		return x
	}
	x := &keyed{ring: ring}
	for _, k := range *ring {
		x.tags = append(x.tags, k.Tag(m.Shared))
	}
	x.order = (*ring)[0].Order(m.Shared)
	m.keyed.Store(x)
	return x
}

// watch looks at an unhealthy member until it is healthy: requests may come seldom, and it may be
// up and down again between two of them.
func (m *member) watch(healthy func() bool) {
	time.AfterFunc(healthPause, func() {
		switch {
		case m.dropped.Load():
			return
		case !healthy():
			m.watch(healthy)
			return
		}
		m.downSince.Store(0)
		m.watched.Store(false)
	})
}

// full says whether u has a limit of requests and has reached it.
func full(u *reverseproxy.Upstream) bool { return u.Host != nil && u.Full() }

const (
	// memberMemory is how long a policy remembers an upstream that is in no pool of its.
	memberMemory = 10 * time.Minute

	// maxMembers bounds what a policy remembers where clients can make up addresses, as with a
	// placeholder of the request in an upstream's address.
	maxMembers = 4096
)

// maxAddress is how long an address may be that a request has made, in bytes. A name of the DNS has 253 at most, the path of a unix
// socket 107, and a network, a port and a scheme stand beside it: what is longer can be dialed by nobody, and is not to be remembered.
const maxAddress = 320

// members are the upstreams that a policy knows, by the address that Caddy dials.
type members struct {
	l      *ledger
	byDial sync.Map // of string to *member
	source *source  // where they are discovered; nil if they are not, or not for all requests the same

	drained []*sessions.Upstream // by this config

	mu     sync.Mutex // guards all below, and the growth of byDial
	n      int
	swept  time.Duration
	closed bool
}

// attach makes members of the upstreams of the config. Those whose address depends on the
// request are known when one comes.
func (ms *members) attach(pool reverseproxy.UpstreamPool) {
	for _, u := range pool {
		if !hasPlaceholder(u.Dial) {
			ms.get(u.Dial).static = true
		}
	}
}

// started takes note that the config is in use, and of what Caddy makes of its upstreams, which the handler sets
// up after its policy: what health checks say of them is known before the first request then.
func (ms *members) started(pool reverseproxy.UpstreamPool) {
	now := ms.l.Now()
	for _, u := range pool {
		if !hasPlaceholder(u.Dial) {
			m := ms.get(u.Dial)
			m.last.Store(u)
			if m.inUse {
				continue
			}
			if m.inUse = true; m.EnterConfig() {
				m.Joined(ms, now) // the config before did not name it
			}
		}
	}
}

// hasPlaceholder says whether an address depends on the request.
func hasPlaceholder(dial string) bool { return strings.Contains(dial, "{") }

// get returns the member that Caddy dials at the given address, placeholders expanded.
func (ms *members) get(dial string) *member {
	now := ms.l.Now()
	m, ok := ms.byDial.Load(dial)
	if !ok {
		m = ms.add(dial, now)
	}
	found := m.(*member)
	if now-time.Duration(found.seen.Load()) > time.Minute {
		found.seen.Store(int64(now))
	}
	return found
}

func (ms *members) add(dial string, now time.Duration) any {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m, ok := ms.byDial.Load(dial); ok {
		return m
	}
	m := &member{Upstream: ms.l.Hold(upstreamName(dial))}
	m.seen.Store(int64(now))
	if ms.closed {
		// A request outlived its config. Its session holds the upstream, we must not, nor may anybody watch it.
		m.dropped.Store(true)
		ms.l.Release(m.Upstream)
		return m
	}
	switch {
	case ms.n >= maxMembers:
		ms.forget(now)
	case now-ms.swept > time.Minute:
		ms.forget(now - memberMemory)
	}
	ms.swept = now
	ms.byDial.Store(dial, m)
	ms.n++
	return m
}

// forget drops the members last seen before the given time that have no session. ms.mu is locked.
func (ms *members) forget(before time.Duration) {
	ms.byDial.Range(func(dial, m any) bool {
		if m := m.(*member); !m.static && time.Duration(m.seen.Load()) < before && m.Slots.Sessions.Load() == 0 {
			ms.drop(dial, m)
		}
		return true
	})
}

func (ms *members) drop(dial any, m *member) {
	m.dropped.Store(true)
	ms.byDial.Delete(dial)
	if m.inUse {
		m.LeaveConfig()
	}
	ms.n--
	ms.l.Release(m.Upstream)
}

// close forgets all members for good.
func (ms *members) close() {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if !ms.closed {
		ms.l.releaseSource(ms.source)
	}
	ms.closed = true
	ms.byDial.Range(func(dial, m any) bool {
		ms.drop(dial, m.(*member))
		return true
	})
	for _, u := range ms.drained {
		u.Drain.AddConfigs(-1)
		ms.l.Release(u)
	}
	ms.drained = nil
}

// view is a pool as one policy sees it. Behind the upstreams of the pool stand those that are gone
// from it and were asked for.
type view struct {
	pool    reverseproxy.UpstreamPool
	members []*member
	present int      // how many are in the pool
	known   *members // where gone ones are found
	ring    *stamp.Keyring
	now     time.Duration
	healthy func(*reverseproxy.Upstream) bool
	avoided *bool // what avoidsAll has found; nil until it is asked

	// index is set for a pool that does not change, so that finding a bound session's
	// upstream costs the same in any pool.
	index *index
}

// dropUndialable takes those out of the pool of which nothing can be known.
func (v *view) dropUndialable() {
	if !slices.Contains(v.members, nil) {
		return
	}
	ms, pool := v.members, v.pool
	v.members, v.pool = nil, nil
	for i, m := range ms {
		if m != nil {
			v.members, v.pool = append(v.members, m), append(v.pool, pool[i])
		}
	}
	v.present = len(v.pool)
}

// index finds upstreams in a pool that does not change.
type index struct {
	ring    *stamp.Keyring
	members []*member
	byName  map[string]int
	byTag   map[keyTag]int
}

type keyTag struct {
	key *stamp.Key
	tag stamp.Tag
}

func newIndex(ms []*member, ring *stamp.Keyring) *index {
	x := &index{ring: ring, members: ms, byName: make(map[string]int), byTag: make(map[keyTag]int)}
	for i, m := range ms {
		x.byName[m.Name] = i
		for j, t := range m.keyedBy(ring).tags {
			x.byTag[keyTag{(*ring)[j], t}] = i
		}
	}
	return x
}

// at returns the place of u in the pool, or -1.
func (v *view) at(u *sessions.Upstream) int {
	if v.index != nil {
		if i, ok := v.index.byName[u.Name]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(v.members, func(m *member) bool { return m.Name == u.Name })
}

// named returns the place of the upstream that a stamp names, or -1.
func (v *view) named(k *stamp.Key, t stamp.Tag) int {
	if v.index != nil {
		if i, ok := v.index.byTag[keyTag{k, t}]; ok {
			return i
		}
		return -1
	}
	j := slices.Index(*v.ring, k)
	if j < 0 {
		return -1
	}
	named := func(m *member) bool { return m.keyedBy(v.ring).tags[j] == t }
	if i := slices.IndexFunc(v.members, named); i >= 0 {
		return i
	}
	m := v.gone(named)
	if m == nil || v.known.source.hasLost(m) {
		return -1
	}
	return v.add(m)
}

// left returns the place of an upstream that has left the pool, for a session of this site that lives there. It is lost where
// its address is most likely that of another server by now.
func (v *view) left(s sessions.Sighting) int {
	u := s.At
	m := v.gone(func(m *member) bool { return m.Upstream == u })
	switch {
	case m == nil && v.known.gaveAway(u, s.StartedAt):
		return v.add(&member{Upstream: u, taken: true})
	case m == nil:
		return v.add(&member{Upstream: u}) // since a reload
	case v.known.source.hasLost(m):
		return v.add(&member{Upstream: u, taken: true})
	}
	return v.add(m)
}

// gone returns an upstream that has left the pool, or nil. Where the pool depends on the request, there is none: it may
// never have been in the pool of this one.
func (v *view) gone(is func(*member) bool) (found *member) {
	if v.known.source == nil {
		return nil
	}
	v.known.byDial.Range(func(_, value any) bool {
		if m := value.(*member); is(m) {
			found = m
		}
		return found == nil
	})
	return found
}

// add puts an upstream that has left the pool behind those that are in it, and returns its place.
func (v *view) add(m *member) int {
	u := m.last.Load()
	if u == nil {
		u = &reverseproxy.Upstream{Dial: m.Name, Host: new(reverseproxy.Host)} // a name is an address that Caddy can dial
	}
	v.pool, v.members = append(slices.Clip(v.pool), u), append(slices.Clip(v.members), m)
	return len(v.members) - 1
}

// leaving says whether the upstream at i keeps its sessions and gets no other: it drains, or is gone.
func (v *view) leaving(i int) bool { return i >= v.present || v.members[i].Drain.On() }

// isHealthy says whether health checks let the upstream at i be used.
func (v *view) isHealthy(i int) bool {
	m, u, healthy := v.members[i], v.pool[i], v.healthy
	if healthy(u) {
		if m.downSince.Load() != 0 {
			m.downSince.Store(0)
		}
		return true
	}
	m.downSince.CompareAndSwap(0, int64(v.now))
	if m.watched.CompareAndSwap(false, true) {
		m.watch(func() bool { return healthy(u) })
	}
	return false
}

// lost says whether the sessions of the upstream at i have to go elsewhere.
func (v *view) lost(i int) bool {
	m := v.members[i]
	return m.taken || m.Drain.IsClosed() || m.failing(v.now) || !v.isHealthy(i) && v.now-time.Duration(m.downSince.Load()) > sessions.UnhealthyGrace
}

// whyLost returns why they have.
func (v *view) whyLost(i int) string {
	switch m := v.members[i]; {
	case m.taken:
		return movedReassigned
	case m.Drain.IsClosed():
		return movedClosed
	case m.failing(v.now):
		return movedUnreachable
	}
	return movedUnhealthy
}

// available says whether the upstream at i takes requests that are not bound to it.
func (v *view) available(i int) bool { return v.isHealthy(i) && !full(v.pool[i]) }

// takesNew says whether the upstream at i takes new sessions.
func (v *view) takesNew(i int) bool { return !v.members[i].Drain.On() && v.available(i) }

// takesShared says whether the upstream at i takes what any server answers.
func (v *view) takesShared(i int) bool { return v.available(i) && !v.members[i].Drain.IsClosed() }
