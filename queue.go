// This file holds the queues that the line is made of: the visits that wait under one policy for the places of one pool.

package caddybokeh

import (
	"cmp"
	"iter"
	"slices"
	"time"
)

// queue is those of the line who may have the same places. Each of its upstreams knows it, so that a place that
// becomes free costs the same however many wait, and how many other upstreams there are.
type queue struct {
	queueKey
	offer   *offer
	tickets []*ticket // in the order in which their visits came
}

// queueKey tells queues apart. Policies have their own, for each sees the health of its upstreams by itself.
type queueKey struct {
	policy *Selection
	max    int64  // sessions that the policy allows an upstream
	pool   uint64 // the sum of its upstreams' lots
}

// offer is what of a pool a policy's visits may wait for. All who find the same share one.
type offer struct {
	pool, free uint64 // the sums of the lots of the pool, and of the upstreams below
	upstreams  []*upstream
}

// ticket is the place of one visit in the line. It dies with its request, or when its visit is not seen
// for a while: a reverse proxy that has given up does not say so, and may be busy with the error page.
type ticket struct {
	since  time.Duration // when its visit came
	absent time.Duration // how long its visit may be away: the proxy pauses between two tries
	turn   chan struct{}

	// What follows is guarded by the line's mu.

	queue  *queue        // nil while it is in none
	number uint64        // of two whose visits came at once, the first in the line has the lower one
	due    time.Duration // when it is forgotten, unless it is seen before
	index  int           // among those that fall due
}

// compare says which of two visits came first.
func (tk *ticket) compare(other *ticket) int {
	return cmp.Or(cmp.Compare(tk.since, other.since), cmp.Compare(tk.number, other.number))
}

// add puts a ticket in its place: most come last.
func (q *queue) add(tk *ticket) {
	tk.queue = q
	i, _ := slices.BinarySearchFunc(q.tickets, tk, (*ticket).compare)
	q.tickets = slices.Insert(q.tickets, i, tk)
}

// remove takes a ticket out. Most leave from the front, where there is nothing to move.
func (q *queue) remove(tk *ticket) {
	tk.queue = nil
	i, _ := slices.BinarySearchFunc(q.tickets, tk, (*ticket).compare)
	if i >= len(q.tickets)/2 {
		q.tickets = slices.Delete(q.tickets, i, i+1)
		return
	}
	copy(q.tickets[1:], q.tickets[:i])
	q.tickets[0] = nil
	q.tickets = q.tickets[1:]
}

// wait makes the upstreams of an offer know the queue, in place of those of the last one.
func (q *queue) wait(o *offer) {
	if q.offer != nil {
		for _, u := range q.offer.upstreams {
			u.queues = slices.DeleteFunc(u.queues, func(other *queue) bool { return other == q })
		}
	}
	q.offer = o
	if o == nil {
		return
	}
	for _, u := range o.upstreams {
		if !slices.Contains(u.queues, q) { // a pool may name an upstream twice
			u.queues = append(u.queues, q)
		}
	}
}

// turns are those whose turn it is at u, the oldest first: for each there is a place if those
// before take theirs. Whoever allows fewer sessions is passed over once there are so many. The line is locked.
func (u *upstream) turns() iter.Seq[*ticket] {
	return func(yield func(*ticket) bool) {
		placeless := u.placeless.Load()
		var room [4][]*ticket
		left := room[:0]
		for _, q := range u.queues {
			left = append(left, q.tickets)
		}
		for sessions := u.sessions.Load(); ; sessions++ {
			next := -1
			for i, tickets := range left {
				if len(tickets) > 0 && sessions-min(placeless, tickets[0].queue.max) < tickets[0].queue.max && (next < 0 || tickets[0].compare(left[next][0]) < 0) {
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

// offer returns what of a view visits may wait for: upstreams that are not available would be kept from others for nothing.
func (s *Selection) offer(v *view) *offer {
	now := offer{}
	now.add(v, func(*upstream) {})
	if last := s.offered.Load(); last != nil && last.pool == now.pool && last.free == now.free {
		return last
	}
	o := new(offer)
	o.add(v, func(u *upstream) { o.upstreams = append(o.upstreams, u) })
	s.offered.Store(o)
	return o
}

// add adds up the upstreams of a view.
func (o *offer) add(v *view, free func(*upstream)) {
	for i, m := range v.members[:v.present] {
		o.pool += m.lot
		if v.available(i) {
			o.free += m.lot
			free(m.upstream)
		}
	}
}

// dues are the tickets of the line as a heap: the first to be forgotten is on top.
type dues []*ticket

// Len implements heap.Interface, as the following do.
func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].due < d[j].due }

// Swap keeps it known where each is.
func (d dues) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

// Push takes a ticket.
func (d *dues) Push(x any) {
	tk := x.(*ticket)
	tk.index = len(*d)
	*d = append(*d, tk)
}

// Pop gives back the last.
func (d *dues) Pop() any {
	last := len(*d) - 1
	tk := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return tk
}
