// This file tests the table of live sessions.

package sessions

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
)

// newTestTable returns a table whose upstreams have one name everywhere.
func newTestTable() *Table { return NewTable(func(name string) string { return name }, Labels{}) }

func TestVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		k := tb.Key("id")

		page := tb.BeginPage(k, u, testTerms)
		wantTally(t, "page requested", u, tally{1, 0, 0, 0})
		page.PageBuilt()
		wantTally(t, "first byte", u, tally{0, 1, 0, 0})
		time.Sleep(time.Hour) // a slow reader keeps its session waiting
		wantTally(t, "slow reader", u, tally{0, 1, 0, 0})
		page.PageEnded(true, true)
		wantTally(t, "page served", u, tally{0, 1, 0, 0})

		time.Sleep(20 * time.Second)
		first := tb.BeginSocket(k, k, u, testTerms)
		wantTally(t, "socket", u, tally{0, 0, 1, 0})
		second := tb.BeginSocket(k, k, u, testTerms)
		first.SocketEnded(true)
		time.Sleep(time.Hour)
		wantTally(t, "one of two sockets closed", u, tally{0, 0, 1, 0})
		second.SocketEnded(true)
		wantTally(t, "last socket closed", u, tally{0, 0, 0, 1})
		time.Sleep(testLifetime - time.Millisecond)
		wantTally(t, "lifetime nearly over", u, tally{0, 0, 0, 1})
		time.Sleep(2 * time.Millisecond)
		wantTally(t, "lifetime over", u, tally{})
		wantEmpty(t, tb, 1)
		tb.Release(u)
		wantEmpty(t, tb, 0)
	})
}

func TestSocketNeverCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		page := tb.BeginPage(tb.Key("id"), u, testTerms)
		page.PageBuilt()
		page.PageEnded(true, true)
		time.Sleep(testLifetime - time.Second)
		wantTally(t, "before", u, tally{0, 1, 0, 0})
		time.Sleep(3 * time.Second)
		wantTally(t, "after", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

func TestPageWithoutSessionFreesAtOnce(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	for name, built := range map[string]bool{"redirect or error": true, "aborted before the first byte": false} {
		page := tb.BeginPage(tb.Key("id"), u, testTerms)
		if built {
			page.PageBuilt()
		}
		page.PageEnded(built, false)
		wantTally(t, name, u, tally{})
	}
	wantEmpty(t, tb, 1)
}

// An error for a second page of a session says nothing about the first.
func TestFailedPageLeavesTheSessionItsTime(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	k := tb.Key("id")
	one := tb.BeginPage(k, u, testTerms)
	one.PageBuilt()
	one.PageEnded(true, true)
	two := tb.BeginPage(k, u, testTerms)
	two.PageEnded(false, false)
	wantTally(t, "second page failed", u, tally{0, 1, 0, 0})
}

func TestFailedHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		k := tb.Key("id")
		tb.BeginSocket(k, k, u, testTerms).SocketEnded(false)
		wantTally(t, "of an unknown session", u, tally{})

		page := tb.BeginPage(k, u, testTerms)
		page.PageBuilt()
		page.PageEnded(true, true)
		tb.BeginSocket(k, k, u, testTerms).SocketEnded(false)
		wantTally(t, "of a waiting session", u, tally{0, 1, 0, 0})
		time.Sleep(testLifetime + 2*time.Second)
		wantTally(t, "and its time is over", u, tally{})
	})
}

// Where the server makes the id, the page is known by its stamp and the socket by its id. They
// are one session.
func TestSocketTakesOverItsPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		stamp, id := tb.Key("stamp"), tb.Key("id")
		page := tb.BeginPage(stamp, u, testTerms)
		page.PageBuilt()
		ws := tb.BeginSocket(id, stamp, u, testTerms)
		wantTally(t, "socket before the page's last byte", u, tally{0, 0, 1, 0})
		page.PageEnded(true, true)
		wantTally(t, "page served", u, tally{0, 0, 1, 0})
		ws.SocketEnded(true)
		wantTally(t, "socket closed", u, tally{0, 0, 0, 1})
		again := tb.BeginSocket(id, stamp, u, testTerms)
		wantTally(t, "reconnected", u, tally{0, 0, 1, 0})
		again.SocketEnded(true)
		time.Sleep(testLifetime + 2*time.Second)
		wantEmpty(t, tb, 1)
	})
}

// A session that was taken over while its page was being built ends all the same when it is used by its own id.
func TestSocketOfASessionTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		stamp, id := tb.Key("stamp"), tb.Key("id")
		first := tb.BeginPage(stamp, u, testTerms)
		first.PageBuilt()
		first.PageEnded(true, true)
		second := tb.BeginPage(stamp, u, testTerms)
		tb.BeginSocket(id, stamp, u, testTerms).SocketEnded(false)
		tb.BeginSocket(stamp, stamp, u, testTerms).SocketEnded(true)
		second.PageEnded(false, false)
		time.Sleep(2 * testLifetime)
		wantTally(t, "in the end", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

// A session that has moved is not counted where it was, but for what is still open there.
func TestMovedSession(t *testing.T) {
	tb := newTestTable()
	a, b := tb.Hold("a:80"), tb.Hold("b:80")
	k := tb.Key("id")
	tb.BeginSocket(k, k, a, testTerms).SocketEnded(true)
	refused := tb.BeginSocket(k, k, a, testTerms)
	tb.Move(k, a)
	moved := tb.BeginSocket(k, k, b, testTerms)
	wantTally(t, "still dialling", a, tally{0, 0, 1, 0})
	refused.SocketEnded(false)
	wantTally(t, "left", a, tally{})
	wantTally(t, "moved", b, tally{0, 0, 1, 0})
	// It may come back.
	tb.Move(k, b)
	back := tb.BeginSocket(k, k, a, testTerms)
	moved.SocketEnded(true)
	wantTally(t, "left again", b, tally{})
	back.SocketEnded(true)
	wantTally(t, "back, and closed", a, tally{0, 0, 0, 1})
}

// If the handshake fails, the session that the page made still waits on the server.
func TestFailedHandshakeKeepsTheSessionTakenOver(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	stamp, id := tb.Key("stamp"), tb.Key("id")
	page := tb.BeginPage(stamp, u, testTerms)
	page.PageBuilt()
	page.PageEnded(true, true)
	tb.BeginSocket(id, stamp, u, testTerms).SocketEnded(false)
	wantTally(t, "handshake failed", u, tally{0, 1, 0, 0})
}

func TestOneIDAtTwoUpstreams(t *testing.T) {
	tb := newTestTable()
	a, b := tb.Hold("a:80"), tb.Hold("b:80")
	k := tb.Key("id")
	found := func() (names []string) {
		tb.Find(k, func(s Sighting) { names = append(names, s.At.Name) })
		return names
	}
	one := tb.BeginSocket(k, k, a, testTerms)
	two := tb.BeginSocket(k, k, b, testTerms)
	if got := fmt.Sprint(found()); got != "[b:80 a:80]" {
		t.Errorf("found %v, want the last used first", got)
	}
	again := tb.BeginSocket(k, k, a, testTerms)
	if got := fmt.Sprint(found()); got != "[a:80 b:80]" {
		t.Errorf("found %v after it moved back", got)
	}
	again.SocketEnded(false)
	one.SocketEnded(false)
	if got := fmt.Sprint(found()); got != "[b:80]" {
		t.Errorf("found %v after the first has ended", got)
	}
	two.SocketEnded(false)
	wantEmpty(t, tb, 2)
}

// An upstream that is removed from the config and added back while a session lives is the same.
func TestUpstreamRemovedAndAddedBack(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	k := tb.Key("id")
	ws := tb.BeginSocket(k, k, u, testTerms)
	tb.Release(u)
	if again := tb.Hold("a:80"); again != u {
		t.Fatal("an upstream with a live session was forgotten")
	}
	wantTally(t, "added back", u, tally{0, 0, 1, 0})
	tb.Release(u)
	ws.SocketEnded(false)
	wantEmpty(t, tb, 0)

	// A request that outlived its config still holds the old one.
	fresh := tb.Hold("a:80")
	late := tb.BeginSocket(k, k, u, testTerms)
	wantTally(t, "the late socket", fresh, tally{0, 0, 1, 0})
	late.SocketEnded(false)
	tb.Release(fresh)
	wantEmpty(t, tb, 0)
}

// TestTableAgainstModel does random things at once and compares with plain sums at the end.
func TestTableAgainstModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		names := []string{"a:80", "b:80", "c:80"}
		var ups []*Upstream
		for _, n := range names {
			ups = append(ups, tb.Hold(n))
		}
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(1, uint64(worker)))
				for range 400 {
					u := ups[rnd.IntN(len(ups))]
					id := tb.Key(fmt.Sprint(rnd.IntN(40)))
					page := tb.Key(fmt.Sprint("page", rnd.IntN(40)))
					switch rnd.IntN(3) {
					case 0:
						l := tb.BeginPage(page, u, testTerms)
						time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
						built := rnd.IntN(2) == 0
						if built {
							l.PageBuilt()
							time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
						}
						l.PageEnded(built, built && rnd.IntN(4) > 0)
					default:
						l := tb.BeginSocket(id, page, u, testTerms)
						time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
						l.SocketEnded(rnd.IntN(4) > 0)
					}
					for _, u := range ups {
						for s, n := range tallyOf(u) {
							if n < 0 {
								t.Errorf("count of state %d is %d", s, n)
							}
						}
					}
				}
			})
		}
		wg.Wait()
		synctest.Wait() // for the timers of this very moment
		// Nothing is going on, so what is counted must be what is there.
		seen := map[*Upstream]tally{}
		for i := range tb.shards {
			sh := &tb.shards[i]
			sh.mu.Lock()
			for _, s := range sh.sessions {
				for ; s != nil; s = s.next {
					n := seen[s.at]
					n[s.state()-Building]++
					seen[s.at] = n
				}
			}
			sh.mu.Unlock()
		}
		for _, u := range ups {
			wantTally(t, u.Name, u, seen[u])
		}
		time.Sleep(testLifetime + 2*time.Second)
		for _, u := range ups {
			wantTally(t, u.Name+" later", u, tally{})
			tb.Release(u)
		}
		wantEmpty(t, tb, 0)
	})
}

// A session that flaps lives on from its last socket, and leaves no trail behind.
func TestFlappingSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		k := tb.Key("id")
		for range 1000 {
			tb.BeginSocket(k, k, u, testTerms).SocketEnded(true)
			time.Sleep(10 * time.Millisecond)
		}
		wantTally(t, "flapping", u, tally{0, 0, 0, 1})
		time.Sleep(testLifetime - 11*time.Millisecond)
		wantTally(t, "lifetime nearly over", u, tally{0, 0, 0, 1})
		time.Sleep(ExpiryTick)
		wantTally(t, "lifetime over", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

// Sessions end together, none before its time and each at most a tick after it.
func TestSessionsEndOnTheBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		ends := make(map[time.Duration]bool)
		for i := range 50 {
			k := tb.Key(strconv.Itoa(i))
			tb.BeginSocket(k, k, u, testTerms).SocketEnded(true)
			until := onTick(tb.Now() + testLifetime)
			if late := until - tb.Now() - testLifetime; late < 0 || late >= ExpiryTick {
				t.Errorf("session %d ends %v after its time, want less than a tick", i, late)
			}
			ends[until] = true
			time.Sleep(7 * time.Millisecond)
		}
		if len(ends) > 3 {
			t.Errorf("50 sessions of 350 ms end at %d moments, want 3 at most", len(ends))
		}
		for _, end := range slices.Sorted(maps.Keys(ends)) {
			before := u.Slots.Sessions.Load()
			time.Sleep(end - tb.Now() - time.Nanosecond)
			if got := u.Slots.Sessions.Load(); got != before {
				t.Errorf("%d of %d sessions are left just before a tick", got, before)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if got := u.Slots.Sessions.Load(); got >= before {
				t.Errorf("still %d sessions at the tick", got)
			}
		}
		wantEmpty(t, tb, 1)
	})
}

func TestDialed(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"refused":              {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, true},
		"no route":             {syscall.EHOSTUNREACH, true},
		"timeout":              {os.ErrDeadlineExceeded, false},
		"no such socket file":  {fs.ErrNotExist, true},
		"no such name":         {&net.DNSError{IsNotFound: true}, true},
		"resolver fails":       {&net.DNSError{IsTemporary: true}, false},
		"client went away":     {fmt.Errorf("dial: %w", context.Canceled), false},
		"no ports of our own":  {os.NewSyscallError("connect", syscall.EADDRNOTAVAIL), false},
		"no files of our own":  {&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}, false},
		"no memory of our own": {syscall.ENOBUFS, false},
		"anything else":        {errors.New("broken"), true},
	} {
		u := new(Upstream)
		u.Dialed(0, time.Second, breaker.Backoff, tc.err)
		if got := u.IsFailing(2 * time.Second); got != tc.want {
			t.Errorf("%s: failing is %v, want %v", name, got, tc.want)
		}
		if u.IsFailing(time.Second + DialBackoff) {
			t.Errorf("%s: still failing after the pause", name)
		}
		u.Dialed(0, time.Second, breaker.Backoff, nil)
		if u.IsFailing(2 * time.Second) {
			t.Errorf("%s: failing after a good dial", name)
		}
	}
}

// BenchmarkTable reports what a live session costs in memory.
func BenchmarkTable(b *testing.B) {
	const n = 1_000_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		tb := newTestTable()
		u := tb.Hold("a:80")
		for i := range n {
			l := tb.BeginPage(tb.Key(fmt.Sprint(i)), u, testTerms)
			l.PageBuilt()
			l.PageEnded(true, true)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/session")
		runtime.KeepAlive(tb)
	}
}

// Two first bytes may be taken note of in the wrong order.
func TestTurnBackwards(t *testing.T) {
	tb, u := newTestTable(), &Upstream{History: new(History)}
	u.builtAt.Store(1)
	for _, now := range []time.Duration{1000, 999} {
		tb.PageBuilt(u, Terms{}, u.ServiceTime(10, now))
	}
	if slowness := u.slowness.or(AsUsual); slowness != AsUsual {
		t.Errorf("a page that took less than no time makes the upstream %v", slowness)
	}
}

// BenchmarkOldest looks for the oldest session of each of 1,000 upstreams with 100,000 sessions, and reports how long it holds a lock at
// most that a request may want: the shard of a session, or the list of upstreams.
func BenchmarkOldest(b *testing.B) {
	tb := newTestTable()
	for i := range 100_000 {
		tb.BeginPage(tb.Key(strconv.Itoa(i)), tb.Hold("a:"+strconv.Itoa(i%1000)), Terms{Lifetime: time.Hour})
	}
	longest := time.Duration(0)
	hold := func(f func()) {
		begun := time.Now()
		f()
		longest = max(longest, time.Since(begun))
	}
	for b.Loop() {
		if got := len(tb.Oldest()); got != 1000 {
			b.Fatal(got, " upstreams")
		}
	}
	b.StopTimer()
	var holds []float64
	for range 20 {
		longest = 0
		oldest := make(map[*Upstream]time.Duration)
		for i := range tb.shards {
			hold(func() { tb.shards[i].oldest(oldest) })
		}
		hold(func() {
			tb.mu.Lock()
			defer tb.mu.Unlock()
			_ = slices.Collect(maps.Values(tb.upstreams))
		})
		holds = append(holds, float64(longest.Microseconds()))
	}
	slices.Sort(holds)
	b.ReportMetric(holds[len(holds)/2], "µs-held")
}
