// This file holds how a visit waits for a slot while every upstream has all the sessions that it may have.

package caddybokeh

import (
	"context"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// slotWait is how a visit waits for a slot.
type slotWait struct {
	waiter     *admission.Waiter // nil as long as it has waited for none
	queuedAt   time.Duration     // since when it waits, on the table's clock
	waited     time.Duration     // until it had one
	lastChance bool              // its patience is over, so it takes a slot where it may fail
}

// isCapped says whether max_sessions holds for a visit: it does for new sessions alone, and not for those
// that somebody else has named, which every node sends to the same upstream.
func (v *visit) isCapped() bool {
	return v.s.MaxSessions > 0 && v.Kind == bokeh.Page && (v.tier || v.ID == "" && v.Stamp == "")
}

// isOver says whether this visit's session is one too many where it is counted. Two who come at once may
// both give way; the queue sees to who takes the slot.
func (v *visit) isOver() bool {
	counted := v.attempt.load // nothing, if the client has gone
	return v.isCapped() && counted.IsCounted() && counted.At().Slots.Taken(int64(v.s.MaxSessions)) > int64(v.s.MaxSessions)
}

// isFull says whether it is for max_sessions alone that nobody takes this visit's new session.
func (v *visit) isFull(cs *candidates) bool { return v.isCapped() && cs.any(cs.takesNew) }

// waitForSlot waits for a slot as long as the handler has patience, and says whether there may be one.
// Where upstreams are discovered it gives up from time to time, so that they are looked for; but not
// when the config has been unloaded, for then nobody would ask again.
func (v *visit) waitForSlot(ctx context.Context, cs *candidates) bool {
	left := v.startedAt + v.s.patience - v.s.table.Now()
	if left <= 0 && v.isCapped() && !v.lastChance {
		v.lastChance = true
		return true
	}
	if left <= 0 {
		v.leaveQueue()
		return false
	}
	if !v.isFull(cs) || !v.enterQueue(cs) {
		return false
	}
	room, limit := v.room(cs), int64(v.s.MaxSessions)
	if cs.any(func(c *candidate) bool { return c.Slots.Taken(limit) < limit && room.isFor(c) }) {
		return true // it became free before we were in the queue
	}
	timer := time.NewTimer(min(left, slotInterval))
	defer timer.Stop()
	select {
	case <-v.waiter.Turn():
		return true
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	return v.s.static != nil || v.s.isUnloaded()
}

// enterQueue says whether this visit waits in the queue. There is none for a request that
// has ended.
func (v *visit) enterQueue(cs *candidates) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return false
	}
	now := v.s.table.Now()
	if v.waiter == nil {
		v.queuedAt = now
		v.waiter = admission.NewWaiter(v.startedAt, v.s.tryInterval+2*slotInterval)
	}
	v.s.table.Waiting.Enter(v.waiter, v.s, int64(v.s.MaxSessions), v.s.offer(cs), now)
	v.s.warnFull(len(cs.all))
	return true
}

// served takes note that the visit has an upstream. Who only tries one that has failed stays in the queue
// until it takes the connection.
func (v *visit) served() {
	if v.waiter != nil && v.waited == 0 {
		v.waited = v.s.table.Now() - v.queuedAt
	}
	if !v.attempt.probes {
		v.leaveQueue()
	}
}

// leaveQueue takes the visit out of the queue.
func (v *visit) leaveQueue() {
	if v.waiter != nil {
		v.s.table.Waiting.Leave(v.waiter, v.s.table.Now())
	}
}

// offer returns what visits may wait for: upstreams that are not available would be kept from others for nothing.
func (s *Selection) offer(cs *candidates) *admission.Offer {
	var sums admission.Sums
	free := make([]*admission.Server, 0, len(cs.all))
	for i := range cs.all {
		c := &cs.all[i]
		is := cs.isAvailable(c) // asked once: a moment later it may be another answer
		sums.Add(&c.Slots, is)
		if is {
			free = append(free, &c.Slots)
		}
	}
	if last := s.offered.Load(); last != nil && last.Sums == sums {
		return last
	}
	o := admission.NewOffer(sums, free)
	s.offered.Store(o)
	return o
}
