// This file holds what keeps several Caddys from draining the last upstreams of a pool at once.

package caddybokeh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A storage has no compare-and-swap. So whoever drains an upstream looks twice whether another one takes new sessions: before
// the mark is written, and after. Only a look that begins after the mark is in the storage, and finds one, lets the drain
// stand. Of several marks that leave nobody, the one that was written last sees all others in its second look, so not all
// of them stand.
//
// Who gives way is decided by an order on which all agree. A drain gives way at once where older marks alone leave nobody. Else it
// waits for the newer ones to do so, which may have looked before it was written and then do not; then it gives way too, after a
// time that is shorter the newer it is. So where the storage is slow more than one may give way, and each is told so.
//
// All this assumes that a load shows what was stored before it began, through whatever Caddy. File systems, databases and most
// object stores do that. Where a storage shows old records for a while, as a cache or a replica does, two Caddys may still
// miss each other's mark. Nothing prevents that here; the log of the visits that are refused tells of it.
const (
	// rivalWait is how long a drain waits for a newer one to give way, and for the next.
	rivalWait = 2 * time.Second

	// mostRivals bounds for how many it waits.
	mostRivals = 3

	// rivalPause is how often it looks whether they have.
	rivalPause = 100 * time.Millisecond
)

// errTakenBack is that of a drain that somebody took back before it was certain that it can stand.
var errTakenBack = errors.New("the drain was taken back while it was being said, by an operator or because no other upstream takes new sessions")

// lastUpstreamError is what an operator hears who drains the last upstream.
type lastUpstreamError struct{ name string }

// Error implements error.
func (e lastUpstreamError) Error() string {
	return e.name + " is the last upstream of a reverse_proxy that takes new sessions: the others drain, are unhealthy, or" +
		" refused the last connection (add another one, take a drain back, or force it with --force or ?force=true)"
}

// isRefused says whether a drain is refused for what else is drained, and not because the storage fails.
func isRefused(err error) bool {
	_, last := errors.AsType[lastUpstreamError](err)
	return last || errors.Is(err, errTakenBack)
}

// turn waits until nobody drains the named upstream who may take that back, and returns what lets the next one.
func (n *node) turn(ctx context.Context, name string) (done func(), err error) {
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
func (n *node) sayUnlessLast(ctx context.Context, name string, w word) error {
	sh, err := n.storage()
	if err != nil {
		return err
	}
	w.unlessLast = true
	before, m, err := n.put(ctx, sh, sharedNameAt(name, n.host), w)
	if m == nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err == nil {
		err = n.settle(ctx, name, m, m.Unsettled)
	}
	switch {
	case err == nil:
		n.hold(sh, m.settled())
		if m.Unsettled {
			sh.storeSettled(ctx, m)
		}
		return nil
	case !m.Unsettled || errors.Is(err, errTakenBack):
		return err
	case before.drains():
		before = nil // it may not stand either
	}
	return n.withdraw(ctx, m, before, err)
}

// settled returns a drain that is not taken back any more.
func (m *mark) settled() *mark {
	s := *m
	s.Unsettled = false
	return &s
}

// storeSettled writes that a drain stands, unless something was said since. Where that fails, the drain stands all the same, and the
// next word on it is one that may be taken back.
func (sh *share) storeSettled(ctx context.Context, m *mark) {
	ctx, cancel := context.WithTimeout(ctx, operatorWait)
	defer cancel()
	if stored, err := loadMark(ctx, sh.st, m.Upstream); err == nil && stored != nil && stored.ID == m.ID && stored.Unsettled {
		_ = storeRecord(ctx, sh.st, markKey(m.Upstream), m.settled())
	}
}

// settle looks whether a mark that was written can stand, and returns why not.
func (n *node) settle(ctx context.Context, name string, m *mark, began bool) error {
	for start := n.t.Now(); ; time.Sleep(rivalPause) {
		l, err := n.lookBeside(ctx, name)
		if err != nil {
			return err
		}
		if l.own != nil && l.own.newer(m) && !l.own.drains() {
			return errTakenBack
		}
		last, late := n.isLast(name, nil, l.missed), n.t.Now()-start >= l.patience(m)
		switch {
		case !last || !began && late:
			return nil
		case !began: // it may follow one that gives way
		case len(l.missed) > 0:
			return l.whyMissed()
		case late || n.isLast(name, m, nil):
			return lastUpstreamError{name}
		}
	}
}

// besideLook is what was found of the upstreams in the pools that have one.
type besideLook struct {
	own    *mark            // of that one
	others map[string]*mark // by their keys
	missed map[string]error // by the names between nodes of those whose marks could not be loaded
}

// patience returns how long newer marks than m are waited for.
func (l *besideLook) patience(m *mark) time.Duration {
	newer := 0
	for _, other := range l.others {
		if other.drains() && other.newer(m) {
			newer++
		}
	}
	return time.Duration(min(max(newer, 1), mostRivals)) * rivalWait
}

func (l *besideLook) whyMissed() error {
	for shared, err := range l.missed {
		return fmt.Errorf("it cannot be seen whether %s takes new sessions: %w", shared, err)
	}
	return nil
}

// lookBeside reads the marks of all upstreams in the pools that have the named one, and makes those of the others hold here.
func (n *node) lookBeside(ctx context.Context, name string) (*besideLook, error) {
	sh, err := n.storage() // a reload may have brought another one
	if err != nil {
		return nil, err
	}
	names := n.beside(name)
	marks, errs := make([]*mark, len(names)), make([]error, len(names))
	ctx = oneLook(ctx)
	severally(len(names), func(i int) { marks[i], errs[i] = loadMark(ctx, sh.st, names[i]) })
	l := &besideLook{others: make(map[string]*mark), missed: make(map[string]error)}
	for i, m := range marks {
		switch {
		case errs[i] != nil:
			l.missed[names[i]] = errs[i]
		case names[i] == sharedNameAt(name, n.host):
			l.own = m
		case m != nil:
			l.others[markKey(names[i])] = m
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == sh {
		n.take(sh, l.others, false, false, nil)
	}
	return l, nil
}

// beside returns the upstreams of the pools that have the named one, by their names between nodes; that one among them.
func (n *node) beside(name string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := []string{sharedNameAt(name, n.host)}
	n.eachPool(func(p pool) {
		var all []string
		has := false
		p.each(func(m *member, inPool bool) {
			if inPool {
				all = append(all, m.Shared)
				has = has || m.Name == name
			}
		})
		if has {
			names = append(names, all...)
		}
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// isLast says whether the named upstream takes new sessions, but for its mark, and is the only one that does in a pool of this
// Caddy. Where m is given, others count as if what is newer had given way to it. n.mu is not locked.
func (n *node) isLast(name string, m *mark, missed map[string]error) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last(name, m, missed)
}

// last is isLast. n.mu is locked.
func (n *node) last(name string, m *mark, missed map[string]error) (last bool) {
	n.eachPool(func(p pool) {
		itself, others := false, 0
		p.each(func(other *member, inPool bool) {
			switch {
			case !inPool || !other.answers():
			case other.Name == name:
				itself = !other.Drain.ByConfig()
			case missed[other.Shared] == nil && n.takes(other, m):
				others++
			}
		})
		last = last || itself && others == 0
	})
	return last
}

// takes says whether an upstream takes new sessions, or will if its mark is newer than m and gives way. n.mu is locked.
func (n *node) takes(other *member, m *mark) bool {
	if !other.Drain.On() {
		return n.pending[other.Name] == 0
	}
	drain := n.markOf(other.Upstream)
	return m != nil && drain.drains() && drain.newer(m) && !other.Drain.ByConfig()
}

// answers says whether an upstream can be reached, as far as is known.
func (m *member) answers() bool {
	u := m.last.Load()
	return !m.unreachable() && (u == nil || u.Host == nil || u.Healthy())
}

// withdraw takes a mark back for which there is a reason, and returns that. What was said since stays.
func (n *node) withdraw(ctx context.Context, m, before *mark, why error) error {
	sh, err := n.storage()
	if err != nil {
		return err
	}
	back := m.withdrawn(before)
	n.hold(sh, back) // so the exchange writes it, where that fails now
	ctx, cancel := context.WithTimeout(ctx, operatorWait)
	defer cancel()
	if err := storeAgain(ctx, sh.st, back); err != nil {
		return fmt.Errorf("%w, and what it may have written is taken back as soon as it answers: %s: %w", errUnsure, why.Error(), err)
	}
	if !isRefused(why) {
		return errors.New("the drain was taken back: " + why.Error())
	}
	return why
}

// withdrawnSuffix is what the id of a mark gets when it is taken back because it cannot stand. It comes right after that mark, so
// whatever else is said of the upstream comes later.
const withdrawnSuffix = "-withdrawn"

// withdrawn returns the mark by which it is again as it was before m.
func (m *mark) withdrawn(before *mark) *mark {
	back := &mark{State: stateReady, Since: m.Since, By: m.By}
	if before != nil {
		*back = *before
	}
	back.ID, back.Said, back.Upstream = m.ID+withdrawnSuffix, m.Said, m.Upstream
	back.Written, back.Clock = m.Written, m.Clock
	return back
}
