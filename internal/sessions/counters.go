// This file holds counters by names, and of the last five minutes.

package sessions

import (
	"sync"
	"sync/atomic"
	"time"
)

// Counters count by a fixed set of names, which is not changed.
type Counters map[string]*atomic.Int64

// NewCounters returns counters of the names, all of which are 0.
func NewCounters(names ...string) Counters {
	c := make(Counters)
	for _, name := range names {
		c[name] = new(atomic.Int64)
	}
	return c
}

// Add counts one more. The name is one of the set.
func (c Counters) Add(name string) { c[name].Add(1) }

const recentSlots = 30 // of recentSlot each

// Recent counts what happened in the last five minutes, ten seconds sharp.
type Recent struct {
	mu    sync.Mutex // guards all below
	slots [recentSlots]int64
	last  int64 // number of the newest slot
}

// add counts one at the given time.
func (r *Recent) add(now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moveOn(now)
	r.slots[r.last%recentSlots]++
}

// Count returns how many there were.
func (r *Recent) Count(now time.Duration) (n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moveOn(now)
	for _, slot := range r.slots {
		n += slot
	}
	return n
}

// moveOn empties the slots whose time has come again. r.mu is locked.
func (r *Recent) moveOn(now time.Duration) {
	r.last = moveOn(r.slots[:], r.last, int64(now/recentSlot))
}

// moveOn empties those slots of a ring that come after the last one, up to the newest, and returns which is the last one then.
func moveOn[T any](slots []T, last, newest int64) int64 {
	n := int64(len(slots))
	for i := max(last+1, newest-n+1); i <= newest; i++ {
		clear(slots[i%n : i%n+1])
	}
	return max(last, newest)
}
