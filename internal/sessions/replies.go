// This file holds how long an upstream has taken to answer what was said on its websockets.

package sessions

import (
	"sync/atomic"
	"time"
)

// ReplyBounds are the bounds of the buckets in which replies are counted, in seconds: from what a click takes on an idle server to what makes
// people leave.
var ReplyBounds = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 60}

// Replies are how long the answers have taken that an upstream has given on its websockets. All methods may be called by any goroutine.
type Replies struct {
	in  [len(ReplyBounds) + 1]atomic.Uint64 // by bucket, the last one of all that took longer
	sum atomic.Int64                        // nanoseconds
}

// Add takes note of an answer.
func (r *Replies) Add(took time.Duration) {
	i := 0
	for i < len(ReplyBounds) && took.Seconds() > ReplyBounds[i] {
		i++
	}
	r.in[i].Add(1)
	r.sum.Add(int64(took))
}

// Count returns how many answers there were, how long they took together in seconds, and how many took no longer than each of the bounds.
func (r *Replies) Count() (count uint64, sum float64, within map[float64]uint64) {
	within = make(map[float64]uint64)
	for i, bound := range ReplyBounds {
		count += r.in[i].Load()
		within[bound] = count
	}
	count += r.in[len(ReplyBounds)].Load()
	return count, time.Duration(r.sum.Load()).Seconds(), within
}
