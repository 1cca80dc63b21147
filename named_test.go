// This file tests where requests go that ask for what a session has made.

package caddybokeh

import (
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// namings are the ways in which a request can name the session of a stamp.
func namings(stamp string) map[string]func(s *Selection) *request {
	return map[string]func(s *Selection) *request{
		"a picture": func(s *Selection) *request {
			return newRequest(s, "/app/static/plot.png?bokeh-session-id="+stamp, "Sec-Fetch-Dest", "image")
		},
		"a file": func(s *Selection) *request { return newRequest(s, "/app/static/table.csv?bokeh-session-id="+stamp) },
		"an upload": func(s *Selection) *request {
			r := newRequest(s, "/upload?bokeh-session-id="+stamp)
			r.Method = http.MethodPost
			return r
		},
		"by Bokeh's header": func(s *Selection) *request { return newRequest(s, "/metadata", bokeh.SessionIDHeader, stamp) },
		"by ours":           func(s *Selection) *request { return newRequest(s, "/metadata", bokeh.StampHeader, stamp) },
		"by ours, no GET": func(s *Selection) *request {
			r := newRequest(s, "/upload", bokeh.StampHeader, stamp)
			r.Method = http.MethodPut
			return r
		},
	}
}

// What a session has made is asked of its server, through every node, whatever the path. It weighs nothing.
func TestRequestThatNamesASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(5)
		s, another := newTestSelection(pool), newTestSelection(pool)
		home, token := landed(t, s, pool)
		id := bokeh.ReadToken(token, bokehtest.Ring).ID
		for name, newRequest := range namings(id) {
			for range 10 {
				for node, s := range map[string]*Selection{"this node": s, "another": another} {
					r := newRequest(s)
					if addr, why := r.choose(pool); addr != home || why != "bound" {
						t.Fatalf("%s through %s: %s at %s, want %s", name, node, why, addr, home)
					}
					r.answer(http.StatusOK)
				}
			}
		}
		synctest.Wait()
		if n := s.members.get(home).Slots.Sessions.Load() + another.members.get(home).Slots.Sessions.Load(); n != 1 {
			t.Errorf("%d sessions, want the one", n)
		}
	})
}

// An id that nobody knows, and a stamp that is none of ours, name nothing: nobody gets to a server by making one up.
func TestRequestThatNamesNoSession(t *testing.T) {
	pool := testPool(5)
	s := newTestSelection(pool)
	for what, name := range map[string]string{
		"a made-up id":                    "anybody",
		"a stamp by another key":          stamp.NewKey([]byte("x")).Stamp(bokehtest.Ring[0].Tag("u0:80")),
		"a stamp that names another site": bokehtest.Stamp("elsewhere:80"),
	} {
		for how, newRequest := range namings(name) {
			went := map[string]bool{}
			for range 100 {
				addr, why := newRequest(s).choose(pool)
				if why != "shared" {
					t.Fatalf("%s, %s: %s", what, how, why)
				}
				went[addr] = true
			}
			if len(went) != 5 {
				t.Errorf("%s, %s: only %v are asked", what, how, went)
			}
		}
	}
}

// A session at a draining server still has its files, where it is known to live. A stamp alone, which does not say what the
// session is called, draws nobody there.
func TestFilesOfASessionThatDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s, another := newTestSelection(pool), newTestSelection(pool)
		home, token := landed(t, s, pool)
		defer drainUpstream(s, home)()
		defer drainUpstream(another, home)()
		for name, newRequest := range namings(bokeh.ReadToken(token, bokehtest.Ring).ID) {
			r := newRequest(s)
			addr, why := r.choose(pool)
			if want := r.visit().ID != ""; (addr == home) != want || (why == "bound") != want {
				t.Errorf("%s: %s at %s, which drains", name, why, addr)
			}
			if addr, why := newRequest(another).choose(pool); addr == home || why != "shared" {
				t.Errorf("%s through a node that does not know of it: %s at %s, which drains", name, why, addr)
			}
		}
	})
}

// Where the server of a session is lost, any other is asked, and the session does not move for it.
func TestFilesOfALostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		for name, newRequest := range namings(bokeh.ReadToken(token, bokehtest.Ring).ID) {
			r := newRequest(s)
			r.choose(pool)
			r.refuse()
			if addr, why := r.choose(pool); addr == home || why != "shared" {
				t.Errorf("%s: %s at %s, which refuses", name, why, addr)
			}
			r.end()
			s.members.get(home).Dialed(0, s.table.Now(), breaker.Backoff, nil)
		}
		if n := s.members.get(home).Slots.Sessions.Load(); n != 1 {
			t.Errorf("%d sessions are at the server that was lost, want the one", n)
		}
	})
}
