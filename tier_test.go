// This file tests two tiers of Caddys with this policy, one in front of the other.

package caddybokeh

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// tiers are two Caddys and, behind each of them, the same servers.
type tiers struct {
	outer *Selection
	inner map[string]*Selection // by the addresses that outer knows them by
}

func newTiers(ring stamp.Keyring) tiers {
	ts := tiers{newTestSelection(testPool(2)), map[string]*Selection{}}
	for _, u := range ts.outer.static {
		pool := testPool(3)
		for i := range pool {
			pool[i].Dial = fmt.Sprintf("server%d:80", i)
		}
		s := newTestSelection(pool)
		s.ring.Store(&ring)
		ts.inner[u.Dial] = s
	}
	return ts
}

// page requests one through both tiers and says which way it went, and what reached the server.
func (ts tiers) page(t *testing.T) (way [2]string, sent http.Header) {
	t.Helper()
	front := newRequest(ts.outer, "/app")
	way[0], _ = front.choose(ts.outer.static)
	s := ts.inner[way[0]]
	back := newRequest(s, "/app")
	back.Header = front.Header.Clone()
	var why string
	if way[1], why = back.choose(s.static); why != "new" {
		t.Errorf("a new session is %s to the second tier", why)
	}
	front.answer(http.StatusOK)
	back.answer(http.StatusOK)
	return way, back.Header
}

// socket says which way one goes.
func (ts tiers) socket(token string) (way [2]string) {
	way[0], _ = newSocket(ts.outer, token).choose(ts.outer.static)
	way[1], _ = newSocket(ts.inner[way[0]], token).choose(ts.inner[way[0]].static)
	return way
}

// A session is new to each tier, and balanced there; its socket goes the way of its page, also when all Caddys have been
// restarted, with one key for all or one for each tier, and whether the server takes ids from us or not.
func TestTwoTiers(t *testing.T) {
	for keys, ring := range map[string]stamp.Keyring{"one key": bokehtest.Ring, "two keys": {stamp.NewKey([]byte("of the second tier"))}} {
		synctest.Test(t, func(t *testing.T) {
			ts, restarted := newTiers(ring), newTiers(ring)
			at := map[[2]string]int{}
			for i := range 60 {
				way, sent := ts.page(t)
				at[way]++
				packed := map[string]any{}
				for name := range sent {
					packed[name] = sent.Get(name)
				}
				for ids, id := range map[string]string{"ours": sent.Get(bokeh.SessionIDHeader), "the server's": fmt.Sprint("made-by-the-server-", i)} {
					token := bokehtest.Token(t, id, packed)
					if got := restarted.socket(token); got != way {
						t.Errorf("%s, ids are %s, restarted: the page went by %v, its socket by %v", keys, ids, way, got)
					}
				}
				if got := ts.socket(bokehtest.Token(t, sent.Get(bokeh.SessionIDHeader), packed)); got != way {
					t.Errorf("%s: the page went by %v, its socket by %v", keys, way, got)
				}
			}
			for way, n := range at {
				if n != 10 {
					t.Errorf("%s: %d of 60 sessions went by %v, want 10", keys, n, way)
				}
			}
			for _, s := range ts.inner {
				for _, m := range s.candidatesIn(s.static, nil) {
					if n := m.History.Moved[movedUnreachable].Load(); n != 0 {
						t.Errorf("%s: %d sessions have moved", keys, n)
					}
				}
			}
		})
	}
}

// A limit of sessions holds behind another tier, too, and a server that has failed is tried again.
func TestLimitsBehindATier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(2))
		s.MaxSessions = 2
		newPage := func() *request { return newRequest(s, "/app", bokeh.SessionIDHeader, bokehtest.Stamp("this:80")) }
		for range 4 {
			r := newPage()
			if addr, _ := r.choose(s.static); addr == "" {
				t.Fatal("a free place is not taken")
			}
			r.answer(http.StatusOK)
		}
		if addr, _ := newPage().choose(s.static); addr != "" {
			t.Errorf("one too many goes to %s", addr)
		}
		synctest.Wait() // until the pages have ended, each of which says that its server is well
		s.MaxSessions = 0
		s.members.get("u0:80").Dialed(s.table.Now(), s.table.Now(), breaker.Backoff, fmt.Errorf("connection refused"))
		if addr, _ := newPage().choose(s.static); addr != "u1:80" {
			t.Errorf("a session goes to %q, though that has just failed", addr)
		}
		time.Sleep(breaker.Backoff + time.Second)
		if addr, _ := newPage().choose(s.static); addr != "u0:80" {
			t.Errorf("nobody tries the server that has failed, but %q", addr)
		}
	})
}
