// This file holds the line in which visits wait while every upstream has all the sessions that it may have.

package caddybokeh

import (
	"container/heap"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// lineSlice is how long a visit waits before it looks again: an upstream may have joined, become
// healthy or been taken back meanwhile, of which the line does not hear.
const lineSlice = time.Second

// line is the visits that wait for a place, the oldest first. There is one in the process, for a
// reload does not end the wait, and policies may share upstreams.
//
// It is made of queues: those who wait under one policy for one pool are in one, and each upstream knows the queues that
// wait for it. Who is next at an upstream is the oldest of the first ones of its queues, so to give out its free places
// takes as many steps as there are places, and nobody else is looked at. A visit that comes stands at the end of its queue;
// one that leaves looks at nothing but the counts of its own upstreams, for whether one of them has a place for the next.
type line struct {
	length atomic.Int64 // so that where nobody waits no lock is taken

	mu      sync.Mutex // guards all below, the queues of upstreams, and what changes in the tickets
	queues  map[queueKey]*queue
	tickets dues
	number  uint64 // of the last ticket
}

// join puts a ticket in the line, unless it is there. One that was in it before, and found a server that
// refused the connection, keeps its place. What is offered to the one who looked last holds for all of the queue, and
// whoever gets a turn by that is called.
func (l *line) join(tk *ticket, k queueKey, o *offer, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.see(tk, now)
	q := l.queues[k]
	known := q != nil
	if !known {
		q = &queue{queueKey: k}
		l.queues[k] = q
	}
	if tk.queue != q {
		l.unqueue(tk)
		q.add(tk)
	}
	if known && q.offer.free == o.free {
		return
	}
	if q.wait(o); known {
		l.callAll(o.upstreams, q.max, now)
	}
}

// see takes note that the visit of a ticket looks, which is in the line from then on. l.mu is locked.
func (l *line) see(tk *ticket, now time.Duration) {
	tk.due = now + tk.absent
	if tk.queue != nil {
		heap.Fix(&l.tickets, tk.index)
		return
	}
	l.number++
	tk.number = l.number
	heap.Push(&l.tickets, tk)
	l.length.Store(int64(len(l.tickets)))
}

// leave takes a ticket out of the line. A place that it did not take is the next one's.
func (l *line) leave(tk *ticket, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if tk.queue == nil {
		return
	}
	upstreams, limit := tk.queue.offer.upstreams, tk.queue.max
	heap.Remove(&l.tickets, tk.index)
	l.remove(tk)
	l.callAll(upstreams, limit, now)
}

// callAll calls those whose turn it is where less than limit sessions are: elsewhere nobody who is allowed so many has one. l.mu is locked.
func (l *line) callAll(upstreams []*upstream, limit int64, now time.Duration) {
	l.forget(now)
	for _, u := range upstreams {
		if u.places(limit) < limit {
			l.call(u, now)
		}
	}
}

// remove takes out a ticket that does not fall due any more. l.mu is locked.
func (l *line) remove(tk *ticket) {
	l.unqueue(tk)
	l.length.Store(int64(len(l.tickets)))
}

// unqueue takes a ticket out of its queue, if it is in one. A queue that nobody is left in is no more. l.mu is locked.
func (l *line) unqueue(tk *ticket) {
	q := tk.queue
	if q == nil {
		return
	}
	if q.remove(tk); len(q.tickets) == 0 {
		q.wait(nil)
		delete(l.queues, q.queueKey)
	}
}

// forget takes out those who have not been seen for too long. l.mu is locked.
func (l *line) forget(now time.Duration) {
	for len(l.tickets) > 0 && now > l.tickets[0].due {
		l.remove(heap.Pop(&l.tickets).(*ticket))
	}
}

// waiting returns how many wait.
func (l *line) waiting(now time.Duration) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	return l.length.Load()
}

// freed tells that u has a session less. The caller holds a lock of the table, so the line is looked
// at later.
func (l *line) freed(u *upstream, now time.Duration) {
	if l.length.Load() == 0 {
		return
	}
	go func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.call(u, now)
	}()
}

// call calls those whose turn it is at u: as many as there are places. l.mu is locked.
func (l *line) call(u *upstream, now time.Duration) {
	l.forget(now)
	for tk := range u.turns() {
		select {
		case tk.turn <- struct{}{}:
		default: // it has been called already
		}
	}
}

// hasPlace says whether a visit may begin a session at u, of which limit are allowed: there is a place
// for it and for all who came before it. The ticket is nil for who has just come.
func (l *line) hasPlace(tk *ticket, u *upstream, limit int64, now time.Duration) bool {
	taken := u.places(limit)
	if taken >= limit || l.length.Load() == 0 {
		return taken < limit
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	for before := range u.turns() {
		if taken >= limit || tk != nil && tk.queue != nil && before.compare(tk) >= 0 {
			break
		}
		taken++
	}
	if taken >= limit && tk == nil {
		l.call(u, now) // they may not know that u takes sessions again
	}
	return taken < limit
}

// isCapped says whether max_sessions holds for a run: it does for new sessions alone, and not for those
// that somebody else has named, which every node sends to the same upstream.
func (rn *run) isCapped() bool {
	return rn.s.MaxSessions > 0 && rn.Kind == bokeh.Page && (rn.tier || rn.ID == "" && rn.Stamp == "")
}

// takes says whether the upstream at i takes this run's new session. Whoever may still wait for a place need
// not take one at an upstream that fails.
func (rn *run) takes(v *view, i int) bool {
	if !rn.isCapped() || !v.takesNew(i) {
		return v.takesNew(i)
	}
	m := v.members[i]
	return (!rn.avoids(m, v.now) || rn.lastChance || rn.avoidsAll(v)) && rn.s.table.line.hasPlace(rn.ticket, m.upstream, int64(rn.s.MaxSessions), v.now)
}

// avoidsAll says whether this run's new session has nowhere to go but where it may fail. It is asked once a look for
// every upstream that may fail.
func (rn *run) avoidsAll(v *view) bool {
	if v.avoided == nil {
		all := v.allThatTake(func(m *member) bool { return rn.avoids(m, v.now) })
		v.avoided = &all
	}
	return *v.avoided
}

// isOver says whether this run's session is one too many where it is counted. Two who come at once may
// both give way; the line sees to who takes the place.
func (rn *run) isOver() bool {
	s := rn.attempt.load.s // nil if the client has gone
	return rn.isCapped() && s != nil && s.at.places(int64(rn.s.MaxSessions)) > int64(rn.s.MaxSessions)
}

// isFull says whether it is for max_sessions alone that nobody takes this run's new session.
func (rn *run) isFull(v *view) bool {
	for i := range v.present {
		if v.takesNew(i) {
			return rn.isCapped()
		}
	}
	return false
}

// waitInLine waits for a place as long as the handler has patience, and says whether there may be one.
// Where upstreams are discovered it gives up from time to time, so that they are looked for; but not
// when the config has been unloaded, for then nobody would ask again.
func (rn *run) waitInLine(ctx context.Context, v *view) bool {
	left := rn.begun + rn.s.patience - rn.s.table.now()
	if left <= 0 && rn.isCapped() && !rn.lastChance {
		rn.lastChance = true
		return true
	}
	if left <= 0 {
		rn.leaveLine()
		return false
	}
	if !rn.isFull(v) || !rn.getInLine(v) {
		return false
	}
	for i, m := range v.members[:v.present] {
		if m.places(int64(rn.s.MaxSessions)) < int64(rn.s.MaxSessions) && rn.takes(v, i) {
			return true // it became free before we were in the line
		}
	}
	timer := time.NewTimer(min(left, lineSlice))
	defer timer.Stop()
	select {
	case <-rn.ticket.turn:
		return true
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	return rn.s.static != nil || rn.s.isUnloaded()
}

// getInLine says whether this run has a ticket, and it is in the line. There is none for a request that
// has ended.
func (rn *run) getInLine(v *view) bool {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	if rn.over {
		return false
	}
	now := rn.s.table.now()
	if rn.ticket == nil {
		rn.inLine = now
		rn.ticket = &ticket{since: rn.begun, absent: rn.s.tryInterval + 2*lineSlice, turn: make(chan struct{}, 1)}
	}
	o := rn.s.offer(v)
	rn.s.table.line.join(rn.ticket, queueKey{rn.s, int64(rn.s.MaxSessions), o.pool}, o, now)
	rn.s.tellFull(v.present)
	return true
}

// leaveLine takes the run's ticket out of the line.
func (rn *run) leaveLine() {
	if rn.ticket != nil {
		rn.s.table.line.leave(rn.ticket, rn.s.table.now())
	}
}
