// This file holds the events that tell of drains, and how they are raised.

package cluster

import (
	"context"
	"sync/atomic"

	"go.uber.org/zap"
)

// The events. They are raised by the node that finds what they tell, so the first two on every node.
const (
	// eventStarted tells that an upstream has begun to drain: upstream, config (whether a config drains
	// it), by and reason.
	eventStarted = "bokeh_drain_started"

	// eventDrained tells that a draining upstream is certainly empty: upstream. It is raised again after a
	// restart of Caddy, and when a session has been there since.
	eventDrained = "bokeh_drained"
)

// maxEvents bounds the events that wait to be raised: whoever subscribes may be slow.
const maxEvents = 1024

// event is one that waits to be raised.
type event struct {
	name string
	data map[string]any
}

// publisher is the queue of events that are to be raised.
type publisher struct {
	events chan event
	lost   atomic.Int64 // events, since one was last taken
	logger *zap.Logger
}

// publish puts an event in the queue. What finds the queue full is lost. It needs no lock.
func (p *publisher) publish(name string, data map[string]any) {
	select {
	case p.events <- event{name, data}:
		p.lost.Store(0)
	default:
		if p.lost.Add(1) == 1 {
			p.logger.Warn("events are lost, for those who subscribe to them are slow", zap.String("event", name))
		}
	}
}

// Publish lets an event be raised through a policy of the config that runs: one goroutine does that, and subscribers run in that, never in
// a request. Where there are too many to be raised, it is lost.
func (n *Cluster) Publish(name string, data map[string]any) {
	if n != nil {
		n.publish(name, data)
	}
}

// raise raises the events in the queue until ctx ends.
func (n *Cluster) raise(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-n.events:
			if p := n.aPool(); p != nil {
				p.Emit(e.name, e.data)
			}
		}
	}
}

// aPool returns a policy of the config that runs, or nil: the oldest one, for another may be loading.
func (n *Cluster) aPool() Policy {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == nil || len(n.used.pools) == 0 {
		return nil
	}
	return n.used.pools[0]
}
