// This file holds how a visit waits for a slot while every upstream has all the sessions that it may have.

package caddybokeh

import (
	"context"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// waitSlice is how long a visit waits before it looks again: an upstream may have joined, become
// healthy or been taken back meanwhile, of which the queue does not hear.
const waitSlice = time.Second

// isCapped says whether max_sessions holds for a run: it does for new sessions alone, and not for those
// that somebody else has named, which every node sends to the same upstream.
func (rn *run) isCapped() bool {
	return rn.s.MaxSessions > 0 && rn.Kind == bokeh.Page && (rn.tier || rn.ID == "" && rn.Stamp == "")
}

// room is which of the candidates take a run's new session.
type room struct {
	rn *run
	cs *candidates

	looked  bool // whether all may fail
	allFail bool
}

func (rn *run) room(cs *candidates) *room { return &room{rn: rn, cs: cs} }

// isFor says whether c takes the session. Whoever may still wait for a slot need not take one at an upstream that fails.
func (r *room) isFor(c *candidate) bool {
	rn := r.rn
	if !rn.isCapped() || !r.cs.takesNew(c) {
		return r.cs.takesNew(c)
	}
	return (!rn.avoids(c.member, r.cs.now) || rn.lastChance || r.isWhereAllFail()) &&
		rn.s.table.Waiting.Admits(rn.waiter, &c.Slots, int64(rn.s.MaxSessions), r.cs.now)
}

// isWhereAllFail says whether the session has nowhere to go but where it may fail. That is asked for every upstream that may.
func (r *room) isWhereAllFail() bool {
	if !r.looked {
		r.looked = true
		r.allFail = r.cs.allThatTake(func(c *candidate) bool { return r.rn.avoids(c.member, r.cs.now) })
	}
	return r.allFail
}

// isOver says whether this run's session is one too many where it is counted. Two who come at once may
// both give way; the queue sees to who takes the slot.
func (rn *run) isOver() bool {
	counted := rn.attempt.load // nothing, if the client has gone
	return rn.isCapped() && counted.IsCounted() && counted.At().Slots.Taken(int64(rn.s.MaxSessions)) > int64(rn.s.MaxSessions)
}

// isFull says whether it is for max_sessions alone that nobody takes this run's new session.
func (rn *run) isFull(cs *candidates) bool { return rn.isCapped() && cs.any(cs.takesNew) }

// waitForSlot waits for a slot as long as the handler has patience, and says whether there may be one.
// Where upstreams are discovered it gives up from time to time, so that they are looked for; but not
// when the config has been unloaded, for then nobody would ask again.
func (rn *run) waitForSlot(ctx context.Context, cs *candidates) bool {
	left := rn.begun + rn.s.patience - rn.s.table.Now()
	if left <= 0 && rn.isCapped() && !rn.lastChance {
		rn.lastChance = true
		return true
	}
	if left <= 0 {
		rn.leaveQueue()
		return false
	}
	if !rn.isFull(cs) || !rn.enterQueue(cs) {
		return false
	}
	room, limit := rn.room(cs), int64(rn.s.MaxSessions)
	if cs.any(func(c *candidate) bool { return c.Slots.Taken(limit) < limit && room.isFor(c) }) {
		return true // it became free before we were in the queue
	}
	timer := time.NewTimer(min(left, waitSlice))
	defer timer.Stop()
	select {
	case <-rn.waiter.Turn():
		return true
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	return rn.s.static != nil || rn.s.isUnloaded()
}

// enterQueue says whether this run waits in the queue. There is none for a request that
// has ended.
func (rn *run) enterQueue(cs *candidates) bool {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	if rn.over {
		return false
	}
	now := rn.s.table.Now()
	if rn.waiter == nil {
		rn.queuedAt = now
		rn.waiter = admission.NewWaiter(rn.begun, rn.s.tryInterval+2*waitSlice)
	}
	rn.s.table.Waiting.Enter(rn.waiter, rn.s, int64(rn.s.MaxSessions), rn.s.offer(cs), now)
	rn.s.tellFull(len(cs.all))
	return true
}

// leaveQueue takes the run out of the queue.
func (rn *run) leaveQueue() {
	if rn.waiter != nil {
		rn.s.table.Waiting.Leave(rn.waiter, rn.s.table.Now())
	}
}

// offer returns what visits may wait for: upstreams that are not available would be kept from others for nothing.
func (s *Selection) offer(cs *candidates) *admission.Offer {
	var sums admission.Sums
	for i := range cs.all {
		c := &cs.all[i]
		sums.Add(&c.Slots, cs.isAvailable(c))
	}
	if last := s.offered.Load(); last != nil && last.Sums == sums {
		return last
	}
	var free []*admission.Server
	for i := range cs.all {
		if c := &cs.all[i]; cs.isAvailable(c) {
			free = append(free, &c.Slots)
		}
	}
	o := admission.NewOffer(sums, free)
	s.offered.Store(o)
	return o
}
