// This file holds the upstreams among which one attempt may choose.

package caddybokeh

import (
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// candidates are the upstreams of a pool, as they are at one moment.
type candidates struct {
	from    reverseproxy.UpstreamPool // that they are, but for those whose address nobody can dial
	all     []candidate
	index   *index   // of a pool that does not change, so that finding a session's upstream costs the same in any pool; or nil
	known   *members // where those are found that have left the pool
	ring    *stamp.Keyring
	now     time.Duration
	healthy func(*reverseproxy.Upstream) bool
}

// candidate is one of them.
type candidate struct {
	*member
	upstream   *reverseproxy.Upstream
	gone       bool // it has left the pool, and is here for a session that lives there
	reassigned bool // that address is most likely another server's by now
}

// index finds upstreams in a pool that does not change.
type index struct {
	ring   *stamp.Keyring
	all    []candidate
	byName map[string]int
	byTag  map[keyTag]int
}

type keyTag struct {
	key *stamp.Key
	tag stamp.Tag
}

func newIndex(all []candidate, ring *stamp.Keyring) *index {
	x := &index{ring: ring, all: all, byName: make(map[string]int), byTag: make(map[keyTag]int)}
	for i, c := range all {
		x.byName[c.Name] = i
		for j, t := range c.keyedBy(ring).tags {
			x.byTag[keyTag{(*ring)[j], t}] = i
		}
	}
	return x
}

// candidates looks at a pool.
func (s *Selection) candidates(pool reverseproxy.UpstreamPool, v *visit) *candidates {
	if len(pool) == 0 {
		pool = s.members.lastKnown()
	}
	cs := &candidates{from: pool, known: s.members, ring: v.ring, now: s.table.Now(), healthy: s.healthy}
	if !isSame(pool, s.static) { // each address of the config is its own
		cs.all = s.candidatesIn(pool, v.repl)
		if len(cs.all) < len(pool) {
			cs.from = make(reverseproxy.UpstreamPool, len(cs.all))
			for i, c := range cs.all {
				cs.from[i] = c.upstream
			}
		}
		return cs
	}
	x := s.index.Load()
	if x == nil || x.ring != v.ring || s.isUnloaded() { // the upstreams that an unloaded config knew may be others by now
		x = newIndex(s.candidatesIn(pool, v.repl), v.ring)
		s.index.Store(x)
	}
	cs.all, cs.index = x.all, x
	return cs
}

// isSame says whether two pools are one, of the config.
func isSame(a, b reverseproxy.UpstreamPool) bool {
	return len(a) > 0 && len(a) == len(b) && &a[0] == &b[0]
}

// candidatesIn returns what is known of the upstreams of a pool, but for those whose address nobody can dial.
func (s *Selection) candidatesIn(pool reverseproxy.UpstreamPool, repl *caddy.Replacer) []candidate {
	all, varies := make([]candidate, 0, len(pool)), s.poolVaries()
	for _, u := range pool {
		dial := u.Dial
		if repl != nil && hasPlaceholder(dial) {
			dial = repl.ReplaceAll(dial, "")
		}
		if len(dial) > maxAddress && (varies || hasPlaceholder(u.Dial)) {
			s.refuseAddress(u.Dial, len(dial))
			continue
		}
		m := s.members.get(dial)
		if m.last.Load() != u {
			m.last.Store(u)
		}
		all = append(all, candidate{member: m, upstream: u})
	}
	return all
}

// find returns the first upstream of the pool of which something is true, or nil.
func (cs *candidates) find(is func(*candidate) bool) *candidate {
	for i := range cs.all {
		if is(&cs.all[i]) {
			return &cs.all[i]
		}
	}
	return nil
}

// any says whether something is true of one of the upstreams of the pool.
func (cs *candidates) any(is func(*candidate) bool) bool { return cs.find(is) != nil }

// at returns u in the pool, or nil.
func (cs *candidates) at(u *sessions.Upstream) *candidate {
	if cs.index == nil {
		return cs.find(func(c *candidate) bool { return c.Name == u.Name })
	}
	if i, ok := cs.index.byName[u.Name]; ok {
		return &cs.all[i]
	}
	return nil
}

// named returns the upstream that a stamp names, or nil.
func (cs *candidates) named(k *stamp.Key, t stamp.Tag) *candidate {
	if cs.index != nil {
		if i, ok := cs.index.byTag[keyTag{k, t}]; ok {
			return &cs.all[i]
		}
		return nil
	}
	j := slices.Index(*cs.ring, k)
	if j < 0 {
		return nil
	}
	isNamed := func(m *member) bool { return m.keyedBy(cs.ring).tags[j] == t }
	if c := cs.find(func(c *candidate) bool { return isNamed(c.member) }); c != nil {
		return c
	}
	m := cs.known.gone(isNamed)
	if m == nil || cs.known.source.hasLost(m) {
		return nil
	}
	return &candidate{member: m, upstream: m.dialable(), gone: true}
}

// left returns an upstream that has left the pool, for a session of this site that lives there.
func (cs *candidates) left(s sessions.Sighting) *candidate {
	c := &candidate{member: cs.known.gone(func(m *member) bool { return m.Upstream == s.At }), gone: true}
	if c.member != nil {
		c.reassigned = cs.known.source.hasLost(c.member)
	} else { // since a reload
		c.member, c.reassigned = &member{Upstream: s.At}, cs.known.gaveAway(s.At, s.StartedAt)
	}
	c.upstream = c.dialable()
	return c
}

// isLeaving says whether an upstream keeps its sessions and gets no other: it drains, or is gone.
func (c *candidate) isLeaving() bool { return c.gone || c.Drain.On() }

// isHealthy says whether health checks let c be used.
func (cs *candidates) isHealthy(c *candidate) bool {
	u, healthy := c.upstream, cs.healthy
	if healthy(u) {
		if c.downSince.Load() != 0 {
			c.downSince.Store(0)
		}
		return true
	}
	c.downSince.CompareAndSwap(0, int64(cs.now))
	if c.watched.CompareAndSwap(false, true) {
		c.watch(func() bool { return healthy(u) })
	}
	return false
}

// isLost says whether the sessions of c have to go elsewhere.
func (cs *candidates) isLost(c *candidate) bool {
	return c.reassigned || c.Drain.IsClosed() || c.failing(cs.now) ||
		!cs.isHealthy(c) && cs.now-time.Duration(c.downSince.Load()) > sessions.UnhealthyGrace
}

// whyLost returns why they have.
func (cs *candidates) whyLost(c *candidate) string {
	switch {
	case c.reassigned:
		return movedReassigned
	case c.Drain.IsClosed():
		return movedClosed
	case c.failing(cs.now):
		return movedUnreachable
	}
	return movedUnhealthy
}

// isAvailable says whether c takes requests that are not bound to it.
func (cs *candidates) isAvailable(c *candidate) bool { return cs.isHealthy(c) && !isFull(c.upstream) }

// takesNew says whether c takes new sessions.
func (cs *candidates) takesNew(c *candidate) bool { return !c.Drain.On() && cs.isAvailable(c) }

// takesShared says whether c takes what any server answers.
func (cs *candidates) takesShared(c *candidate) bool {
	return cs.isAvailable(c) && !c.Drain.IsClosed()
}

// allThatTake says whether something is true of all upstreams that take new sessions.
func (cs *candidates) allThatTake(is func(*candidate) bool) bool {
	return !cs.any(func(c *candidate) bool { return cs.takesNew(c) && !is(c) })
}

// isUnloaded says whether the config has been replaced.
func (s *Selection) isUnloaded() bool {
	select {
	case <-s.unloaded:
		return true
	default:
		return false
	}
}

// poolVaries says whether the upstreams depend on the request.
func (s *Selection) poolVaries() bool { return s.static == nil && s.members.source == nil }

// failing says whether the last connection to m could not be made, not long ago.
func (m *member) failing(now time.Duration) bool {
	return m.IsFailing(now) || m.IsSilent(now) || m.noTLS.JustNow(now)
}

// allDrain says whether the upstreams that are healthy are all draining.
func (cs *candidates) allDrain() bool {
	found := false
	for i := range cs.all {
		switch c := &cs.all[i]; {
		case !cs.isHealthy(c):
		case !c.Drain.On():
			return false
		default:
			found = true
		}
	}
	return found
}
