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

// What is asked is answered in the order in which it was asked; of much at once the first is measured, and none is taken for another one.
func TestTalk(t *testing.T) {
	talk, now := new(Talk), time.Hour
	ask := func(n int) {
		for range n {
			talk.Asked(now)
			now += time.Second
		}
	}
	answered := func(want ...time.Duration) {
		t.Helper()
		for i, want := range want {
			took, known := talk.Answered(now)
			if known != (want > 0) || took != want {
				t.Errorf("answer %d took %v, known %v; want %v", i, took, known, want)
			}
		}
	}
	answered(0) // nothing was asked
	ask(2)
	answered(2*time.Second, time.Second, 0)
	ask(5)
	answered(5 * time.Second)
	ask(1) // after one that is not kept, so it is not kept either
	answered(5*time.Second, 4*time.Second, 3*time.Second, 0, 0)
	ask(1)
	answered(time.Second, 0)
}
