// This file holds an upstream as one policy sees it.

package caddybokeh

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

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
	noTLS     sessions.Failure                      // of the TLS handshake, which may be this site's fault alone, if none has succeeded since
	software  atomic.Pointer[software]              // that answered its last page; nil before the first
}

// unreachable says whether the last connection to m could not be made, however long ago.
func (m *member) unreachable() bool {
	return m.IsUnreachable() || m.noTLS.Was()
}

// health returns what the policy's handler says of m.
func (m *member) health(inPool bool) cluster.MemberHealth {
	h := cluster.MemberHealth{PoolMember: cluster.PoolMember{Upstream: m.Upstream, InPool: inPool}, Unreachable: m.unreachable(), Healthy: true}
	if u := m.last.Load(); u != nil && u.Host != nil {
		h.Told, h.Healthy, h.Full = true, u.Healthy(), isFull(u)
		h.NumRequests, h.Fails = u.NumRequests(), u.Fails()
	}
	return h
}

// isFull says whether u has a limit of requests and has reached it.
func isFull(u *reverseproxy.Upstream) bool { return u.Host != nil && u.Full() }

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

// dialable returns m as Caddy dials it, though it may be in no pool any more.
func (m *member) dialable() *reverseproxy.Upstream {
	if u := m.last.Load(); u != nil {
		return u
	}
	return &reverseproxy.Upstream{Dial: m.Name, Host: new(reverseproxy.Host)} // a name is an address that Caddy can dial
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

// stamp makes a stamp that names m.
func (m *member) stamp(ring *stamp.Keyring) string { return (*ring)[0].Stamp(m.keyedBy(ring).tags[0]) }

// watch looks at an unhealthy member until it is healthy: requests may come seldom, and it may be
// up and down again between two of them.
func (m *member) watch(healthy func() bool) {
	time.AfterFunc(healthInterval, func() {
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
