// Package cluster holds what makes this Caddy a node among all that share a storage: the drains that operators ask for, what nodes report of
// their upstreams, and who is told that one is certainly empty. It knows nothing of Caddy: what it needs of that comes in as values.
// Everything exported is safe for concurrent use. Times are on the clock of the table of sessions, which is monotonic.
//
// This file holds the cluster as this process sees it.
package cluster

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// Cluster is this process as a node among all Caddys that share a storage: a shell that locks, and has the goroutines. What is known is in
// its state.
type Cluster struct {
	loops *loops

	mu    sync.Mutex // guards state, but for what never changes
	state            // its methods assume the lock
}

// New returns a node that has nothing to tell of yet, and does nothing before a policy is attached. When ctx ends, so does all that it
// does, and the others hear nothing of that but that a drain is taken back which may not stand: as if the process were killed.
func New(ctx context.Context, config Config) *Cluster {
	n := &Cluster{loops: newLoops(ctx), state: newState(config)}
	n.later = func(d time.Duration, f func()) {
		time.AfterFunc(d, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			f()
		})
	}
	return n
}

// Name returns what others call this node: a random name, another one for each process.
func (n *Cluster) Name() string { return n.name }

// StorageErrors returns how often the storage has failed, by what was tried: load, list, store, delete.
func (n *Cluster) StorageErrors() sessions.Counters { return n.storageErrors }

// leave tells the others that this process ends, as far as that is possible in short.
func (n *Cluster) leave(sh *share) {
	n.mu.Lock()
	if !n.known {
		n.mu.Unlock()
		return
	}
	n.seq++
	now := n.conf.Table.Now()
	r := n.makeReport(now, n.accounts(now))
	r.Left = true
	n.known, n.reported = false, 0
	n.mu.Unlock()
	say := func(ctx context.Context) error { return n.write(ctx, sh, r) }
	if err := n.within(context.Background(), say); !errors.Is(err, ErrInterrupted) {
		return
	}
	// The node was closed a moment ago, and starts nothing more. Close waits for this goroutine.
	ctx, cancel := context.WithTimeout(context.Background(), operatorTimeout)
	defer cancel()
	_ = say(ctx)
}

// Close tells the others that this process ends, and ends all that the node does: when it returns, no goroutine of it is left but those
// in calls that a storage does not answer. It takes no longer than an operator waits. Once is enough, and more often does no harm.
func (n *Cluster) Close() {
	began := time.Now()
	n.mu.Lock()
	last := n.used
	if last != nil {
		last.halt()
	}
	if !n.ending {
		n.ending = true
		close(n.interrupted)
	}
	n.mu.Unlock()
	if last != nil {
		n.leave(last)
	}
	n.loops.end(operatorTimeout - time.Since(began))
}

// ServersStopped is to be called when the servers of a config have stopped and its storage is open yet: it closes the node if the process
// ends, and else goes on with the storage of the next config.
func (n *Cluster) ServersStopped() {
	if n.conf.Exiting() {
		n.Close()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.follow() // before that storage is closed
}

// Active returns api.ErrNoPolicy where the node has no storage, and so nothing to tell; else nil.
func (n *Cluster) Active() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == nil {
		return api.ErrNoPolicy
	}
	return nil
}
