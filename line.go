// This file holds the line in which visits wait while every upstream has all the sessions that it may have.

package caddybokeh

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// lineSlice is how long a visit waits before it looks again: an upstream may have joined, become
// healthy or been taken back meanwhile, of which the line does not hear.
const lineSlice = time.Second

// line is the visits that wait for a place, the oldest first. There is one in the process, for a
// reload does not end the wait, and policies may share upstreams.
type line struct {
	length atomic.Int64 // so that where nobody waits no lock is taken

	mu      sync.Mutex // guards all below, and what changes in the tickets
	tickets []*ticket
}

// ticket is the place of one visit in the line. It dies with its request, or when its visit is not seen
// for a while: a reverse proxy that has given up does not say so, and may be busy with the error page.
type ticket struct {
	max    int64         // sessions that the visit's policy allows an upstream
	since  time.Duration // when its visit came
	absent time.Duration // how long its visit may be away: the proxy pauses between two tries
	turn   chan struct{}

	pool []*upstream
	seen time.Duration
}

// join puts a ticket in the line, unless it is there. One that was in it before, and found a server that
// refused the connection, keeps its place.
func (l *line) join(tk *ticket, pool []*upstream, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tk.pool, tk.seen = pool, now
	if slices.Contains(l.tickets, tk) {
		return
	}
	i, _ := slices.BinarySearchFunc(l.tickets, tk, func(a, b *ticket) int { return cmp.Or(cmp.Compare(a.since, b.since), -1) })
	l.tickets = slices.Insert(l.tickets, i, tk)
	l.length.Store(int64(len(l.tickets)))
}

// leave takes a ticket out of the line. A place that it did not take is the next one's.
func (l *line) leave(tk *ticket, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.tickets, tk)
	if i < 0 {
		return
	}
	l.tickets = slices.Delete(l.tickets, i, i+1)
	l.length.Store(int64(len(l.tickets)))
	for _, u := range tk.pool {
		l.call(u, now)
	}
}

// forget takes out those who have not been seen for too long. l.mu is locked.
func (l *line) forget(now time.Duration) {
	l.tickets = slices.DeleteFunc(l.tickets, func(tk *ticket) bool { return now-tk.seen > tk.absent })
	l.length.Store(int64(len(l.tickets)))
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
	taken := u.sessions.Load()
	for _, tk := range l.tickets {
		if taken >= tk.max || !slices.Contains(tk.pool, u) {
			continue
		}
		taken++ // by this one, if it comes
		select {
		case tk.turn <- struct{}{}:
		default: // it has been called already
		}
	}
}

// hasPlace says whether a visit may begin a session at u, of which limit are allowed: there is a place
// for it and for all who came before it. The ticket is nil for who has just come.
func (l *line) hasPlace(tk *ticket, u *upstream, limit int64, now time.Duration) bool {
	taken := u.sessions.Load()
	if taken >= limit || l.length.Load() == 0 {
		return taken < limit
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(now)
	for _, before := range l.tickets {
		if before == tk {
			break
		}
		if taken < before.max && slices.Contains(before.pool, u) {
			taken++
		}
	}
	if taken >= limit && tk == nil {
		l.call(u, now) // they may not know that u takes sessions again
	}
	return taken < limit
}

// isCapped says whether max_sessions holds for a run: it does for new sessions alone, and not for those
// that somebody else has named, which every node sends to the same upstream.
func (rn *run) isCapped() bool {
	return rn.s.MaxSessions > 0 && rn.kind == pageRequest && (rn.tier || rn.id == "" && rn.stamp == "")
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

// avoidsAll says whether this run's new session has nowhere to go but where it may fail.
func (rn *run) avoidsAll(v *view) bool {
	return v.allThatTake(func(m *member) bool { return rn.avoids(m, v.now) })
}

// isOver says whether this run's session is one too many where it is counted. Two who come at once may
// both give way; the line sees to who takes the place.
func (rn *run) isOver() bool {
	s := rn.attempt.load.s // nil if the client has gone
	return rn.isCapped() && s != nil && s.at.sessions.Load() > int64(rn.s.MaxSessions)
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
	for i := range v.present {
		if rn.takes(v, i) {
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
		rn.ticket = &ticket{max: int64(rn.s.MaxSessions), since: rn.begun, absent: rn.s.tryInterval + 2*lineSlice, turn: make(chan struct{}, 1)}
	}
	var pool []*upstream
	for i, m := range v.members[:v.present] {
		if v.available(i) { // or the places there would be kept from others for nothing
			pool = append(pool, m.upstream)
		}
	}
	rn.s.table.line.join(rn.ticket, pool, now)
	rn.s.tellFull(v.present)
	return true
}

// leaveLine takes the run's ticket out of the line.
func (rn *run) leaveLine() {
	if rn.ticket != nil {
		rn.s.table.line.leave(rn.ticket, rn.s.table.now())
	}
}
