// This file holds what one session is doing, when it ends, and when it gives its slot away.

package sessions

import (
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
)

// State is what a session is doing.
type State uint8

// The states, in the order of a session's life. Waiting and unused last as long as the server keeps a session without a socket.
const (
	Ended     State = iota
	Building        // page requested, not answered yet
	Waiting         // page served, or its visitor gone, and no socket yet
	Connected       // one socket or more
	Unused          // last socket closed, the server still keeps the session
	numStates
)

// session is one Bokeh document on one server. Where an id has moved, or is used on two sites,
// there is one for each upstream.
type session struct {
	key  Key
	next *session // the same id at another upstream
	at   *Upstream
	wakeup

	pages      int32 // being built
	served     int32 // answered, with their last byte not sent yet
	sockets    int32
	hadOne     bool          // it has had a socket
	made       bool          // its server has said that it has made it; where the visitor has gone it may have done so and not have said it
	superseded bool          // counted elsewhere from now on: under the id of its socket, or where it moved
	previous   State         // that it is counted in
	startedAt  time.Duration // on the table's clock
	app        App           // that it belongs to
	owner      any           // through which it was asked for last
}

// wakeup is when something of a session is over that no request ends, on the table's clock.
type wakeup struct {
	until     time.Duration // when the session ends if no socket comes; 0 if it does not wait
	slotUntil time.Duration // until when it holds a slot if no socket comes; 0 if that is not the question; slotless
	timer     *time.Timer   // pending while one of them is above 0
	due       time.Duration // when the timer is
}

// slotless is the slotUntil of a session whose time for a slot is over. It lasts until the session has a socket or ends.
const slotless time.Duration = -1

// state says what s is doing.
func (s *session) state() State {
	switch {
	case s.sockets > 0:
		return Connected
	case s.pages > 0:
		return Building
	case s.until == 0 && (s.served == 0 || s.superseded):
		return Ended
	case s.hadOne:
		return Unused
	}
	return Waiting
}

// change finds the session with key k at u, or makes one, and lets f change it.
func (t *Table) change(k Key, u *Upstream, by Terms, f func(*session)) *session {
	sh := t.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	first := sh.sessions[k]
	s := first
	for s != nil && s.at.Name != u.Name {
		s = s.next
	}
	switch {
	case s == nil:
		s = &session{key: k, at: t.retain(u), app: by.App}
		sh.push(s)
	case s != first:
		sh.remove(s)
		sh.push(s)
	}
	s.owner = by.Owner
	f(s)
	t.applyState(sh, s)
	return s
}

// update lets f change s.
func (t *Table) update(s *session, f func(*session)) {
	sh := t.shard(s.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f(s)
	t.applyState(sh, s)
}

// applyState brings everything in line with a change of s: the counts, and the table if it has ended.
// The shard is locked.
func (t *Table) applyState(sh *shard, s *session) {
	now := s.state()
	if now == s.previous {
		return
	}
	s.at.inState[s.previous].Add(-1)
	s.at.inState[now].Add(1)
	if s.previous == Ended {
		s.startedAt = t.Now()
		s.at.Slots.Sessions.Add(1)
		s.at.started.Add(1)
	}
	switch {
	case now == Building:
		s.at.History.Busy.Begin(t.Now())
	case s.previous == Building:
		s.at.History.Busy.End(t.Now())
	}
	s.previous = now
	if now == Ended {
		s.takeSlot() // which is free now
		s.at.Slots.Sessions.Add(-1)
		s.at.History.Ended.add(t.Now())
		t.Waiting.Freed(&s.at.Slots, t.Now())
		sh.remove(s)
		t.Release(s.at)
	}
}

// onTick returns the first tick that is not before a moment on the table's clock, which begins with 1.
func onTick(moment time.Duration) time.Duration {
	return (moment + ExpiryTick - 2).Truncate(ExpiryTick) + 1
}

// keep lets s live for d from now, and up to a tick more, though it has no socket. The shard is locked.
func (t *Table) keep(s *session, d time.Duration) {
	if s.at.Drain.IsClosed() {
		return
	}
	s.until = max(s.until, onTick(t.Now()+d))
	t.arm(s)
}

// arm sees to it that s wakes in time. The shard is locked.
func (t *Table) arm(s *session) {
	next := s.until
	if s.slotUntil > 0 && (next == 0 || s.slotUntil < next) {
		next = s.slotUntil
	}
	switch {
	case next == 0:
	case s.timer == nil:
		s.due = next
		s.timer = time.AfterFunc(next-t.Now(), func() { t.update(s, t.wake) })
	case next < s.due:
		s.due = next
		s.timer.Reset(next - t.Now())
	}
}

// wake ends what is over of s. The shard is locked.
func (t *Table) wake(s *session) {
	s.timer = nil
	now := t.Now()
	if s.slotUntil > 0 && s.slotUntil <= now {
		s.loseSlot(now, t.Waiting)
	}
	if s.until != 0 && s.until <= now {
		t.expire(s)
	}
	t.arm(s)
}

// expire ends the waiting of s. The shard is locked.
func (t *Table) expire(s *session) {
	s.until = 0
	if s.state() != Ended {
		return
	}
	s.at.Drain.Remember(s.key)
	if s.previous == Waiting && s.made {
		s.at.History.Silent.Add(1)
	}
}

// isGuess says whether nobody has ever had the session, and nobody waits for it: its server may have made it. The shard is locked.
func (s *session) isGuess() bool { return !s.made && s.pages == 0 && s.served == 0 && s.sockets == 0 }

// loseSlot lets others have the slot of a session whose socket has not come, or will not. The shard is locked.
func (s *session) loseSlot(now time.Duration, q *admission.Queue) {
	if s.slotUntil == slotless {
		return
	}
	s.slotUntil = 0
	if s.hadOne || s.state() == Ended {
		return
	}
	s.slotUntil = slotless
	s.at.Slots.Slotless.Add(1)
	q.Freed(&s.at.Slots, now)
}

// takeSlot gives the session a slot, whether there is one or not. The shard is locked.
func (s *session) takeSlot() {
	if s.slotUntil == slotless {
		s.at.Slots.Slotless.Add(-1)
	}
	s.slotUntil = 0
}

// supersede ends the waiting of the session with key k at u, which is counted under the id of its
// socket from now on, and says whether there was one.
func (t *Table) supersede(k Key, u *Upstream) bool {
	return t.leave(k, u, func(s *session) bool { return s.sockets == 0 })
}

// Move ends what is counted of the session with key k at u, which has moved: what is still open
// there counts until it closes.
func (t *Table) Move(k Key, u *Upstream) {
	t.leave(k, u, func(*session) bool { return true })
}

// Abandon ends the waiting of all sessions at u, to which nothing goes any more, for as long as that
// is so: what is open there counts until it closes.
func (t *Table) Abandon(u *Upstream) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for _, s := range sh.sessions {
			for ; s != nil; s = s.next {
				if s.at == u {
					t.stopWaiting(sh, s)
				}
			}
		}
		sh.mu.Unlock()
	}
}

// leave ends the waiting of the session with key k at u, if it may, and says whether it did.
func (t *Table) leave(k Key, u *Upstream, may func(*session) bool) bool {
	sh := t.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for s := sh.sessions[k]; s != nil; s = s.next {
		if s.at == u && may(s) {
			t.quit(sh, s)
			return true
		}
	}
	return false
}

// quit ends the waiting of s, now and when what is open of it closes. The shard is locked.
func (t *Table) quit(sh *shard, s *session) {
	s.superseded = true
	t.stopWaiting(sh, s)
}

// stopWaiting ends the waiting of s. The shard is locked.
func (t *Table) stopWaiting(sh *shard, s *session) {
	s.until, s.slotUntil = 0, min(s.slotUntil, 0) // slotless stays
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	t.applyState(sh, s)
}
