// This file tests how long answers on websockets are found to take.

package sessions

import (
	"maps"
	"testing"
	"time"
)

func TestReplies(t *testing.T) {
	r := new(Replies)
	for _, took := range []time.Duration{0, 5 * time.Millisecond, 5*time.Millisecond + 1, time.Second, 59 * time.Second, time.Minute, time.Minute + 1, time.Hour} {
		r.Add(took)
	}
	count, sum, within := r.Count()
	want := map[float64]uint64{.005: 2, .01: 3, .025: 3, .05: 3, .1: 3, .25: 3, .5: 3, 1: 4, 2.5: 4, 5: 4, 10: 4, 20: 4, 60: 6}
	if count != 8 || !maps.Equal(within, want) {
		t.Errorf("of %d answers these took no longer than so many seconds: %v, want %v", count, within, want)
	}
	if all := (3*time.Minute + time.Hour + 10*time.Millisecond + 2).Seconds(); sum < all-1e-6 || sum > all+1e-6 {
		t.Errorf("they took %v s together, want %v", sum, all)
	}
}
