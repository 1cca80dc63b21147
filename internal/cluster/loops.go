// This file holds the goroutines of a node: each is started here, and ends with the node.

package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// loops are goroutines that end when they are told to.
type loops struct {
	ctx  context.Context // of all of them
	stop context.CancelFunc

	mu    sync.Mutex // guards ended, and that nothing is started after it
	ended bool
	group sync.WaitGroup
}

func newLoops(ctx context.Context) *loops {
	l := new(loops)
	l.ctx, l.stop = context.WithCancel(ctx)
	return l
}

// start runs f in a goroutine, unless all have been told to end, and says whether it did. f returns soon after the end of the context of
// the loops, or of one that was made of it.
func (l *loops) start(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.group.Go(f)
	}
	return !l.ended
}

// end tells all to end, and returns when they have, or when they have not for so long: a storage may not heed a context.
func (l *loops) end(timeout time.Duration) {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.stop()
	done := make(chan struct{})
	go func() {
		l.group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(timeout):
	}
}

// rest waits for a time, and says whether that is over: it is not if ctx ends first.
func rest(ctx context.Context, d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-over.C:
		return true
	}
}

// within lets f use the storage for as long as an operator waits, until the node is closed. Not every storage heeds a context.
func (n *Cluster) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	done := make(chan error, 1)
	if !n.loops.start(func() { done <- f(ctx) }) {
		return ErrInterrupted
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return store.ErrUnanswered
	}
}
