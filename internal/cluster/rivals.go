// This file holds what keeps several Caddys from draining the last upstreams of a pool at once.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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

// RefusedError is that of a drain that is refused for what else was said, and not because the storage fails.
type RefusedError struct{ why string }

// Error implements error.
func (e RefusedError) Error() string { return e.why }

// errTakenBack is that of a drain that somebody took back before it was certain that it can stand.
var errTakenBack error = RefusedError{"the drain was taken back while it was being said, by an operator or because no other upstream takes new sessions"}

// lastError is what an operator hears who drains the last upstream.
func lastError(name string) error {
	return RefusedError{name + " is the last upstream of a reverse_proxy that takes new sessions: the others drain, are unhealthy, or" +
		" refused the last connection (add another one, take a drain back, or force it with --force or ?force=true)"}
}

// waitForTurn waits until nobody drains the named upstream who may take that back, and returns what lets the next one.
func (n *Cluster) waitForTurn(ctx context.Context, name string) (done func(), err error) {
	for {
		n.mu.Lock()
		others, taken := n.turns[name]
		if !taken {
			own := make(chan struct{})
			n.turns[name] = own
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				delete(n.turns, name)
				close(own)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-others:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// sayUnlessLast says that the named upstream drains, unless no other one takes new sessions then. A drain that was there before
// is not taken back, whatever is said of it now, but for one that may be taken back itself: who types twice is not let off.
func (n *Cluster) sayUnlessLast(ctx context.Context, name string, w DrainRequest) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	w.unlessLast = true
	before, m, err := n.writeRequest(ctx, sh, n.sharedName(name), w)
	if m == nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err == nil {
		err = n.confirm(ctx, name, m, m.Unsettled)
	}
	switch {
	case err == nil:
		n.holdRecord(sh, m.confirmed())
		if m.Unsettled {
			sh.storeConfirmed(ctx, m)
		}
		return nil
	case !m.Unsettled || errors.Is(err, errTakenBack):
		return err
	case before.drains():
		before = nil // it may not stand either
	}
	return n.withdraw(ctx, m, before, err)
}

// confirmed returns a drain that is not taken back any more.
func (m *drainRecord) confirmed() *drainRecord {
	s := *m
	s.Unsettled = false
	return &s
}

// storeConfirmed writes that a drain stands, unless something was said since. Where that fails, the drain stands all the same, and the
// next word on it is one that may be taken back.
func (sh *share) storeConfirmed(ctx context.Context, m *drainRecord) {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	if stored, err := loadDrainRecord(ctx, sh.st, m.Upstream); err == nil && stored != nil && stored.ID == m.ID && stored.Unsettled {
		_ = store.Put(ctx, sh.st, drainKey(m.Upstream), m.confirmed())
	}
}

// confirm looks whether a drain record that was written can stand, and returns why not.
func (n *Cluster) confirm(ctx context.Context, name string, m *drainRecord, began bool) error {
	for start := n.conf.Table.Now(); ; time.Sleep(rivalInterval) {
		l, err := n.lookBeside(ctx, name)
		if err != nil {
			return err
		}
		if l.own != nil && l.own.newer(m) && !l.own.drains() {
			return errTakenBack
		}
		last, late := n.isLast(name, nil, l.missed), n.conf.Table.Now()-start >= l.patience(m)
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
	own    *drainRecord            // of that one
	others map[string]*drainRecord // by their keys
	missed map[string]error        // by the names between nodes of those whose drain records could not be loaded
}

// patience returns how long newer drain records than m are waited for.
func (l *besideLook) patience(m *drainRecord) time.Duration {
	newer := 0
	for _, other := range l.others {
		if other.drains() && other.newer(m) {
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
	records, errs := make([]*drainRecord, len(names)), make([]error, len(names))
	ctx = store.OneLook(ctx)
	store.Severally(len(names), func(i int) { records[i], errs[i] = loadDrainRecord(ctx, sh.st, names[i]) })
	l := &besideLook{others: make(map[string]*drainRecord), missed: make(map[string]error)}
	for i, m := range records {
		switch {
		case errs[i] != nil:
			l.missed[names[i]] = errs[i]
		case names[i] == n.sharedName(name):
			l.own = m
		case m != nil:
			l.others[drainKey(names[i])] = m
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
func (n *Cluster) isLast(name string, m *drainRecord, missed map[string]error) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last(name, m, missed)
}

// last is isLast.
func (n *state) last(name string, m *drainRecord, missed map[string]error) (last bool) {
	for p := range n.policies() {
		itself, others := false, 0
		for _, other := range p.Pool() {
			switch u := other.Upstream; {
			case !other.InPool || !other.answers():
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
func (n *state) takes(other *sessions.Upstream, m *drainRecord) bool {
	if !other.Drain.On() || n.isOpening(other) && !other.Drain.ByConfig() {
		return n.reserved[other.Name] == 0
	}
	drain := n.recordOf(other)
	return m != nil && drain.drains() && drain.newer(m) && !other.Drain.ByConfig()
}

// withdraw takes a drain record back for which there is a reason, and returns that. What was said since stays.
func (n *Cluster) withdraw(ctx context.Context, m, before *drainRecord, why error) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	back := m.withdrawn(before)
	n.holdRecord(sh, back) // so the exchange writes it, where that fails now
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	if err := storeAgain(ctx, sh.st, back); err != nil {
		return fmt.Errorf("%w, and what it may have written is taken back as soon as it answers: %s: %w", ErrUnsure, why.Error(), err)
	}
	if _, refused := errors.AsType[RefusedError](why); !refused {
		return errors.New("the drain was taken back: " + why.Error())
	}
	return why
}

// withdrawnSuffix is what the id of a drain record gets when it is taken back because it cannot stand. It comes right after that record, so
// whatever else is said of the upstream comes later.
const withdrawnSuffix = "-withdrawn"

// withdrawn returns the drain record by which it is again as it was before m.
func (m *drainRecord) withdrawn(before *drainRecord) *drainRecord {
	back := &drainRecord{State: stateReady, Since: m.Since, By: m.By}
	if before != nil {
		*back = *before
	}
	back.ID, back.Said, back.Upstream = m.ID+withdrawnSuffix, m.Said, m.Upstream
	back.Written, back.Clock = m.Written, m.Clock
	return back
}

// reserve takes note that the named upstream is about to drain. Unless forced it refuses that to one which takes new sessions and is
// the only one that does in a pool of this Caddy. Two who drain one of two each at once must not both be told that there is another.
func (n *Cluster) reserve(name string, force bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	md := n.drains[n.sharedName(name)]
	drains := md != nil && md.drains()
	if !force && !drains && n.last(name, nil, nil) {
		return lastError(name)
	}
	n.reserved[name]++
	return nil
}

// release takes that note back.
func (n *Cluster) release(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reserved[name]--; n.reserved[name] == 0 {
		delete(n.reserved, name)
	}
}
