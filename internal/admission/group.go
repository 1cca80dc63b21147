// This file holds the groups that the queue is made of: the visits that wait under one policy for the slots of one pool.

package admission

import (
	"cmp"
	"iter"
	"slices"
	"sync/atomic"
	"time"
)

// Server is what the queue knows of a server. It must not be copied.
type Server struct {
	// Lot is most likely no other server's, so that the sum of some tells which they are. It is never changed.
	Lot uint64

	// Sessions are all that have not ended.
	Sessions atomic.Int64

	// Slotless are those of the sessions that hold no slot.
	Slotless atomic.Int64

	groups []*group // that wait for a slot here; guarded by the queue's mu
}

// Taken returns how many slots of a limit are taken. Sessions that hold none are overlooked up to that limit, so that there
// are never more than twice as many.
func (s *Server) Taken(limit int64) int64 {
	return s.Sessions.Load() - min(s.Slotless.Load(), limit)
}

// Holding returns how many sessions hold a slot.
func (s *Server) Holding() int64 { return s.Sessions.Load() - s.Slotless.Load() }

// group is those of the queue who may have the same slots. Each of its servers knows it, so that a slot that
// becomes free costs the same however many wait, and how many other servers there are.
type group struct {
	groupKey
	offer   *Offer
	waiters []*Waiter // in the order in which their visits came
}

// groupKey tells groups apart. Policies have their own, for each sees the health of its servers by itself.
type groupKey struct {
	policy any
	limit  int64  // sessions that the policy allows a server
	pool   uint64 // the sum of its servers' lots
}

// Sums tell one offer from another without making either.
type Sums struct {
	pool, free uint64 // of the lots of the pool, and of those of it that are free
}

// Add adds a server of the pool, and says whether visits may wait for it.
func (s *Sums) Add(server *Server, free bool) {
	s.pool += server.Lot
	if free {
		s.free += server.Lot
	}
}

// Offer is what of a pool a policy's visits may wait for. All who find the same can share one.
type Offer struct {
	Sums
	servers []*Server
}

// NewOffer returns the offer of these servers, which have these sums.
func NewOffer(sums Sums, free []*Server) *Offer { return &Offer{sums, free} }

// Waiter is the place of one visit in the queue. It dies with its request, or when its visit is not seen
// for a while: a reverse proxy that has given up does not say so, and may be busy with the error page.
type Waiter struct {
	since  time.Duration // when its visit came
	absent time.Duration // how long its visit may be away: the proxy pauses between two tries
	turn   chan struct{}

	// What follows is guarded by the queue's mu.

	group  *group        // nil while it is in none
	number uint64        // of two whose visits came at once, the first in the queue has the lower one
	due    time.Duration // when it is forgotten, unless it is seen before
	index  int           // among those that fall due
}

// NewWaiter returns a waiter for a visit that came at a time, and may be away for a while.
func NewWaiter(since, absent time.Duration) *Waiter {
	return &Waiter{since: since, absent: absent, turn: make(chan struct{}, 1)}
}

// Turn has something when it may be the visit's turn.
func (w *Waiter) Turn() <-chan struct{} { return w.turn }

// compare says which of two visits came first.
func (w *Waiter) compare(other *Waiter) int {
	return cmp.Or(cmp.Compare(w.since, other.since), cmp.Compare(w.number, other.number))
}

// add puts a waiter in its place: most come last.
func (g *group) add(w *Waiter) {
	w.group = g
	i, _ := slices.BinarySearchFunc(g.waiters, w, (*Waiter).compare)
	g.waiters = slices.Insert(g.waiters, i, w)
}

// remove takes a waiter out. Most leave from the front, where there is nothing to move.
func (g *group) remove(w *Waiter) {
	w.group = nil
	i, _ := slices.BinarySearchFunc(g.waiters, w, (*Waiter).compare)
	if i >= len(g.waiters)/2 {
		g.waiters = slices.Delete(g.waiters, i, i+1)
		return
	}
	copy(g.waiters[1:], g.waiters[:i])
	g.waiters[0] = nil
	g.waiters = g.waiters[1:]
}

// wait makes the servers of an offer know the group, in place of those of the last one.
func (g *group) wait(o *Offer) {
	if g.offer != nil {
		for _, s := range g.offer.servers {
			s.groups = slices.DeleteFunc(s.groups, func(other *group) bool { return other == g })
		}
	}
	g.offer = o
	if o == nil {
		return
	}
	for _, s := range o.servers {
		if !slices.Contains(s.groups, g) { // a pool may name a server twice
			s.groups = append(s.groups, g)
		}
	}
}

// turns are those whose turn it is at s, the oldest first: for each there is a slot if those
// before take theirs. Whoever allows fewer sessions is passed over once there are so many. The queue is locked.
func (s *Server) turns() iter.Seq[*Waiter] {
	return func(yield func(*Waiter) bool) {
		slotless := s.Slotless.Load()
		var room [4][]*Waiter
		left := room[:0]
		for _, g := range s.groups {
			left = append(left, g.waiters)
		}
		for sessions := s.Sessions.Load(); ; sessions++ {
			next := -1
			for i, waiters := range left {
				if len(waiters) > 0 && sessions-min(slotless, waiters[0].group.limit) < waiters[0].group.limit && (next < 0 || waiters[0].compare(left[next][0]) < 0) {
					next = i
				}
			}
			if next < 0 || !yield(left[next][0]) {
				return
			}
			left[next] = left[next][1:]
		}
	}
}

// dues are the waiters of the queue as a heap: the first to be forgotten is on top.
type dues []*Waiter

// Len implements heap.Interface, as the following do.
func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].due < d[j].due }

// Swap keeps it known where each is.
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

// Push takes a waiter.
func (d *dues) Push(x any) {
	w := x.(*Waiter)
	w.index = len(*d)
	*d = append(*d, w)
}

// Pop gives back the last.
func (d *dues) Pop() any {
	last := len(*d) - 1
	w := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return w
}
