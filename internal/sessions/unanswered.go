// This file holds what an upstream has been asked and has not answered yet, and for how long it has been stalled.

package sessions

import (
	"sync"
	"sync/atomic"
	"time"
)

// unprovenWeight is what an upstream weighs more that has not answered lately: as much as all that a browser asks for at a time.
const unprovenWeight = 6

// Unanswered are the requests that an upstream has been asked and has not answered, in the order of asking.
//
// A Bokeh server answers on one thread. While that is held, by a callback or by a page, nothing is
// answered. So an upstream is stalled since the last answer came, or since it was asked, if that is later. What is
// answered later than something that was asked after it is slow by itself, while the thread is free: it is
// overtaken, and counts no more.
type Unanswered struct {
	n     atomic.Int64 // how many there are
	since atomic.Int64 // since when the upstream is stalled, on the table's clock; 0 if it owes no answer
	last  atomic.Int64 // when the last answer came, on the table's clock
	until atomic.Int64 // until when that is believed though nobody waits any more, on the table's clock

	mu             sync.Mutex // guards all below, and the change of all above
	oldest, newest *Question
}

// Question is a request that an upstream has been asked.
type Question struct {
	before, after *Question
	waits         bool // is among the unanswered
}

// Ask takes note that the upstream is asked q.
func (u *Unanswered) Ask(q *Question, now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	q.before, q.waits = u.newest, true
	if u.newest == nil {
		u.oldest = q
	} else {
		u.newest.after = q
	}
	u.newest = q
	u.n.Add(1)
	if u.since.Load() == 0 {
		u.since.Store(int64(now))
	}
}

// Answered takes note of an answer to q, by which all that was asked before q is overtaken.
func (u *Unanswered) Answered(q *Question, now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for q.waits {
		u.remove(u.oldest)
	}
	u.last.Store(int64(now))
	if u.oldest == nil {
		now = 0
	}
	u.since.Store(int64(now))
}

// GivenUp takes note that nobody waits for an answer to q any more. That does not free the thread: if the upstream
// was stalled, it is believed to be for as long again.
func (u *Unanswered) GivenUp(q *Question, now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !q.waits {
		return
	}
	u.remove(q)
	switch stalled := now - time.Duration(u.since.Load()); {
	case stalled >= StalledAfter:
		u.until.Store(int64(now + min(stalled, longestDoubt)))
	case u.oldest == nil:
		u.since.Store(0)
	}
}

// remove takes q out. u.mu is locked.
func (u *Unanswered) remove(q *Question) {
	if q.before == nil {
		u.oldest = q.after
	} else {
		q.before.after = q.after
	}
	if q.after == nil {
		u.newest = q.before
	} else {
		q.after.before = q.before
	}
	*q = Question{}
	u.n.Add(-1)
}

// Stall returns for how long the upstream has answered nothing that it was asked.
func (u *Unanswered) Stall(now time.Duration) time.Duration {
	since := time.Duration(u.since.Load())
	if since == 0 || u.n.Load() == 0 && now >= time.Duration(u.until.Load()) {
		return 0
	}
	return max(now-since, 0)
}

// Weight weighs what a shared request would wait for, where the upstream is not known to be stalled.
func (u *Unanswered) Weight(now time.Duration) int64 {
	if now-time.Duration(u.last.Load()) > provenFor {
		return u.n.Load() + unprovenWeight
	}
	return u.n.Load()
}
