// This file holds the upstreams that one policy knows.

package caddybokeh

import (
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// maxMembers bounds what a policy remembers where clients can make up addresses, as with a
// placeholder of the request in an upstream's address.
const maxMembers = 4096

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
		ms.forget(now - memberTTL)
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

// gone returns one that has left the pool, or nil. Where the pool depends on the request, there is none: it may
// never have been in the pool of this one.
func (ms *members) gone(is func(*member) bool) (found *member) {
	if ms.source == nil {
		return nil
	}
	ms.byDial.Range(func(_, value any) bool {
		if m := value.(*member); is(m) {
			found = m
		}
		return found == nil
	})
	return found
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
