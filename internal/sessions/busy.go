// This file holds for how much of the last minute an upstream had something to do.

package sessions

import (
	"sync"
	"time"
)

const (
	busySlots = 12 // of busySlot each
	busySlot  = 5 * time.Second
)

// Busy is for how long an upstream has had something under way: a page that it builds, or something on a websocket that it is to answer. A
// Bokeh server does all of that on one thread. All methods may be called by any goroutine, with times on the table's clock.
type Busy struct {
	mu    sync.Mutex // guards all below
	under int        // what is under way
	first time.Duration
	until time.Duration            // all before it is accounted for
	slots [busySlots]time.Duration // how long something was under way; a ring
}

// Begin takes note that something is under way.
func (b *Busy) Begin(now time.Duration) { b.change(+1, now) }

// End takes note that one of that is not any more.
func (b *Busy) End(now time.Duration) { b.change(-1, now) }

func (b *Busy) change(by int, now time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.account(now)
	b.under += by
}

// Share returns the share of the last minute for which something was under way, or of the time since there first was, if that is less.
func (b *Busy) Share(now time.Duration) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.account(now)
	known := min((busySlots-1)*busySlot+(now-1)%busySlot+1, now-b.first) // the newest slot is as far as it has come
	if known <= 0 {
		return 0
	}
	var sum time.Duration
	for _, held := range b.slots {
		sum += held
	}
	return min(float64(sum)/float64(known), 1)
}

// account puts what has passed until now into its slots. b.mu is locked.
func (b *Busy) account(now time.Duration) {
	if b.until == 0 {
		b.first, b.until = now, now
	}
	b.until = max(b.until, (now - busySlots*busySlot).Truncate(busySlot))
	for b.until < now {
		held := &b.slots[b.until/busySlot%busySlots]
		if b.until%busySlot == 0 {
			*held = 0 // what was there is over a minute ago
		}
		next := min(now, b.until.Truncate(busySlot)+busySlot)
		if b.under > 0 {
			*held += next - b.until
		}
		b.until = next
	}
}
