// This file holds whose sessions are whose: each is of the policy that it was asked for through, and of its successor in the next config.

package caddybokeh

import (
	"maps"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// owner is one policy of one config, whose sessions are its own.
type owner struct {
	config *config
	source *source         // where its upstreams are discovered, or nil
	static map[string]bool // else their names; nil if each request has its own

	handler *reverseproxy.Handler // that it is the policy of, until its place is known
	place   place
}

// config is what the policies of one config have in common. Their sessions keep it, but nothing in it keeps another config.
type config struct {
	number int64    // by the ledger's count
	owners []*owner // all that there ever were; the ledger's mu guards it

	looked sync.Once
	app    *caddyhttp.App // until the places are known; nil in tests
}

// names returns the upstreams of the owner's pool by their names.
func (o *owner) names() map[string]bool {
	if o.source != nil {
		return o.source.lastFound().names
	}
	return o.static
}

// isOneWith says whether two policies of a config count as one owner: whatever visitors reach by one of them, they reach by the other.
// So it is where the websockets of a site have a handler of their own. That two sources find the same just now is chance.
func (o *owner) isOneWith(other *owner) bool {
	if o.source != nil || other.source != nil {
		return o.source == other.source
	}
	return len(o.static) > 0 && maps.Equal(o.static, other.static)
}

// standIn takes note of the reverse proxy that o is the policy of, and of the servers among whose routes that is looked for.
func (o *owner) standIn(app *caddyhttp.App, h *reverseproxy.Handler) {
	if app != nil {
		o.handler, o.config.app = h, app
	}
}

// standsAt says whether o stands where another one stood.
func (o *owner) standsAt(other *owner) bool { return o.place != place{} && o.place == other.place }

// newOwner returns the owner of the sessions of a policy of the config that is loading, of which it may be the first.
func (t *ledger) newOwner(first bool) *owner {
	t.mu.Lock()
	defer t.mu.Unlock()
	if first {
		t.configs++
	}
	o := &owner{config: t.loading()}
	o.config.owners = append(o.config.owners, o)
	t.owners[o] = struct{}{}
	return o
}

// loading returns the config that is loading. t.mu is locked.
func (t *ledger) loading() *config {
	for o := range t.owners {
		if o.config.number == t.configs {
			return o.config
		}
	}
	return &config{number: t.configs}
}

// disown forgets an owner, which may be nil. Its sessions go on.
func (t *ledger) disown(o *owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.owners, o)
}

// ownersOf returns the owners of a config that has been loaded, whose places are known from then on.
func (t *ledger) ownersOf(c *config) []*owner {
	t.mu.Lock()
	owners := slices.Clone(c.owners)
	t.mu.Unlock()
	c.looked.Do(func() {
		if c.app == nil {
			return
		}
		places := placesIn(c.app)
		for _, o := range owners {
			o.place, o.handler = places[o.handler], nil
		}
		c.app = nil
	})
	return owners
}

// inherits says whether a policy looks for the sessions of an owner at an upstream that is not in its pool: its own, and those of a policy
// that counts as one with it; and those of another config, for a reload may have taken the upstream off or is about to, but only if
// it is the one that follows that owner. What any other policy of this config has follows that one, whose site may let in other
// visitors. Where each request has a pool of its own, an upstream may be somebody else's.
func (s *Selection) inherits(of *owner, u *sessions.Upstream) bool {
	switch {
	case s.poolVaries():
		return false
	case of == s.owner:
		return true
	case of.config == s.owner.config:
		return s.owner.isOneWith(of)
	}
	return s.table.follows(s.owner, of, u.Name)
}

// follows says whether a policy follows one of another config, and no other one of its config does. Where that one stood, its follower
// stands, unless the pools say something else. Else the one follows whose pool is most like that one's; where none is like it at all,
// the one that has the upstream by now. In doubt nobody does: a session that is lost is better than a door that is open.
func (t *ledger) follows(mine, before *owner, name string) bool {
	rivals, all := t.ownersOf(mine.config), t.ownersOf(before.config)
	pool, names := before.names(), mine.names()
	f := following{name: name, all: all, pool: pool, own: likeness(names, pool)}
	f.same = slices.DeleteFunc(slices.Clone(all), func(b *owner) bool { return b != before && !b.isOneWith(before) })
	f.stays = slices.ContainsFunc(f.same, mine.standsAt)
	f.strays = !f.stays && slices.ContainsFunc(all, func(b *owner) bool { return likeness(names, b.names()) > f.own })
	return !slices.ContainsFunc(rivals, func(o *owner) bool { return !o.isOneWith(mine) && f.isFor(o) })
}

// following is the question whether a policy follows one of another config.
type following struct {
	name      string          // of the upstream that a session is at
	all, same []*owner        // of that config, and those that count as one with the one in question
	pool      map[string]bool // of that
	own       float64         // how like it the policy is
	stays     bool            // the policy stands where one of the same stood
	strays    bool            // it does not, and is more like another one
}

// isFor says whether a rival is the one that follows, or may be.
func (f *following) isFor(rival *owner) bool {
	names := rival.names()
	like := likeness(names, f.pool)
	if f.stays {
		if slices.ContainsFunc(f.all, func(b *owner) bool { return rival.standsAt(b) && likeness(names, b.names()) >= like }) {
			return false // it stays as well, and so follows another one
		}
	} else if f.strays && like > 0 || (like > 0 || f.own == 0) && slices.ContainsFunc(f.same, rival.standsAt) {
		return true
	}
	return like > f.own || f.own == 0 && names[f.name]
}

// likeness is the share of what is in one of two pools that is in both (Jaccard).
func likeness(a, b map[string]bool) float64 {
	both := 0
	for name := range a {
		if b[name] {
			both++
		}
	}
	return float64(both) / float64(max(len(a)+len(b)-both, 1))
}
