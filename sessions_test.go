// This file tests the table of live sessions.

package caddybokeh

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

const testLifetime = 32 * time.Second

var testTerms = terms{lifetime: testLifetime}

// tally is the sessions of an upstream by state, as in {building, waiting, connected, unused}.
type tally [4]int64

func tallyOf(u *upstream) (n tally) {
	for i := range n {
		n[i] = u.counts[building+state(i)].Load()
	}
	return n
}

func wantTally(t *testing.T, when string, u *upstream, want tally) {
	t.Helper()
	if got := tallyOf(u); got != want {
		t.Errorf("%s: building, waiting, connected, unused = %v, want %v", when, got, want)
	}
}

// wantEmpty checks that nothing is left in the table but the upstreams that somebody holds.
func wantEmpty(t *testing.T, tb *ledger, upstreams int) {
	t.Helper()
	for i := range tb.shards {
		sh := &tb.shards[i]
		sh.mu.Lock()
		if len(sh.sessions) > 0 {
			t.Errorf("%d sessions are left behind", len(sh.sessions))
		}
		sh.mu.Unlock()
	}
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if len(tb.upstreams) != upstreams {
		t.Errorf("%d upstreams are known, want %d", len(tb.upstreams), upstreams)
	}
}

func TestVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		k := tb.key("id")

		page := tb.page(k, u, testTerms)
		wantTally(t, "page requested", u, tally{1, 0, 0, 0})
		page.built()
		wantTally(t, "first byte", u, tally{0, 1, 0, 0})
		time.Sleep(time.Hour) // a slow reader keeps its session waiting
		wantTally(t, "slow reader", u, tally{0, 1, 0, 0})
		page.pageEnded(true, true)
		wantTally(t, "page served", u, tally{0, 1, 0, 0})

		time.Sleep(20 * time.Second)
		first := tb.socket(k, k, u, testTerms)
		wantTally(t, "socket", u, tally{0, 0, 1, 0})
		second := tb.socket(k, k, u, testTerms)
		first.socketEnded(true)
		time.Sleep(time.Hour)
		wantTally(t, "one of two sockets closed", u, tally{0, 0, 1, 0})
		second.socketEnded(true)
		wantTally(t, "last socket closed", u, tally{0, 0, 0, 1})
		time.Sleep(testLifetime - time.Millisecond)
		wantTally(t, "lifetime nearly over", u, tally{0, 0, 0, 1})
		time.Sleep(2 * time.Millisecond)
		wantTally(t, "lifetime over", u, tally{})
		wantEmpty(t, tb, 1)
		tb.release(u)
		wantEmpty(t, tb, 0)
	})
}

func TestSocketNeverCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		page := tb.page(tb.key("id"), u, testTerms)
		page.built()
		page.pageEnded(true, true)
		time.Sleep(testLifetime - time.Second)
		wantTally(t, "before", u, tally{0, 1, 0, 0})
		time.Sleep(3 * time.Second)
		wantTally(t, "after", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

func TestPageWithoutSessionFreesAtOnce(t *testing.T) {
	tb := newLedger()
	u := tb.hold("a:80")
	for name, built := range map[string]bool{"redirect or error": true, "aborted before the first byte": false} {
		page := tb.page(tb.key("id"), u, testTerms)
		if built {
			page.built()
		}
		page.pageEnded(built, false)
		wantTally(t, name, u, tally{})
	}
	wantEmpty(t, tb, 1)
}

// An error for a second page of a session says nothing about the first.
func TestFailedPageLeavesTheSessionItsTime(t *testing.T) {
	tb := newLedger()
	u := tb.hold("a:80")
	k := tb.key("id")
	one := tb.page(k, u, testTerms)
	one.built()
	one.pageEnded(true, true)
	two := tb.page(k, u, testTerms)
	two.pageEnded(false, false)
	wantTally(t, "second page failed", u, tally{0, 1, 0, 0})
}

func TestFailedHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		k := tb.key("id")
		tb.socket(k, k, u, testTerms).socketEnded(false)
		wantTally(t, "of an unknown session", u, tally{})

		page := tb.page(k, u, testTerms)
		page.built()
		page.pageEnded(true, true)
		tb.socket(k, k, u, testTerms).socketEnded(false)
		wantTally(t, "of a waiting session", u, tally{0, 1, 0, 0})
		time.Sleep(testLifetime + 2*time.Second)
		wantTally(t, "and its time is over", u, tally{})
	})
}

// Where the server makes the id, the page is known by its stamp and the socket by its id. They
// are one session.
func TestSocketTakesOverItsPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		stamp, id := tb.key("stamp"), tb.key("id")
		page := tb.page(stamp, u, testTerms)
		page.built()
		ws := tb.socket(id, stamp, u, testTerms)
		wantTally(t, "socket before the page's last byte", u, tally{0, 0, 1, 0})
		page.pageEnded(true, true)
		wantTally(t, "page served", u, tally{0, 0, 1, 0})
		ws.socketEnded(true)
		wantTally(t, "socket closed", u, tally{0, 0, 0, 1})
		again := tb.socket(id, stamp, u, testTerms)
		wantTally(t, "reconnected", u, tally{0, 0, 1, 0})
		again.socketEnded(true)
		time.Sleep(testLifetime + 2*time.Second)
		wantEmpty(t, tb, 1)
	})
}

// A session that was taken over while its page was being built ends all the same when it is used by its own id.
func TestSocketOfASessionTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		stamp, id := tb.key("stamp"), tb.key("id")
		first := tb.page(stamp, u, testTerms)
		first.built()
		first.pageEnded(true, true)
		second := tb.page(stamp, u, testTerms)
		tb.socket(id, stamp, u, testTerms).socketEnded(false)
		tb.socket(stamp, stamp, u, testTerms).socketEnded(true)
		second.pageEnded(false, false)
		time.Sleep(2 * testLifetime)
		wantTally(t, "in the end", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

// A session that has moved is not counted where it was, but for what is still open there.
func TestMovedSession(t *testing.T) {
	tb := newLedger()
	a, b := tb.hold("a:80"), tb.hold("b:80")
	k := tb.key("id")
	tb.socket(k, k, a, testTerms).socketEnded(true)
	refused := tb.socket(k, k, a, testTerms)
	tb.move(k, a)
	moved := tb.socket(k, k, b, testTerms)
	wantTally(t, "still dialling", a, tally{0, 0, 1, 0})
	refused.socketEnded(false)
	wantTally(t, "left", a, tally{})
	wantTally(t, "moved", b, tally{0, 0, 1, 0})
	// It may come back.
	tb.move(k, b)
	back := tb.socket(k, k, a, testTerms)
	moved.socketEnded(true)
	wantTally(t, "left again", b, tally{})
	back.socketEnded(true)
	wantTally(t, "back, and closed", a, tally{0, 0, 0, 1})
}

// If the handshake fails, the session that the page made still waits on the server.
func TestFailedHandshakeKeepsTheSessionTakenOver(t *testing.T) {
	tb := newLedger()
	u := tb.hold("a:80")
	stamp, id := tb.key("stamp"), tb.key("id")
	page := tb.page(stamp, u, testTerms)
	page.built()
	page.pageEnded(true, true)
	tb.socket(id, stamp, u, testTerms).socketEnded(false)
	wantTally(t, "handshake failed", u, tally{0, 1, 0, 0})
}

func TestOneIDAtTwoUpstreams(t *testing.T) {
	tb := newLedger()
	a, b := tb.hold("a:80"), tb.hold("b:80")
	k := tb.key("id")
	found := func() (names []string) {
		tb.find(k, func(s *session) { names = append(names, s.at.name) })
		return names
	}
	one := tb.socket(k, k, a, testTerms)
	two := tb.socket(k, k, b, testTerms)
	if got := fmt.Sprint(found()); got != "[b:80 a:80]" {
		t.Errorf("found %v, want the last used first", got)
	}
	again := tb.socket(k, k, a, testTerms)
	if got := fmt.Sprint(found()); got != "[a:80 b:80]" {
		t.Errorf("found %v after it moved back", got)
	}
	again.socketEnded(false)
	one.socketEnded(false)
	if got := fmt.Sprint(found()); got != "[b:80]" {
		t.Errorf("found %v after the first has ended", got)
	}
	two.socketEnded(false)
	wantEmpty(t, tb, 2)
}

// An upstream that is removed from the config and added back while a session lives is the same.
func TestUpstreamRemovedAndAddedBack(t *testing.T) {
	tb := newLedger()
	u := tb.hold("a:80")
	k := tb.key("id")
	ws := tb.socket(k, k, u, testTerms)
	tb.release(u)
	if again := tb.hold("a:80"); again != u {
		t.Fatal("an upstream with a live session was forgotten")
	}
	wantTally(t, "added back", u, tally{0, 0, 1, 0})
	tb.release(u)
	ws.socketEnded(false)
	wantEmpty(t, tb, 0)

	// A request that outlived its config still holds the old one.
	fresh := tb.hold("a:80")
	late := tb.socket(k, k, u, testTerms)
	wantTally(t, "the late socket", fresh, tally{0, 0, 1, 0})
	late.socketEnded(false)
	tb.release(fresh)
	wantEmpty(t, tb, 0)
}

// TestTableAgainstModel does random things at once and compares with plain sums at the end.
func TestTableAgainstModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		names := []string{"a:80", "b:80", "c:80"}
		var ups []*upstream
		for _, n := range names {
			ups = append(ups, tb.hold(n))
		}
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(1, uint64(worker)))
				for range 400 {
					u := ups[rnd.IntN(len(ups))]
					id := tb.key(fmt.Sprint(rnd.IntN(40)))
					page := tb.key(fmt.Sprint("page", rnd.IntN(40)))
					switch rnd.IntN(3) {
					case 0:
						l := tb.page(page, u, testTerms)
						time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
						built := rnd.IntN(2) == 0
						if built {
							l.built()
							time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
						}
						l.pageEnded(built, built && rnd.IntN(4) > 0)
					default:
						l := tb.socket(id, page, u, testTerms)
						time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
						l.socketEnded(rnd.IntN(4) > 0)
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
		seen := map[*upstream]tally{}
		for i := range tb.shards {
			sh := &tb.shards[i]
			sh.mu.Lock()
			for _, s := range sh.sessions {
				for ; s != nil; s = s.next {
					n := seen[s.at]
					n[s.state()-building]++
					seen[s.at] = n
				}
			}
			sh.mu.Unlock()
		}
		for _, u := range ups {
			wantTally(t, u.name, u, seen[u])
		}
		time.Sleep(testLifetime + 2*time.Second)
		for _, u := range ups {
			wantTally(t, u.name+" later", u, tally{})
			tb.release(u)
		}
		wantEmpty(t, tb, 0)
	})
}

// A session that flaps lives on from its last socket, and leaves no trail behind.
func TestFlappingSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		k := tb.key("id")
		for range 1000 {
			tb.socket(k, k, u, testTerms).socketEnded(true)
			time.Sleep(10 * time.Millisecond)
		}
		wantTally(t, "flapping", u, tally{0, 0, 0, 1})
		time.Sleep(testLifetime - 11*time.Millisecond)
		wantTally(t, "lifetime nearly over", u, tally{0, 0, 0, 1})
		time.Sleep(beat)
		wantTally(t, "lifetime over", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

// Sessions end together, none before its time and each at most a beat after it.
func TestSessionsEndOnTheBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.hold("a:80")
		ends := make(map[time.Duration]bool)
		for i := range 50 {
			k := tb.key(strconv.Itoa(i))
			tb.socket(k, k, u, testTerms).socketEnded(true)
			until := onBeat(tb.now() + testLifetime)
			if late := until - tb.now() - testLifetime; late < 0 || late >= beat {
				t.Errorf("session %d ends %v after its time, want less than a beat", i, late)
			}
			ends[until] = true
			time.Sleep(7 * time.Millisecond)
		}
		if len(ends) > 3 {
			t.Errorf("50 sessions of 350 ms end at %d moments, want 3 at most", len(ends))
		}
		for _, end := range slices.Sorted(maps.Keys(ends)) {
			before := u.slots.Sessions.Load()
			time.Sleep(end - tb.now() - time.Nanosecond)
			if got := u.slots.Sessions.Load(); got != before {
				t.Errorf("%d of %d sessions are left just before a beat", got, before)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if got := u.slots.Sessions.Load(); got >= before {
				t.Errorf("still %d sessions at the beat", got)
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
		u := new(upstream)
		u.dialed(0, time.Second, breaker.Backoff, tc.err)
		if got := u.failing(2 * time.Second); got != tc.want {
			t.Errorf("%s: failing is %v, want %v", name, got, tc.want)
		}
		if u.failing(time.Second + dialPause) {
			t.Errorf("%s: still failing after the pause", name)
		}
		u.dialed(0, time.Second, breaker.Backoff, nil)
		if u.failing(2 * time.Second) {
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
		tb := newLedger()
		u := tb.hold("a:80")
		for i := range n {
			l := tb.page(tb.key(fmt.Sprint(i)), u, testTerms)
			l.built()
			l.pageEnded(true, true)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/session")
		runtime.KeepAlive(tb)
	}
}
