// This file holds how an upstream is drained because an operator says so, and how that is taken back.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// ErrNoName is that of a name under which no upstream of this process can be drained.
var ErrNoName = errors.New("it is the name of no upstream here")

// SetDrain drains the named upstream of this process, or takes that back, and returns when it holds here. Unless forced another one must
// take new sessions. Its errors are ErrNoName, a RefusedError, ErrUnsure where it is not known what was written, api.ErrNoPolicy, or those
// of the storage, which has written nothing then. It takes some seconds where other nodes drain upstreams of the pool at the same time, and
// goes on when ctx ends once something is written.
func (n *Cluster) SetDrain(ctx context.Context, name string, said record.Request) error {
	switch {
	case said.State == api.StateReady:
		return n.setDrain(ctx, n.sharedName(name), said)
	case n.here(n.sharedName(name)) != name:
		return ErrNoName
	case said.Force:
		return n.drainByForce(ctx, name, said)
	}
	return n.drainUnlessLast(ctx, name, said)
}

// drainByForce drains the named upstream, whatever else there is.
func (n *Cluster) drainByForce(ctx context.Context, name string, said record.Request) error {
	if err := n.reserve(name, true); err != nil {
		return err
	}
	defer n.release(name)
	return n.setDrain(ctx, n.sharedName(name), said)
}

// drainUnlessLast drains the named upstream if another one takes new sessions.
func (n *Cluster) drainUnlessLast(ctx context.Context, name string, said record.Request) error {
	done, err := n.waitForTurn(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	n.readDrainRecords(ctx)
	n.redial(ctx)
	if err := n.reserve(name, false); err != nil {
		return err
	}
	defer n.release(name)
	return n.sayUnlessLast(ctx, name, said)
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

// readDrainRecords reads what was said through other nodes since they were read last, as far as that is possible: the
// last upstream but one may drain since a moment ago.
func (n *Cluster) readDrainRecords(ctx context.Context) {
	sh, err := n.activeShare()
	if err != nil {
		return
	}
	_ = n.within(ctx, func(ctx context.Context) error {
		records, _ := n.loadDrainRecords(ctx, sh)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.used == sh {
			n.mergeRecords(sh, records, false, false, nil)
		}
		return nil
	})
}

// redial tries to reach the upstreams that could not be reached when they were dialed last: they may have been
// started since, and nobody have visited. It is tried for a second.
func (n *Cluster) redial(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, redialTimeout)
	defer cancel()
	var all sync.WaitGroup
	for u := range n.unreachable() {
		all.Go(func() {
			if n.conf.Dial(ctx, u.Name) == nil {
				u.Dialed(0, n.conf.Table.Now(), breaker.Backoff, nil)
			}
		})
	}
	all.Wait()
}

// unreachable returns the upstreams that could not be reached when they were dialed last.
func (n *Cluster) unreachable() map[*sessions.Upstream]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	found := make(map[*sessions.Upstream]bool)
	for m := range n.members() {
		if m.InPool && m.Upstream.IsUnreachable() {
			found[m.Upstream] = true
		}
	}
	return found
}

// reserve takes note that the named upstream is about to drain. Unless forced it refuses that to one which takes new sessions and is
// the only one that does in a pool of this Caddy. Two who drain one of two each at once must not both be told that there is another.
func (n *Cluster) reserve(name string, force bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	md := n.drains[n.sharedName(name)]
	drains := md != nil && md.Drains()
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

// sayUnlessLast says that the named upstream drains, unless no other one takes new sessions then. A drain that was there before
// is not taken back, whatever is said of it now, but for one that may be taken back itself: who types twice is not let off.
func (n *Cluster) sayUnlessLast(ctx context.Context, name string, w record.Request) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	w.UnlessLast = true
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
		n.holdRecord(sh, m.Confirmed())
		if m.Unsettled {
			sh.storeConfirmed(ctx, m)
		}
		return nil
	case !m.Unsettled || errors.Is(err, errTakenBack):
		return err
	case before.Drains():
		before = nil // it may not stand either
	}
	return n.withdraw(ctx, m, before, err)
}

// setDrain writes what an operator says of an upstream, and makes it hold here. Nothing changes if the
// storage has that already, or fails.
func (n *Cluster) setDrain(ctx context.Context, shared string, w record.Request) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	_, m, err := n.writeRequest(ctx, sh, shared, w)
	if err != nil {
		return err
	}
	n.holdRecord(sh, m)
	return nil
}

// writeRequest writes what an operator says of an upstream, and returns the drain record that held before and the new one. With an error, and a
// record, it is not known whether that was written.
func (n *Cluster) writeRequest(ctx context.Context, sh *share, shared string, w record.Request) (before, m *record.Drain, err error) {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	stored, err := record.LoadDrain(ctx, sh.st, shared)
	if err == nil {
		err = ctx.Err() // nobody waits any more: what was said is not what is said now
	}
	if err != nil {
		return nil, nil, err
	}
	before, left := n.stands(shared, stored)
	if before != nil && stored != nil && before.ID == stored.ID {
		before = stored // which may have settled since it was read here
	}
	if m = w.Record(before, shared, n.clock, left); stored != nil && m.ID == stored.ID {
		return before, m, nil
	}
	if err := store.Put(ctx, sh.st, record.DrainKey(shared), m); err != nil {
		return before, m, fmt.Errorf("%w: %w", ErrUnsure, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	return before, m, nil
}

// stands returns the drain record that holds of an upstream, or nil, where the storage has one that may be nil; and
// how much is left of its grace period, 0 if it has none.
func (n *Cluster) stands(shared string, stored *record.Drain) (*record.Drain, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	md := n.drains[shared]
	switch {
	case md == nil && stored == nil:
		return nil, 0
	case md == nil || stored != nil && stored.Newer(md.Drain):
		return stored, stored.Left // it is not read here yet
	case md.closesAt == 0:
		return md.Drain, md.Left
	}
	return md.Drain, max(md.closesAt-n.conf.Table.Now(), 1)
}

// storeConfirmed writes that a drain stands, unless something was said since. Where that fails, the drain stands all the same, and the
// next word on it is one that may be taken back.
func (sh *share) storeConfirmed(ctx context.Context, m *record.Drain) {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	if stored, err := record.LoadDrain(ctx, sh.st, m.Upstream); err == nil && stored != nil && stored.ID == m.ID && stored.Unsettled {
		_ = store.Put(ctx, sh.st, record.DrainKey(m.Upstream), m.Confirmed())
	}
}

// withdraw takes a drain record back for which there is a reason, and returns that. What was said since stays.
func (n *Cluster) withdraw(ctx context.Context, m, before *record.Drain, why error) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	back := m.Withdrawn(before)
	n.holdRecord(sh, back) // so the exchange writes it, where that fails now
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	if err := record.Restore(ctx, sh.st, back); err != nil {
		return fmt.Errorf("%w, and what it may have written is taken back as soon as it answers: %s: %w", ErrUnsure, why.Error(), err)
	}
	if _, refused := errors.AsType[RefusedError](why); !refused {
		return fmt.Errorf("the drain was taken back: %w", why)
	}
	return why
}

// RefusedError is that of a drain that is refused for what else was said, and not because the storage fails.
type RefusedError struct{ why string }

// Error implements error.
func (e RefusedError) Error() string { return e.why }

// lastError is what an operator hears who drains the last upstream.
func lastError(name string) error {
	return RefusedError{name + " is the last upstream of a reverse_proxy that takes new sessions: the others drain, are unhealthy, or" +
		" refused the last connection (add another one, take a drain back, or force it with --force or ?force=true)"}
}

// ErrUnsure is that of a storage that failed to say whether it has written.
var ErrUnsure = errors.New("the storage failed while it was written to")
