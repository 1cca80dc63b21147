// This file tests for how much of the last minute something is found to be under way.

package sessions

import (
	"math/rand/v2"
	"testing"
	"time"
)

// The share is that of a minute's seconds in which something was under way, counted one by one.
func TestBusyShare(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		b, now, under := new(Busy), time.Duration(1+rnd.IntN(1000))*time.Second, 0
		first := now
		held := make(map[time.Duration]bool) // by second
		for range 100 {
			switch {
			case under > 0 && rnd.IntN(2) > 0:
				b.End(now)
				under--
			case rnd.IntN(3) > 0:
				b.Begin(now)
				under++
			default:
				b.Share(now) // who asks changes nothing
			}
			for range rnd.IntN([]int{3, 20, 200}[rnd.IntN(3)]) {
				held[now] = under > 0
				now += time.Second
			}
			from := now - now%busySlot - (busySlots-1)*busySlot
			if now%busySlot == 0 {
				from = now - busySlots*busySlot
			}
			from = max(from, first)
			busy := 0
			for at := from; at < now; at += time.Second {
				if held[at] {
					busy++
				}
			}
			want := 0.0
			if now > from {
				want = float64(busy) / (now - from).Seconds()
			}
			if got := b.Share(now); got < want-1e-9 || got > want+1e-9 {
				t.Fatalf("seed %d: at %v the share is %v, want %v", seed, now, got, want)
			}
		}
	}
}

func TestBusyBeginsAtItsFirst(t *testing.T) {
	b := new(Busy)
	if got := b.Share(time.Hour); got != 0 {
		t.Errorf("of what never had anything to do the share is %v", got)
	}
	b = new(Busy)
	b.Begin(time.Hour)
	if got := b.Share(time.Hour + 2*time.Second); got != 1 {
		t.Errorf("of what has had something to do ever since the share is %v", got)
	}
	b.End(time.Hour + 2*time.Second)
	if got := b.Share(time.Hour + 4*time.Second); got != .5 {
		t.Errorf("of what had for half of its time the share is %v", got)
	}
	if got := b.Share(2 * time.Hour); got != 0 {
		t.Errorf("an hour later the share is %v", got)
	}
	if got := b.Share(3 * time.Hour); got != 0 {
		t.Errorf("two hours later the share is %v", got)
	}
}
