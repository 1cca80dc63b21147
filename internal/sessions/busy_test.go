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

// A server is busy while it builds a page, and no longer: not while that is sent, nor while its websocket is open.
func TestPagesKeepBusy(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	want := func(what string, under int) {
		t.Helper()
		if got := u.History.Busy.under; got != under {
			t.Errorf("%s: %d are under way, want %d", what, got, under)
		}
	}
	page := tb.BeginPage(tb.Key("id"), u, testTerms)
	want("it is asked for", 1)
	other := tb.BeginPage(tb.Key("other"), u, testTerms)
	want("and another one", 2)
	page.PageBuilt()
	want("it is built", 1)
	page.PageEnded(true, true)
	socket := tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms)
	socket.SocketOpened()
	want("its websocket is open", 1)
	other.PageEnded(false, false)
	want("the other one has failed", 0)
	socket.SocketEnded(true)
	want("all is closed", 0)
}
