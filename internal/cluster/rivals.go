// This file holds what keeps several Caddys from draining the last upstreams of a pool at once.

package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// A storage has no compare-and-swap. So whoever drains an upstream looks twice whether another one takes new sessions: before
// the drain record is written, and after. Only a look that begins after the drain record is in the storage, and finds one, lets the drain
// stand. Of several drain records that leave nobody, the one that was written last sees all others in its second look, so not all
// of them stand.
//
// Who gives way is decided by an order on which all agree. A drain gives way at once where older drain records alone leave nobody. Else it
// waits for the newer ones to do so, which may have looked before it was written and then do not; then it gives way too, after a
// time that is shorter the newer it is. So where the storage is slow more than one may give way, and each is told so.
//
// All this assumes that a load shows what was stored before it began, through whatever Caddy. File systems, databases and most
// object stores do that. Where a storage shows old records for a while, as a cache or a replica does, two Caddys may still
// miss each other's record. Nothing prevents that here; the log of the visits that are refused tells of it.
const (
	// mostRivals bounds for how many it waits.
	mostRivals = 3
)

// errTakenBack is that of a drain that somebody took back before it was certain that it can stand.
var errTakenBack error = RefusedError{"the drain was taken back while it was being said, by an operator or because no other upstream takes new sessions"}

// confirm looks whether a drain record that was written can stand, and returns why not. It waits for others for as long as that takes, or
// until the node is closed.
func (n *Cluster) confirm(ctx context.Context, name string, m *record.Drain, began bool) error {
	for start := n.conf.Table.Now(); ; rest(n.loops.ctx, rivalInterval) {
		l, err := n.lookBeside(ctx, name)
		switch isClosed := n.loops.ctx.Err() != nil; { // then there may be no policy any more that has a pool
		case isClosed && began:
			return ErrInterrupted
		case isClosed:
			return nil
		case err != nil:
			return err
		case l.own != nil && l.own.Newer(m) && !l.own.Drains():
			return errTakenBack
		}
		last, late := n.isLast(name, nil, l.missed), n.conf.Table.Now()-start >= l.rivalsTimeout(m)
		switch {
		case !last || !began && late:
			return nil
		case !began: // it may follow one that gives way
		case len(l.missed) > 0:
			return l.whyMissed()
		case late || n.isLast(name, m, nil):
			return lastError(name)
		}
	}
}

// besideLook is what was found of the upstreams in the pools that have one.
type besideLook struct {
	own    *record.Drain            // of that one
	others map[string]*record.Drain // by their keys
	missed map[string]error         // by the names between nodes of those whose drain records could not be loaded
}

// rivalsTimeout returns how long newer drain records than m are waited for.
func (l *besideLook) rivalsTimeout(m *record.Drain) time.Duration {
	newer := 0
	for _, other := range l.others {
		if other.Drains() && other.Newer(m) {
			newer++
		}
	}
	return time.Duration(min(max(newer, 1), mostRivals)) * rivalTimeout
}

func (l *besideLook) whyMissed() error {
	for shared, err := range l.missed {
		return fmt.Errorf("it cannot be seen whether %s takes new sessions: %w", shared, err)
	}
	return nil
}

// lookBeside reads the drain records of all upstreams in the pools that have the named one, and makes those of the others hold here.
func (n *Cluster) lookBeside(ctx context.Context, name string) (*besideLook, error) {
	sh, err := n.activeShare() // a reload may have brought another one
	if err != nil {
		return nil, err
	}
	names := n.beside(name)
	records, errs := make([]*record.Drain, len(names)), make([]error, len(names))
	ctx = store.OneLook(ctx)
	store.Severally(len(names), func(i int) { records[i], errs[i] = record.LoadDrain(ctx, sh.st, names[i]) })
	l := &besideLook{others: make(map[string]*record.Drain), missed: make(map[string]error)}
	for i, m := range records {
		switch {
		case errs[i] != nil:
			l.missed[names[i]] = errs[i]
		case names[i] == n.sharedName(name):
			l.own = m
		case m != nil:
			l.others[record.DrainKey(names[i])] = m
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == sh {
		n.mergeRecords(sh, l.others, false, false, nil)
	}
	return l, nil
}

// beside returns the upstreams of the pools that have the named one, by their names between nodes; that one among them.
func (n *Cluster) beside(name string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := []string{n.sharedName(name)}
	for p := range n.policies() {
		var all []string
		has := false
		for _, m := range p.Pool() {
			if m.InPool {
				all = append(all, m.Upstream.Shared)
				has = has || m.Upstream.Name == name
			}
		}
		if has {
			names = append(names, all...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// isLast says whether the named upstream takes new sessions, but for its record, and is the only one that does in a pool of this
// Caddy. Where m is given, others count as if what is newer had given way to it. n.mu is not locked.
func (n *Cluster) isLast(name string, m *record.Drain, missed map[string]error) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last(name, m, missed)
}

// last is isLast.
func (n *state) last(name string, m *record.Drain, missed map[string]error) (last bool) {
	for p := range n.policies() {
		itself, others := false, 0
		for _, other := range p.PoolHealth() {
			switch u := other.Upstream; {
			case !other.InPool || other.Unreachable || !other.Healthy:
			case u.Name == name:
				itself = !u.Drain.ByConfig()
			case missed[u.Shared] == nil && n.takes(u, m):
				others++
			}
		}
		last = last || itself && others == 0
	}
	return last
}

// takes says whether an upstream takes new sessions, or will in a moment: if its drain was taken back, or its record is newer than m and
// gives way.
func (n *state) takes(other *sessions.Upstream, m *record.Drain) bool {
	if !n.drainsOn(other) {
		return n.reserved[other.Name] == 0
	}
	drain := n.recordOf(other)
	return m != nil && drain.Drains() && drain.Newer(m) && !other.Drain.ByConfig()
}
