// This file holds how long people have waited for answers on websockets lately.

package sessions

import (
	"math"
	"sync"
	"time"
)

const (
	waitSlots   = 5 // of waitSlot each
	waitSlot    = time.Minute
	waitSteps   = 20 // of the measure in which a time doubles, so that what is told is wrong by 2 % at most
	waitBuckets = 17 * waitSteps
	leastWait   = time.Millisecond
)

// Waits are the times that answers have taken in the last five minutes, a minute sharp. All methods may be called by any goroutine, with
// times on the table's clock.
type Waits struct {
	mu    sync.Mutex                      // guards all below
	slots [waitSlots]*[waitBuckets]uint32 // by minute, a ring; nil where there was none
	last  int64                           // number of the newest slot
}

// Add takes note of an answer that took a time.
func (w *Waits) Add(took, now time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.moveOn(now)
	slot := &w.slots[w.last%waitSlots]
	if *slot == nil {
		*slot = new([waitBuckets]uint32)
	}
	(*slot)[waitBucket(took)]++
}

// Quantiles returns the times within which the given shares of the answers came, and 0 for each if there was none.
func (w *Waits) Quantiles(now time.Duration, shares ...float64) []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.moveOn(now)
	var sums [waitBuckets]uint64
	count := uint64(0)
	for _, slot := range w.slots {
		if slot == nil {
			continue
		}
		for i, n := range slot {
			sums[i] += uint64(n)
			count += uint64(n)
		}
	}
	found := make([]time.Duration, len(shares))
	if count == 0 {
		return found
	}
	for i, share := range shares {
		rank := max(uint64(math.Ceil(share*float64(count))), 1)
		for b, n := range sums {
			if n >= rank {
				found[i] = waitOf(b)
				break
			}
			rank -= n
		}
	}
	return found
}

// moveOn empties the slots whose time has come again. w.mu is locked.
func (w *Waits) moveOn(now time.Duration) {
	w.last = moveOn(w.slots[:], w.last, int64(now/waitSlot))
}

// waitBucket returns the bucket of a time, each of which is a share larger than the one before.
func waitBucket(took time.Duration) int {
	if took <= leastWait {
		return 0
	}
	steps := math.Log2(float64(took)/float64(leastWait)) * waitSteps
	return int(min(math.Ceil(steps), waitBuckets-1))
}

// waitOf returns the time in the midst of a bucket.
func waitOf(bucket int) time.Duration {
	return time.Duration(float64(leastWait) * math.Exp2((float64(bucket)-.5)/waitSteps))
}
