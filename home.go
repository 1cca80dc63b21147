// This file holds where a session is bound, and where it goes if that is lost.

package caddybokeh

import (
	"slices"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// home returns the upstream to which the visit's session is bound, or nil: the one where it is known to be, else the one its
// stamp names; and whether the session is of another tier then. What the pool tells of the request it takes note of.
func (v *visit) home(cs *candidates) (home *candidate, tier bool) {
	if v.ID == "" && v.Stamp == "" || v.isForAnyServer() {
		return nil, false
	}
	if home = v.homeIn(cs); home != nil || !v.isOfAnotherTier(cs) {
		return home, false
	}
	v.tier, v.mayFail = true, v.odd
	return nil, true
}

// isOfAnotherTier says whether a page has its id from a Caddy in front of this one, which has begun a session: its stamp
// names nobody here, whether we have the key or not. To us that is a new session like any other.
func (v *visit) isOfAnotherTier(cs *candidates) bool {
	return v.Kind == bokeh.Page && stamp.HasForm(v.ID) && (v.Stamp == "" || cs.named(v.Key, v.Tag) == nil)
}

// homeIn finds the home of the visit's session.
func (v *visit) homeIn(cs *candidates) *candidate {
	var room [4]*candidate
	var roomOfThose [4]sessions.Sighting
	places, those := room[:0], roomOfThose[:0]
	v.s.table.Find(v.entry, func(s sessions.Sighting) {
		if v.Kind == bokeh.Page && s.IsGuess {
			return // whoever asks once more need not be there
		}
		those = append(those, s)
	})
	for _, s := range those {
		c := cs.at(s.At)
		if c == nil && s.App == v.terms.App && v.s.inherits(s.Owner.(*owner), s.At) {
			c = cs.left(s)
		}
		if c != nil {
			places = append(places, c)
		}
	}
	alive := slices.IndexFunc(places, func(c *candidate) bool { return !cs.isLost(c) })
	switch {
	case len(places) == 0 && v.Stamp != "":
		if v.Stamp == v.ID {
			v.ReadPackedStamp(*v.ring)
		}
		return v.named(cs)
	case len(places) == 0:
		return nil
	case alive < 0:
		return places[0]
	case len(places) > 1 && v.Stamp == "":
		// An id that others made may be used on another site with some of these upstreams. Ours is
		// the one that its order names.
		if c := cs.first(v.ID, func(c *candidate) bool { return slices.Contains(places, c) && !cs.isLost(c) }); c != nil {
			return c
		}
	}
	return places[alive]
}

// named returns the upstream that the stamp names, or nil. Where that drains or is gone,
// only a socket may still go there, for its session may live from before a restart or through
// another node. Another request may begin a session, and so would the socket of one that has ended.
func (v *visit) named(cs *candidates) *candidate {
	c := cs.named(v.Key, v.Tag)
	for c == nil && v.TryAll(v.Others, *v.ring) {
		c = cs.named(v.Key, v.Tag)
	}
	if c == nil || !c.isLeaving() {
		return c
	}
	if v.Kind != bokeh.Socket || c.Drain.HasEnded(cs.now, v.entry, v.s.table.Key(v.Stamp)) {
		return nil
	}
	return c
}

// elsewhere returns an upstream for a session that others named or whose upstream
// is lost, such that all nodes find the same.
func (v *visit) elsewhere(cs *candidates, home *candidate) *candidate {
	may := func(c *candidate) bool {
		// With a page it is most likely the first that we hear of the session.
		return !c.Drain.On() && (v.Kind != bokeh.Page || cs.isHealthy(c))
	}
	if c := cs.first(v.ID, func(c *candidate) bool { return may(c) && !cs.isLost(c) }); c != nil {
		return c
	}
	// No other is any better, and one that has just refused a connection may be back. But a
	// process that comes back has lost its sessions, so to one that takes no other this is a new one.
	if home != nil && !home.reassigned && !home.Drain.IsClosed() && (!home.isLeaving() || !home.failing(cs.now)) {
		return home
	}
	return cs.first(v.ID, may)
}
