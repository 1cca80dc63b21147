// This file holds how an upstream is drained because an operator says so, and how it is waited for what comes of that.

package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// ErrNoName is that of a name under which no upstream of this process can be drained.
var ErrNoName = errors.New("it is the name of no upstream here")

// SetDrain drains the named upstream of this process, or takes that back, and returns when it holds here. Unless forced another one must
// take new sessions. Its errors are ErrNoName, a RefusedError, ErrUnsure where it is not known what was written, api.ErrNoPolicy, or those
// of the storage, which has written nothing then. It takes some seconds where other nodes drain upstreams of the pool at the same time, and
// goes on when ctx ends once something is written.
func (n *Cluster) SetDrain(ctx context.Context, name string, said DrainRequest) error {
	switch {
	case said.State == stateReady:
		return n.setDrain(ctx, n.sharedName(name), said)
	case n.here(n.sharedName(name)) != name:
		return ErrNoName
	case said.Force:
		return n.drainByForce(ctx, name, said)
	}
	return n.drainUnlessLast(ctx, name, said)
}

// drainByForce drains the named upstream, whatever else there is.
func (n *Cluster) drainByForce(ctx context.Context, name string, said DrainRequest) error {
	if err := n.reserve(name, true); err != nil {
		return err
	}
	defer n.release(name)
	return n.setDrain(ctx, n.sharedName(name), said)
}

// drainUnlessLast drains the named upstream if another one takes new sessions.
func (n *Cluster) drainUnlessLast(ctx context.Context, name string, said DrainRequest) error {
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

// Await waits until something is so, and says whether it is: it asks so at first, and whenever something may have changed. It gives up when
// the time is over, when ctx ends, with an error of so, and with ErrInterrupted when Caddy loads a config or ends.
func (n *Cluster) Await(ctx context.Context, patience time.Duration, so func() (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		news, interrupted := n.listen()
		if yes, err := so(); yes || err != nil {
			return yes, err
		}
		select {
		case <-news:
		case <-interrupted:
			return false, ErrInterrupted
		case <-ctx.Done():
			return so()
		}
	}
}

// MayBeKilled says whether the others know that this process may be killed, if it is about to end: else
// they would take it for cut off. They are told when somebody asks: this is the one question that changes something. A storage that cannot
// be written to is not waited for.
func (n *Cluster) MayBeKilled() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.awaited = n.conf.Table.Now()
	return !n.conf.Exiting() || !n.known || n.parted || n.unheard != 0
}

// listen returns what is closed when something may have changed, and what is closed when nobody
// should wait here any longer.
func (n *Cluster) listen() (news, interrupted <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.news, n.interrupted
}

// Interrupt ends all waiting in Await, with ErrInterrupted. Who begins to wait later waits on.
func (n *Cluster) Interrupt() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ending {
		return
	}
	close(n.interrupted)
	n.interrupted = make(chan struct{})
}

// ErrInterrupted is what who waits hears when Caddy loads a config or ends.
var ErrInterrupted = errors.New("Caddy is loading a config, or ends; ask again") //nolint:staticcheck // a name
