// This file holds what one websocket waits for.

package sessions

import (
	"sync"
	"time"
)

// Talk is what is said on one websocket, as far as the server is to answer it: that keeps the server busy, and how long it takes is measured.
// All methods may be called by any goroutine, with times on the table's clock.
type Talk struct {
	at *Upstream

	mu    sync.Mutex       // guards all below
	asked [4]time.Duration // when what is not answered was asked, the oldest first
	known int              // of these
	more  int              // was asked after them, when is not kept
	over  bool             // nothing counts any more
}

// NewTalk returns that of a websocket at an upstream, on which nothing has been said.
func NewTalk(at *Upstream) *Talk { return &Talk{at: at} }

// Asked takes note of what is to be answered.
func (t *Talk) Asked(now time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	t.at.History.Busy.Begin(now)
	if t.known == len(t.asked) || t.more > 0 {
		t.more++
		return
	}
	t.asked[t.known] = now
	t.known++
}

// Answered takes note that the oldest of it is answered. What nobody asked for changes nothing.
func (t *Talk) Answered(now time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.known > 0:
		took := now - t.asked[0]
		t.at.History.Replies.Add(took)
		t.at.History.Waits.Add(took, now)
		t.known--
		copy(t.asked[:], t.asked[1:])
	case t.more > 0:
		t.more--
	default:
		return
	}
	t.at.History.Busy.End(now)
}

// End takes note that the websocket is closed, or cannot be read any more: what has no answer is not waited for. More than once does no harm,
// nor does it for no talk.
func (t *Talk) End(now time.Duration) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for range t.known + t.more {
		t.at.History.Busy.End(now)
	}
	t.known, t.more, t.over = 0, 0, true
}
