// This file holds what an upstream has been asked and has not answered yet, and for how long it has been stalled.

package caddybokeh

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// stalledAfter is how long an upstream may answer nothing before it counts as stalled. Files take a few
	// milliseconds, most pages less than this.
	stalledAfter = 250 * time.Millisecond

	// longestDoubt bounds how long an upstream counts as stalled though nobody waits for it any more.
	longestDoubt = 10 * time.Second

	// provenFor is how long an answer shows that an upstream answers. One that has given none for so long may be busy with
	// what came by a websocket, which nobody sees here. That weighs as much as all that a browser asks for at a time.
	provenFor      = time.Second
	unprovenWeight = 6
)

// unanswered are the requests that an upstream has been asked and has not answered, in the order of asking.
//
// A Bokeh server answers on one thread. While that is held, by a callback or by a page, nothing is
// answered. So an upstream is stalled since the last answer came, or since it was asked, if that is later. What is
// answered later than something that was asked after it is slow by itself, while the thread is free: it is
// overtaken, and counts no more.
type unanswered struct {
	n     atomic.Int64 // how many there are
	since atomic.Int64 // since when the upstream is stalled, on the table's clock; 0 if it owes no answer
	last  atomic.Int64 // when the last answer came, on the table's clock
	until atomic.Int64 // until when that is believed though nobody waits any more, on the table's clock

	mu             sync.Mutex // guards all below, and the change of all above
	oldest, newest *question
}

// question is a request that an upstream has been asked.
type question struct {
	before, after *question
	waits         bool // is among the unanswered
}

// ask takes note that the upstream is asked q.
func (u *unanswered) ask(q *question, now time.Duration) {
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

// answered takes note of an answer to q, by which all that was asked before q is overtaken.
func (u *unanswered) answered(q *question, now time.Duration) {
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

// givenUp takes note that nobody waits for an answer to q any more. That does not free the thread: if the upstream
// was stalled, it is believed to be for as long again.
func (u *unanswered) givenUp(q *question, now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !q.waits {
		return
	}
	u.remove(q)
	switch stalled := now - time.Duration(u.since.Load()); {
	case stalled >= stalledAfter:
		u.until.Store(int64(now + min(stalled, longestDoubt)))
	case u.oldest == nil:
		u.since.Store(0)
	}
}

// remove takes q out. u.mu is locked.
func (u *unanswered) remove(q *question) {
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
	*q = question{}
	u.n.Add(-1)
}

// stall returns for how long the upstream has answered nothing that it was asked.
func (u *unanswered) stall(now time.Duration) time.Duration {
	since := time.Duration(u.since.Load())
	if since == 0 || u.n.Load() == 0 && now >= time.Duration(u.until.Load()) {
		return 0
	}
	return max(now-since, 0)
}

// weight weighs what a shared request would wait for, where the upstream is not known to be stalled.
func (u *unanswered) weight(now time.Duration) int64 {
	if now-time.Duration(u.last.Load()) > provenFor {
		return u.n.Load() + unprovenWeight
	}
	return u.n.Load()
}
