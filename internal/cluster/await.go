// This file holds how it is waited for what becomes of a drain, or of this node.

package cluster

import (
	"context"
	"errors"
	"time"
)

// Await waits until something is so, and says whether it is: it asks so at first, and whenever something may have changed. It gives up when
// the time is over, when ctx ends, with an error of so, and with ErrInterrupted when Caddy loads a config or ends.
func (n *Cluster) Await(ctx context.Context, timeout time.Duration, so func() (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
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

// listen returns what is closed when something may have changed, and what is closed when nobody
// should wait here any longer.
func (n *Cluster) listen() (news, interrupted <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.news, n.interrupted
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
