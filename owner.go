// This file holds whose sessions are whose: each is of the policy that it was asked for through, and of its successor in the next config.

package caddybokeh

import "maps"

// owner is one policy of one config, whose sessions are its own.
type owner struct {
	config int64           // by the table's count
	source *source         // where its upstreams are discovered, or nil
	static map[string]bool // else their names; nil if each request has its own
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

// newOwner returns the owner of the sessions of a policy of the config that is loading, of which it may be the first.
func (t *table) newOwner(first bool) *owner {
	t.mu.Lock()
	defer t.mu.Unlock()
	if first {
		t.configs++
	}
	o := &owner{config: t.configs}
	t.owners[o] = struct{}{}
	return o
}

// disown forgets an owner, which may be nil. Its sessions go on.
func (t *table) disown(o *owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.owners, o)
}

// inherits says whether a policy looks for the sessions of an owner at an upstream that is not in its pool: its own, and those of a policy
// that counts as one with it; and those of another config, for a reload may have taken the upstream off or is about to, but only if
// it is the one that follows that owner. What any other policy of this config has follows that one, whose site may let in other
// visitors. Where each request has a pool of its own, an upstream may be somebody else's.
func (s *Selection) inherits(of *owner, u *upstream) bool {
	switch {
	case s.poolVaries():
		return false
	case of == s.owner:
		return true
	case of.config == s.owner.config:
		return s.owner.isOneWith(of)
	}
	return s.table.follows(s.owner, of, u.name)
}

// follows says whether no other policy of a config is more like one of another config, by the upstreams of their pools. Where none
// is like it at all, the one that has the upstream by now is.
func (t *table) follows(mine, before *owner, name string) bool {
	t.mu.Lock()
	owners := maps.Clone(t.owners)
	t.mu.Unlock()
	pool := before.names()
	own := likeness(mine.names(), pool)
	for o := range owners {
		if o == mine || o.config != mine.config {
			continue
		}
		names := o.names()
		if likeness(names, pool) > own || own == 0 && names[name] {
			return false
		}
	}
	return true
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
