// This file tests what a session is counted as, and when it ends.

package sessions

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
)

// served begins a session by a page that is answered and has no socket yet.
func served(tb *Table, id string, u *Upstream, by Terms) Load {
	l := tb.BeginPage(tb.Key(id), u, by)
	l.PageBuilt()
	l.PageEnded(true, true)
	return l
}

func wantSlotless(t *testing.T, when string, u *Upstream, want int64) {
	t.Helper()
	synctest.Wait()
	if got := u.Slots.Slotless.Load(); got != want {
		t.Errorf("%s: %d sessions hold no slot, want %d", when, got, want)
	}
}

// The end of a session is never moved to an earlier time: not by a request through a policy that keeps sessions for less long.
func TestEndIsNeverMovedEarlier(t *testing.T) {
	short := Terms{Lifetime: 5 * time.Second}
	for name, again := range map[string]func(tb *Table, u *Upstream){
		"a page": func(tb *Table, u *Upstream) { served(tb, "id", u, short) },
		"a socket": func(tb *Table, u *Upstream) {
			tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, short).SocketEnded(true)
		},
		"a page whose visitor goes": func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, short).PageLeft(0) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newTestTable()
				u := tb.Hold("a:80")
				served(tb, "id", u, testTerms)
				time.Sleep(time.Second)
				again(tb, u)
				time.Sleep(testLifetime - time.Second - time.Nanosecond)
				synctest.Wait()
				if got := u.Slots.Sessions.Load(); got != 1 {
					t.Errorf("just before its time is over %d sessions are left, want 1", got)
				}
				time.Sleep(ExpiryTick)
				wantEmpty(t, tb, 1)
			})
		})
	}
}

// It is moved to a later one by each request.
func TestEndIsMovedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		served(tb, "id", u, Terms{Lifetime: 5 * time.Second})
		time.Sleep(time.Second)
		served(tb, "id", u, testTerms)
		time.Sleep(testLifetime - time.Nanosecond)
		wantTally(t, "just before", u, tally{0, 1, 0, 0})
		time.Sleep(ExpiryTick)
		wantTally(t, "after", u, tally{})
		wantEmpty(t, tb, 1)
	})
}

// A page holds a slot for five seconds after its answer, and again when its socket opens.
func TestPageHoldsASlotForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		page := tb.BeginPage(tb.Key("id"), u, testTerms)
		time.Sleep(time.Minute)
		wantSlotless(t, "building", u, 0)
		page.PageBuilt()
		page.PageEnded(true, true)
		time.Sleep(SlotTimeout - time.Nanosecond)
		wantSlotless(t, "the time is nearly over", u, 0)
		time.Sleep(ExpiryTick)
		wantSlotless(t, "the time is over", u, 1)
		if got := u.Slots.Sessions.Load(); got != 1 {
			t.Errorf("%d sessions are left, want 1", got)
		}
		socket := tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms)
		wantSlotless(t, "the socket is dialled", u, 1)
		socket.SocketOpened()
		wantSlotless(t, "the socket is open", u, 0)
		socket.SocketEnded(true)
		time.Sleep(SlotTimeout + time.Second)
		wantSlotless(t, "the socket is closed", u, 0)
		served(tb, "id", u, testTerms)
		time.Sleep(SlotTimeout + time.Second)
		wantSlotless(t, "a page of a session that had a socket", u, 0)
		time.Sleep(testLifetime)
		wantSlotless(t, "in the end", u, 0)
		wantEmpty(t, tb, 1)
	})
}

// It holds it for no longer where its visitor reads slowly, and its own time is not that of the session.
func TestSlotOfASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		served(tb, "id", u, Terms{Lifetime: time.Second})
		page := tb.BeginPage(tb.Key("id"), u, Terms{Lifetime: time.Second})
		page.PageBuilt()
		time.Sleep(2 * time.Second)
		wantSlotless(t, "the time of the session is over", u, 0)
		wantTally(t, "and its page is being read", u, tally{0, 1, 0, 0})
		time.Sleep(SlotTimeout)
		wantSlotless(t, "the time of the slot is over", u, 1)
		page.PageEnded(true, false)
		tb.BeginPage(tb.Key("other"), u, testTerms).PageBuilt()
		wantSlotless(t, "another page is being read", u, 0)
		time.Sleep(SlotTimeout + ExpiryTick)
		wantSlotless(t, "its time is over", u, 1)
	})
}

// A session with a socket holds its slot, also if its page is asked for once more.
func TestPageBesideASocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms).SocketOpened()
		served(tb, "id", u, testTerms)
		time.Sleep(SlotTimeout + time.Second)
		wantSlotless(t, "after the time of a page", u, 0)
		time.Sleep(time.Hour)
	})
}

// A session that comes back to where it was, while something of it is open there, is kept there again.
func TestSessionComesBack(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	page := tb.BeginPage(tb.Key("id"), u, testTerms)
	tb.Move(tb.Key("id"), u)
	tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms).SocketEnded(true)
	page.PageEnded(false, false)
	wantTally(t, "back, and closed", u, tally{0, 0, 0, 1})
}

// A session that holds no slot gives none back when it ends.
func TestSlotlessSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		served(tb, "id", u, testTerms)
		time.Sleep(SlotTimeout + time.Second)
		wantSlotless(t, "the time is over", u, 1)
		time.Sleep(testLifetime)
		wantSlotless(t, "it has ended", u, 0)
		wantEmpty(t, tb, 1)
	})
}

// One session holds one slot for one time, however often its page is asked for.
func TestReloadsHoldNoSlotForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		for range 3 {
			served(tb, "id", u, testTerms)
			time.Sleep(2 * time.Second)
		}
		wantSlotless(t, "6 s after the first answer", u, 1)
		served(tb, "id", u, testTerms)
		wantSlotless(t, "one more page", u, 1)
		time.Sleep(SlotTimeout + time.Second)
		wantSlotless(t, "and its time", u, 1)
	})
}

// The end of a slot comes in its time though that of the session, which comes later, was there before.
func TestSlotEndsBeforeTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		stamp, id := tb.Key("stamp"), tb.Key("id")
		served(tb, "stamp", u, testTerms)
		tb.BeginSocket(id, stamp, u, testTerms).SocketEnded(false)
		wantTally(t, "handshake failed", u, tally{0, 1, 0, 0})
		time.Sleep(10 * time.Second)
		served(tb, "id", u, testTerms)
		time.Sleep(SlotTimeout + ExpiryTick)
		wantSlotless(t, "the time of the slot is over", u, 1)
		wantTally(t, "and not that of the session", u, tally{0, 1, 0, 0})
		time.Sleep(testLifetime)
		wantEmpty(t, tb, 1)
	})
}

// A slot whose time ends with the session, or after it, is free with it.
func TestSlotEndsWithTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, lifetime := range []time.Duration{time.Second, SlotTimeout} {
			tb := newTestTable()
			u := tb.Hold("a:80")
			served(tb, "id", u, Terms{Lifetime: lifetime})
			time.Sleep(lifetime + ExpiryTick)
			synctest.Wait()
			wantTally(t, "its time is over", u, tally{})
			time.Sleep(time.Minute)
			wantSlotless(t, "later", u, 0)
			wantEmpty(t, tb, 1)
		}
	})
}

// Who waits for a slot is called when one becomes free: by a session that ends, by a page whose socket does not come, by one whose visitor has gone.
func TestFreeSlotsAreTold(t *testing.T) {
	for name, tc := range map[string]struct {
		visit func(tb *Table, u *Upstream)
		after time.Duration
	}{
		"a page that fails":        {func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, testTerms).PageEnded(false, false) }, 0},
		"no socket comes":          {func(tb *Table, u *Upstream) { served(tb, "id", u, testTerms) }, SlotTimeout + ExpiryTick},
		"a visitor goes":           {func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, testTerms).PageLeft(time.Second) }, 0},
		"a session ends":           {func(tb *Table, u *Upstream) { served(tb, "id", u, Terms{Lifetime: time.Second}) }, time.Second + ExpiryTick},
		"a session that had moved": {func(tb *Table, u *Upstream) { served(tb, "id", u, testTerms); tb.Move(tb.Key("id"), u) }, 0},
		"nobody uses it any more": {func(tb *Table, u *Upstream) {
			tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, Terms{Lifetime: time.Second}).SocketEnded(true)
		}, time.Second + ExpiryTick},
		"of an upstream given up": {func(tb *Table, u *Upstream) { served(tb, "id", u, testTerms); tb.Abandon(u) }, 0},
		"a socket that fails": {func(tb *Table, u *Upstream) {
			tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms).SocketEnded(false)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newTestTable()
				u := tb.Hold("a:80")
				w := admission.NewWaiter(1, time.Hour)
				var sums admission.Sums
				sums.Add(&u.Slots, true)
				tb.Waiting.Enter(w, "policy", 1, admission.NewOffer(sums, []*admission.Server{&u.Slots}), 1)
				called := func() bool {
					synctest.Wait()
					select {
					case <-w.Turn():
						return true
					default:
						return false
					}
				}
				tc.visit(tb, u)
				if tc.after > 0 {
					if called() {
						t.Error("the waiter is called though no slot is free")
					}
					time.Sleep(tc.after)
				}
				if !called() {
					t.Error("the waiter is not called")
				}
				time.Sleep(time.Hour)
			})
		})
	}
}

// A page whose visitor has gone makes its session all the same, which is kept for as long as the server still needs and then its lifetime.
// It holds no slot, and nobody says of it that its socket never came.
func TestPageLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		if busy := tb.BeginPage(tb.Key("id"), u, testTerms).PageLeft(10 * time.Second); !busy {
			t.Error("the server is not at it any more")
		}
		wantTally(t, "left", u, tally{0, 1, 0, 0})
		wantSlotless(t, "left", u, 1)
		time.Sleep(10*time.Second + testLifetime - time.Nanosecond)
		wantTally(t, "just before", u, tally{0, 1, 0, 0})
		time.Sleep(ExpiryTick)
		wantTally(t, "after", u, tally{})
		if n := u.History.Silent.Load(); n != 0 {
			t.Errorf("%d pages are said to have had no socket", n)
		}
		wantEmpty(t, tb, 1)
	})
}

// A server is busy with a page that was left, unless it has made that session already, or somebody else waits for the same page.
func TestPageLeftIsBusy(t *testing.T) {
	for name, tc := range map[string]struct {
		before, meanwhile func(tb *Table, u *Upstream)
		busy              bool
		slotless          int64
	}{
		"nothing else": {nil, nil, true, 1},
		"made before":  {func(tb *Table, u *Upstream) { served(tb, "id", u, testTerms) }, nil, false, 0},
		"a socket before": {func(tb *Table, u *Upstream) {
			s := tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms)
			s.SocketOpened()
			s.SocketEnded(true)
		}, nil, false, 0},
		"another page is being built":  {nil, func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, testTerms) }, false, 0},
		"another page is on its way":   {nil, func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, testTerms).PageBuilt() }, false, 0},
		"another one was left before":  {func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, testTerms).PageLeft(0) }, nil, true, 1},
		"another one failed before it": {func(tb *Table, u *Upstream) { tb.BeginPage(tb.Key("id"), u, testTerms).PageEnded(false, false) }, nil, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newTestTable()
				u := tb.Hold("a:80")
				if tc.before != nil {
					tc.before(tb, u)
				}
				page := tb.BeginPage(tb.Key("id"), u, testTerms)
				if tc.meanwhile != nil {
					tc.meanwhile(tb, u)
				}
				if got := page.PageLeft(0); got != tc.busy {
					t.Errorf("the server is busy: %v, want %v", got, tc.busy)
				}
				wantSlotless(t, "left", u, tc.slotless)
				time.Sleep(time.Hour)
			})
		})
	}
}

// What was taken over or has moved is not kept when what is open of it ends.
func TestWhatHasMovedIsNotKept(t *testing.T) {
	for name, end := range map[string]func(l Load){
		"left":           func(l Load) { l.PageLeft(time.Second) },
		"served":         func(l Load) { l.PageBuilt(); l.PageEnded(true, true) },
		"failed":         func(l Load) { l.PageEnded(false, false) },
		"answered badly": func(l Load) { l.PageBuilt(); l.PageEnded(true, false) },
	} {
		tb := newTestTable()
		u := tb.Hold("a:80")
		page := tb.BeginPage(tb.Key("id"), u, testTerms)
		tb.Move(tb.Key("id"), u)
		wantTally(t, "moved", u, tally{1, 0, 0, 0})
		end(page)
		wantTally(t, name, u, tally{})
		if n := u.Slots.Slotless.Load(); n != 0 {
			t.Errorf("%s: %d sessions hold no slot", name, n)
		}
		wantEmpty(t, tb, 1)
	}
}

// A socket takes over the session of its page, unless that has a socket of its own, or is at another upstream.
func TestSocketTakesOverNothing(t *testing.T) {
	tb := newTestTable()
	a, b := tb.Hold("a:80"), tb.Hold("b:80")
	page, id := tb.Key("page"), tb.Key("id")
	own := tb.BeginSocket(page, page, a, testTerms)
	tb.BeginSocket(id, page, a, testTerms).SocketEnded(false)
	wantTally(t, "the page's has a socket", a, tally{0, 0, 1, 0})
	own.SocketEnded(true)
	tb.BeginSocket(id, page, b, testTerms).SocketEnded(false)
	wantTally(t, "at another upstream", b, tally{})
	wantTally(t, "where it was", a, tally{0, 0, 0, 1})
	tb.BeginSocket(id, tb.Key("nobody's"), a, testTerms).SocketEnded(false)
	wantTally(t, "of no session", a, tally{0, 0, 0, 1})
}

// Nothing is kept at an upstream that is closed: what is open counts until it ends.
func TestNothingIsKeptWhereClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u, other := tb.Hold("a:80"), tb.Hold("b:80")
		served(tb, "one", u, testTerms)
		served(tb, "one", other, testTerms)
		served(tb, "two", other, testTerms)
		open := tb.BeginSocket(tb.Key("two"), tb.Key("two"), u, testTerms)
		building := tb.BeginPage(tb.Key("three"), u, testTerms)
		served(tb, "four", u, testTerms)
		wantTally(t, "before", u, tally{1, 2, 1, 0})
		u.Drain.Set(&DrainOrder{Closed: true})
		tb.Abandon(u)
		wantTally(t, "given up", u, tally{1, 0, 1, 0})
		wantTally(t, "elsewhere", other, tally{0, 2, 0, 0})
		open.SocketEnded(true)
		building.PageBuilt()
		building.PageEnded(true, true)
		wantTally(t, "all ended", u, tally{})
		time.Sleep(testLifetime + time.Second)
		wantTally(t, "elsewhere, later", other, tally{})
		wantEmpty(t, tb, 2)
	})
}

// An upstream that was given up counts again when it is open again.
func TestOpenAgain(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	open := tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms)
	u.Drain.Set(&DrainOrder{Closed: true})
	tb.Abandon(u)
	u.Drain.Set(nil)
	open.SocketEnded(true)
	wantTally(t, "closed while it is open again", u, tally{0, 0, 0, 1})
}

// What is told of an upstream: all sessions that there ever were, those that ended lately, and pages whose socket never came.
func TestWhatIsToldOfSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		want := func(when string, begun, ended, silent int64) {
			t.Helper()
			synctest.Wait()
			if got := [3]int64{u.started.Load(), u.History.Ended.Count(tb.Now()), u.History.Silent.Load()}; got != [3]int64{begun, ended, silent} {
				t.Errorf("%s: begun, ended, silent = %v, want %v", when, got, [3]int64{begun, ended, silent})
			}
		}
		served(tb, "one", u, testTerms)
		want("a page", 1, 0, 0)
		served(tb, "one", u, testTerms)
		want("the same", 1, 0, 0)
		socket := tb.BeginSocket(tb.Key("two"), tb.Key("two"), u, testTerms)
		want("a socket", 2, 0, 0)
		time.Sleep(testLifetime + time.Second)
		want("no socket came for the page", 2, 1, 1)
		socket.SocketEnded(true)
		time.Sleep(testLifetime + time.Second)
		want("the socket has closed", 2, 2, 1)
		tb.BeginPage(tb.Key("three"), u, testTerms).PageEnded(false, false)
		want("a page that failed", 3, 3, 1)
		tb.BeginSocket(tb.Key("one"), tb.Key("one"), u, testTerms).SocketEnded(true)
		want("the first again", 4, 3, 1)
		time.Sleep(time.Hour)
		want("much later", 4, 0, 1)
	})
}

// Sessions that end, or move, while their upstream drains are remembered there.
func TestSessionsThatEndAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		u.Drain.AddConfigs(1)
		u.Drain.alone.Store(int64(time.Hour))
		served(tb, "one", u, testTerms)
		if u.Drain.HasEnded(tb.Now(), tb.Key("one")) {
			t.Error("a session that waits has ended")
		}
		served(tb, "two", u, testTerms)
		open := tb.BeginSocket(tb.Key("two"), tb.Key("two"), u, testTerms)
		time.Sleep(testLifetime + time.Second)
		if !u.Drain.HasEnded(tb.Now(), tb.Key("one")) {
			t.Error("a session that ended is not remembered")
		}
		if u.Drain.HasEnded(tb.Now(), tb.Key("two")) {
			t.Error("a session that is open has ended")
		}
		open.SocketEnded(true)
		time.Sleep(testLifetime + time.Second)
		if !u.Drain.HasEnded(tb.Now(), tb.Key("two")) {
			t.Error("a session whose socket closed and that ended is not remembered")
		}
	})
}

// Nobody has ever had a session that is a guess, and nobody waits for it.
func TestIsGuess(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	want := func(when, id string, want bool) {
		t.Helper()
		found := false
		tb.Find(tb.Key(id), func(s Sighting) {
			if found = true; s.IsGuess != want {
				t.Errorf("%s: it is a guess: %v, want %v", when, !want, want)
			}
		})
		if !found {
			t.Errorf("%s: there is no session", when)
		}
	}
	one := tb.BeginPage(tb.Key("one"), u, testTerms)
	want("being built", "one", false)
	one.PageLeft(time.Second)
	want("left", "one", true)
	two := tb.BeginPage(tb.Key("one"), u, testTerms)
	want("asked for again", "one", false)
	two.PageBuilt()
	want("answered", "one", false)
	two.PageEnded(true, false)
	want("answered, and not read", "one", true)
	socket := tb.BeginSocket(tb.Key("one"), tb.Key("one"), u, testTerms)
	want("a socket is dialled", "one", false)
	socket.SocketOpened()
	socket.SocketEnded(true)
	want("a socket was open", "one", false)
	served(tb, "two", u, testTerms)
	want("served", "two", false)
}

// A session is known by the app that began it, and by the policy that asked for it last.
func TestSessionKnowsWhoAsks(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	tb.BeginPage(tb.Key("id"), u, Terms{Lifetime: testLifetime, App: 1, Owner: "one"})
	tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, Terms{Lifetime: testLifetime, App: 2, Owner: "two"})
	tb.Find(tb.Key("id"), func(s Sighting) {
		if s.App != 1 || s.Owner != "two" {
			t.Errorf("it is of app %d and owner %v, want 1 and two", s.App, s.Owner)
		}
	})
}

// Keys tell ids apart, and those of one table mean nothing to another.
func TestKeys(t *testing.T) {
	tb, other := newTestTable(), newTestTable()
	long := strings.Repeat("x", 1000)
	seen := make(map[Key]string)
	for _, id := range []string{"", "a", "b", long, long + "y"} {
		k := tb.Key(id)
		if k != tb.Key(id) {
			t.Errorf("%.10q has two keys", id)
		}
		if before, taken := seen[k]; taken {
			t.Errorf("%.10q and %.10q have one key", id, before)
		}
		seen[k] = id
		if k == other.Key(id) {
			t.Errorf("%.10q has one key in two tables", id)
		}
	}
	apps := make(map[App]bool)
	for _, a := range []App{tb.App("a", 80, "/x"), tb.App("b", 80, "/x"), tb.App("a", 81, "/x"), tb.App("a", 80, "/y"), other.App("a", 80, "/x")} {
		apps[a] = true
	}
	if len(apps) != 5 || !apps[tb.App("a", 80, "/x")] {
		t.Errorf("%d apps of 5 are told apart, or one is another the second time", len(apps))
	}
}

// Upstreams are known as long as somebody holds them, by one name in this process and another one between nodes.
func TestUpstreamsAreKnown(t *testing.T) {
	tb := NewTable(func(name string) string { return name + " here" }, Labels{[]string{"new"}, []string{"lost"}, []string{"won"}})
	if tb.Knows("a:80", nil) || tb.SessionsAt("a:80") != 0 {
		t.Error("an upstream is known that nobody holds")
	}
	u := tb.Hold("a:80")
	if u.Name != "a:80" || u.Shared != "a:80 here" {
		t.Errorf("it is called %q, and %q between nodes", u.Name, u.Shared)
	}
	u.History.Selected.Add("new")
	u.History.Moved.Add("lost")
	u.History.Hedged.Add("won")
	for name, c := range map[string]*atomic.Int64{"new": u.History.Selected["new"], "lost": u.History.Moved["lost"], "won": u.History.Hedged["won"]} {
		if c.Load() != 1 {
			t.Errorf("%s counts %d, want 1", name, c.Load())
		}
	}
	if !tb.Knows("a:80", nil) || tb.Knows("a:80", u) || tb.Knows("b:80", u) {
		t.Error("it is not known to others than the one that holds it")
	}
	if again := tb.Hold("a:80"); again != u || !tb.Knows("a:80", u) {
		t.Error("it is another one for the second that holds it, or only one holds it")
	}
	v := tb.Hold("b:80")
	if u.Slots.Lot == v.Slots.Lot {
		t.Error("two upstreams have the same lot")
	}
	if !tb.Knows("b:80", u) {
		t.Error("another one is not known")
	}
	for range 2 {
		tb.BeginSocket(tb.Key("id"), tb.Key("id"), u, testTerms)
	}
	tb.BeginSocket(tb.Key("other"), tb.Key("other"), u, testTerms)
	if n := tb.SessionsAt("a:80"); n != 2 {
		t.Errorf("it has %d sessions, want 2", n)
	}
	var all []string
	tb.Each(func(u *Upstream) { all = append(all, u.Name) })
	if slices.Sort(all); !slices.Equal(all, []string{"a:80", "b:80"}) {
		t.Errorf("these are known: %q", all)
	}
	tb.Release(v)
	if tb.Knows("b:80", nil) || tb.retain(v) == v {
		t.Error("an upstream is the same after it was forgotten")
	}
	tb.Release(u)
	tb.Release(u)
	if !tb.Knows("a:80", nil) {
		t.Error("an upstream with sessions was forgotten")
	}
}

// One that was forgotten takes none of its name along that came after it.
func TestReleaseOfAForgottenUpstream(t *testing.T) {
	tb := newTestTable()
	old := tb.Hold("a:80")
	tb.Release(old)
	fresh := tb.Hold("a:80")
	old.holders.Add(1)
	tb.Release(old)
	if !tb.Knows("a:80", nil) || tb.Hold("a:80") != fresh {
		t.Error("the upstream of the same name was forgotten")
	}
}

// The oldest session of each upstream is told by when it began, whatever it has done since.
func TestOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		a, b, c := tb.Hold("a:80"), tb.Hold("b:80"), tb.Hold("c:80")
		began := make(map[*Upstream]time.Duration)
		for i, u := range []*Upstream{a, b, a, b} {
			time.Sleep(time.Second)
			if began[u] == 0 {
				began[u] = tb.Now()
			}
			k := tb.Key(strconv.Itoa(i % 3)) // the last has the id of the first
			tb.BeginSocket(k, k, u, testTerms)
		}
		if got := tb.Oldest(); !maps.Equal(got, began) {
			t.Errorf("the oldest began at %v, want %v", got, began)
		}
		for range 50 {
			time.Sleep(time.Second)
			k := tb.Key(strconv.FormatInt(int64(tb.Now()), 10))
			tb.BeginSocket(k, k, a, testTerms)
		}
		if got := tb.Oldest(); !maps.Equal(got, began) || got[c] != 0 {
			t.Errorf("with younger ones the oldest began at %v, want %v", got, began)
		}
	})
}

// What happened in the last five minutes is counted, ten seconds sharp.
func TestRecent(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		var r Recent
		var slots []time.Duration // one for each that is to be counted
		newest := time.Duration(0)
		for now := time.Duration(1); now < time.Hour; now += time.Duration(rnd.ExpFloat64() * float64(20*time.Second)) {
			if rnd.IntN(40) == 0 {
				now += time.Duration(rnd.IntN(600)) * time.Second
			}
			if rnd.IntN(3) > 0 {
				at := max(now-time.Duration(rnd.IntN(2)*rnd.IntN(int(15*time.Second))), 1) // another goroutine may have been quicker
				r.add(at)
				newest = max(newest, at/recentSlot)
				slots = append(slots, newest)
			}
			newest = now / recentSlot
			want := int64(0)
			for _, slot := range slots {
				if newest-slot < recentSlots {
					want++
				}
			}
			if got := r.Count(now); got != want {
				t.Fatalf("at %v %d are counted, want %d", now, got, want)
			}
		}
	}
}

// Dials that take too long show that a server is gone only after a minute, for one that is busy takes none either.
func TestSilent(t *testing.T) {
	const s = time.Second
	late := os.ErrDeadlineExceeded
	for name, tc := range map[string]struct {
		dials map[time.Duration]error
		at    time.Duration
		want  bool
	}{
		"none":                      {nil, 100 * s, false},
		"one":                       {map[time.Duration]error{10 * s: late}, 11 * s, false},
		"for a minute":              {map[time.Duration]error{10 * s: late, 70 * s: late}, 70 * s, false},
		"for more than a minute":    {map[time.Duration]error{10 * s: late, 70 * s: late}, 70*s + 1, true},
		"and nobody has tried":      {map[time.Duration]error{10 * s: late, 70 * s: late}, 80 * s, false},
		"two minutes apart":         {map[time.Duration]error{10 * s: late, 130 * s: late}, 131 * s, true},
		"too far apart":             {map[time.Duration]error{10 * s: late, 131 * s: late}, 132 * s, false},
		"far apart, and then again": {map[time.Duration]error{10 * s: late, 131 * s: late, 192 * s: late}, 193 * s, true},
		"a good one between":        {map[time.Duration]error{10 * s: late, 60 * s: nil, 71 * s: late}, 72 * s, false},
		"a good one at the end":     {map[time.Duration]error{10 * s: late, 71 * s: late, 72 * s: nil}, 73 * s, false},
		"refused":                   {map[time.Duration]error{10 * s: syscall.ECONNREFUSED, 71 * s: syscall.ECONNREFUSED}, 72 * s, false},
	} {
		u := new(Upstream)
		for _, at := range slices.Sorted(maps.Keys(tc.dials)) {
			u.Dialed(at, at, breaker.Backoff, tc.dials[at])
		}
		if got := u.IsSilent(tc.at); got != tc.want {
			t.Errorf("%s: it is silent: %v, want %v", name, got, tc.want)
		}
	}
}

// A dial that fails trips the breaker and one that succeeds closes it. What the upstream is not to blame for does neither.
func TestDialsTripTheBreaker(t *testing.T) {
	for name, tc := range map[string]struct {
		err     error
		tripped bool
		cold    bool
	}{
		"refused":          {syscall.ECONNREFUSED, true, true},
		"takes too long":   {os.ErrDeadlineExceeded, true, false},
		"client went away": {context.Canceled, false, false},
	} {
		u := new(Upstream)
		u.builtAt.Store(int64(time.Second))
		u.Dialed(2*time.Second, 2*time.Second, 20*time.Second, tc.err)
		if got := u.Breaker.Tripped(); got != tc.tripped {
			t.Errorf("%s: the breaker has tripped: %v", name, got)
		}
		if until := u.Breaker.Until(); tc.tripped && until != 22*time.Second {
			t.Errorf("%s: the pause is over at %v, want after the 20 s that were given", name, until)
		}
		if u.IsWarm() == tc.cold {
			t.Errorf("%s: it may have been restarted: %v, want %v", name, !u.IsWarm(), tc.cold)
		}
		u.Dialed(3*time.Second, 3*time.Second, 20*time.Second, nil)
		if u.Breaker.Tripped() {
			t.Errorf("%s: the breaker is open after a good dial", name)
		}
		if u.IsWarm() == tc.cold {
			t.Errorf("%s: a dial alone makes it warm", name)
		}
	}
}

// A page waits for those that are built, and for those that the server may still be at.
func TestQueueOfPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		tb.BeginPage(tb.Key("one"), u, testTerms)
		u.FailedPages.Add(tb.Key("two"), tb.Now(), time.Second)
		u.FailedPages.Add(tb.Key("three"), tb.Now(), time.Second)
		for i := range 4 {
			u.LeftPages.Add(tb.Key(strconv.Itoa(i)), tb.Now(), time.Second)
		}
		if got := u.Backlog(); got != 7 {
			t.Errorf("%d pages are ahead, want 7", got)
		}
		time.Sleep(2 * time.Second)
		if got := u.Backlog(); got != 1 {
			t.Errorf("%d pages are ahead later, want 1", got)
		}
	})
}

// An upstream is as slow as its pages are against what the same app takes elsewhere. Its first page since it may have been restarted tells nothing.
func TestSlowness(t *testing.T) {
	const ms = time.Millisecond
	by := Terms{App: 1, Path: 2}
	synctest.Test(t, func(t *testing.T) {
		for name, tc := range map[string]struct {
			took []time.Duration
			want int64
		}{
			"the first of a process":    {[]time.Duration{200 * ms}, 7},
			"as usual":                  {[]time.Duration{time.Hour, 100 * ms}, AsUsual},
			"twice as slow":             {[]time.Duration{0, 200 * ms}, 2 * AsUsual},
			"half as slow":              {[]time.Duration{0, 50 * ms}, AsUsual / 2},
			"out of all proportion":     {[]time.Duration{0, time.Hour}, 8 * AsUsual},
			"quick beyond belief":       {[]time.Duration{0, ms}, AsUsual / 8},
			"one that took no time":     {[]time.Duration{0, 0}, 7},
			"since a dial that failed":  {[]time.Duration{0, -1, 200 * ms}, 7},
			"the second since that did": {[]time.Duration{0, -1, 0, 200 * ms}, 2 * AsUsual},
		} {
			tb := newTestTable()
			tb.pageTimes[1].add(int64(100 * ms))
			u := tb.Hold("a:80")
			for _, took := range tc.took {
				time.Sleep(time.Second)
				if took < 0 {
					u.Dialed(tb.Now(), tb.Now(), breaker.Backoff, syscall.ECONNREFUSED)
					continue
				}
				tb.PageBuilt(u, by, took)
				if !u.IsWarm() {
					t.Errorf("%s: it is not warm after a page", name)
				}
			}
			if got := u.slowness.or(7); got != tc.want {
				t.Errorf("%s: it is %d, want %d", name, got, tc.want)
			}
			if !tb.Addresses.HasPages(2) || tb.Addresses.HasPages(1) {
				t.Errorf("%s: the address is not known for its page", name)
			}
		}
	})
}

// What an app takes is learnt from all upstreams, and what an upstream takes from all apps.
func TestPageTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		a, b := tb.Hold("a:80"), tb.Hold("b:80")
		for _, u := range []*Upstream{a, b} {
			time.Sleep(time.Second)
			tb.PageBuilt(u, Terms{App: 1}, time.Hour) // the first of the process
		}
		tb.PageBuilt(a, Terms{App: 1}, 2*time.Second)
		tb.PageBuilt(b, Terms{App: 2}, 4*time.Second)
		for _, want := range []struct {
			of    App
			u     *Upstream
			usual time.Duration
		}{{1, a, 2 * time.Second}, {1, b, 2 * time.Second}, {2, a, 4 * time.Second}, {3, a, 2 * time.Second}, {3, b, 4 * time.Second}, {1025, b, 2 * time.Second}} {
			if got := tb.usually(want.of, want.u); got != want.usual {
				t.Errorf("app %d takes %v at %s, want %v", want.of, got, want.u.Name, want.usual)
			}
		}
		if a.slowness.or(0) != 0 {
			t.Error("the first page of an app tells how slow the upstream is")
		}
	})
}

// An upstream is at a page since it was asked for, or since the one before was ready.
func TestTurn(t *testing.T) {
	const s = time.Second
	u := new(Upstream)
	for _, step := range []struct{ asked, now, want time.Duration }{
		{s, 5 * s, 4 * s},
		{2 * s, 7 * s, 2 * s},
		{8 * s, 9 * s, s},
	} {
		if got := u.ServiceTime(step.asked, step.now); got != step.want {
			t.Errorf("at what was asked for at %v it was for %v, want %v", step.asked, got, step.want)
		}
	}
}

// An upstream of a pool that depends on the request came into it when it was last seen after a second elsewhere.
func TestLent(t *testing.T) {
	const s = time.Second
	u := new(Upstream)
	for _, step := range []struct {
		to      any
		at      time.Duration
		came    time.Duration
		because string
	}{
		{"one", 10 * s, 10 * s, "it is new"},
		{"one", 11 * s, 10 * s, "it was there a second ago"},
		{"one", 11*s + 1, 11*s + 1, "it was there longer ago"},
		{"two", 11*s + 2, 11*s + 2, "it was elsewhere"},
	} {
		u.Lent(step.to, step.at)
		if j := u.pool.Load(); j.at != step.came || j.of != step.to {
			t.Errorf("%s: it came into %v at %v, want %v at %v", step.because, j.of, j.at, step.to, step.came)
		}
	}
}

// Whose time for a slot was never begun loses none when something else of it is over.
func TestPageThatIsBuiltForLongKeepsItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTestTable()
		u := tb.Hold("a:80")
		left := tb.BeginPage(tb.Key("id"), u, testTerms)
		built := tb.BeginPage(tb.Key("id"), u, testTerms)
		left.PageLeft(0)
		time.Sleep(time.Hour) // longer than the session is kept for the page that was left
		wantTally(t, "while it is built", u, tally{1, 0, 0, 0})
		wantSlotless(t, "while it is built", u, 0)
		built.PageBuilt()
		built.PageEnded(true, true)
		time.Sleep(time.Hour)
		wantEmpty(t, tb, 1)
	})
}

// A session without a slot that moves takes no slot from anybody, there or where it goes, whatever of it is still open.
func TestSlotlessSessionMoves(t *testing.T) {
	for name, open := range map[string]bool{"nothing is open": false, "a page is built": true} {
		synctest.Test(t, func(t *testing.T) {
			tb := newTestTable()
			u := tb.Hold("a:80")
			served(tb, "id", u, testTerms)
			time.Sleep(SlotTimeout + time.Second)
			wantSlotless(t, name, u, 1)
			var page Load
			if open {
				page = tb.BeginPage(tb.Key("id"), u, testTerms)
			}
			tb.Move(tb.Key("id"), u)
			if open {
				wantSlotless(t, name, u, 1)
				page.PageEnded(false, false)
			}
			wantSlotless(t, name+", and has ended", u, 0)
			wantTally(t, name, u, tally{})
			if n := u.Slots.Sessions.Load(); n != 0 {
				t.Errorf("%s: %d sessions are left", name, n)
			}
		})
	}
}
