// Package admission is the queue in which visits wait for a slot while every server has all the sessions that it may have.
//
// A slot is one session that a server may have under a limit. Whoever came first gets the next one that is free.
//
// This file holds the queue.
package admission

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"
)

// Queue is the visits that wait for a slot, the oldest first. There is one in the process, for a
// reload does not end the wait, and policies may share servers. All methods may be called by any goroutine. Times are on one clock.
//
// It is made of groups: those who wait under one policy for one pool are in one, and each server knows the groups that
// wait for it. Who is next at a server is the oldest of the first ones of its groups, so to give out its free slots
// takes as many steps as there are slots, and nobody else is looked at. A visit that comes stands at the end of its group;
// one that leaves looks at nothing but the counts of its own servers, for whether one of them has a slot for the next.
type Queue struct {
	length atomic.Int64 // so that where nobody waits no lock is taken

	mu      sync.Mutex // guards all below, the groups of servers, and what changes in the waiters
	groups  map[groupKey]*group
	waiters dues
	number  uint64 // of the last waiter
}

// NewQueue returns an empty queue.
func NewQueue() *Queue { return &Queue{groups: make(map[groupKey]*group)} }

// Enter puts a waiter in the queue, unless it is there: under a policy, which is anything that can be compared, and its limit of
// sessions for each server. One that was in it before, and found a server that refused the connection, keeps its place. What is offered to
// the one who looked last holds for all of the group, and whoever gets a turn by that is called.
func (q *Queue) Enter(w *Waiter, policy any, limit int64, o *Offer, now time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.see(w, now)
	k := groupKey{policy, limit, o.pool}
	g := q.groups[k]
	known := g != nil
	if !known {
		g = &group{groupKey: k}
		q.groups[k] = g
	}
	if w.group != g {
		q.ungroup(w)
		g.add(w)
	}
	if known && g.offer.free == o.free {
		return
	}
	if g.wait(o); known {
		q.callAll(o.servers, limit, now)
	}
}

// see takes note that the visit of a waiter looks, which is in the queue from then on. q.mu is locked.
func (q *Queue) see(w *Waiter, now time.Duration) {
	w.due = now + w.absent
	if w.group != nil {
		heap.Fix(&q.waiters, w.index)
		return
	}
	q.number++
	w.number = q.number
	heap.Push(&q.waiters, w)
	q.length.Store(int64(len(q.waiters)))
}

// Leave takes a waiter out of the queue, if it is there. A slot that it did not take is the next one's.
func (q *Queue) Leave(w *Waiter, now time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.group == nil {
		return
	}
	servers, limit := w.group.offer.servers, w.group.limit
	heap.Remove(&q.waiters, w.index)
	q.remove(w)
	q.callAll(servers, limit, now)
}

// callAll calls those whose turn it is where less than limit slots are taken: elsewhere nobody who is allowed so many has one. q.mu is locked.
func (q *Queue) callAll(servers []*Server, limit int64, now time.Duration) {
	q.forget(now)
	for _, s := range servers {
		if s.Taken(limit) < limit {
			q.call(s, now)
		}
	}
}

// remove takes out a waiter that does not fall due any more. q.mu is locked.
func (q *Queue) remove(w *Waiter) {
	q.ungroup(w)
	q.length.Store(int64(len(q.waiters)))
}

// ungroup takes a waiter out of its group, if it is in one. A group that nobody is left in is no more. q.mu is locked.
func (q *Queue) ungroup(w *Waiter) {
	g := w.group
	if g == nil {
		return
	}
	if g.remove(w); len(g.waiters) == 0 {
		g.wait(nil)
		delete(q.groups, g.groupKey)
	}
}

// forget takes out those who have not been seen for too long. q.mu is locked.
func (q *Queue) forget(now time.Duration) {
	for len(q.waiters) > 0 && now > q.waiters[0].due {
		q.remove(heap.Pop(&q.waiters).(*Waiter))
	}
}

// Len returns how many wait.
func (q *Queue) Len(now time.Duration) int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(now)
	return q.length.Load()
}

// IsEmpty says whether nobody is in the queue, nor anybody who has not been seen for too long.
func (q *Queue) IsEmpty() bool { return q.length.Load() == 0 }

// Freed tells that a server may have a free slot. The queue is looked at later, so the caller may hold any lock.
func (q *Queue) Freed(s *Server, now time.Duration) {
	if q.length.Load() == 0 {
		return
	}
	go func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.call(s, now)
	}()
}

// call calls those whose turn it is at s: as many as there are slots. q.mu is locked.
func (q *Queue) call(s *Server, now time.Duration) {
	q.forget(now)
	for w := range s.turns() {
		select {
		case w.turn <- struct{}{}:
		default: // it has been called already
		}
	}
}

// Admits says whether a visit may begin a session at s under a limit: there is a slot
// for it and for all who came before it. The waiter is nil for who has just come.
func (q *Queue) Admits(w *Waiter, s *Server, limit int64, now time.Duration) bool {
	taken := s.Taken(limit)
	if taken >= limit || q.length.Load() == 0 {
		return taken < limit
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(now)
	for before := range s.turns() {
		if taken >= limit || w != nil && w.group != nil && before.compare(w) >= 0 {
			break
		}
		taken++
	}
	if taken >= limit && w == nil {
		q.call(s, now) // they may not know that s takes sessions again
	}
	return taken < limit
}
