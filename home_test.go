// This file tests where sessions are bound, and where they go if that is lost.

package caddybokeh

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// A new process, here another config with an empty table, finds the session by its stamp.
func TestBoundAfterRestart(t *testing.T) {
	for name, options := range map[string]string{
		"stored key": "",
		"own key":    "secret_key k",
		"new key":    "secret_key k",
		"beside":     "session_ids signed",
	} {
		t.Run(name, func(t *testing.T) {
			servers, addrs := three(t)
			if name == "beside" {
				for _, b := range servers {
					b.ids, b.secret = sessionIDsSigned, stamp.NewKey([]byte("theirs"))
				}
			}
			storage := storageDir(t)
			config := "reverse_proxy " + addrs + " {\n lb_policy bokeh {\n %s\n }\n}"
			s := serveFrom(t, storage, fmt.Sprintf(config, options))
			var pages []page
			for range 9 {
				pages = append(pages, s.get("/app"))
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			if name == "new key" {
				options = "secret_key new k"
			}
			s = serveFrom(t, storage, fmt.Sprintf(config, options))
			for _, p := range pages {
				if w := s.open(p.Token); w.server != p.Server {
					t.Errorf("page by %s, socket by %s", p.Server, w.server)
				}
			}
			if n := runs(servers); n != 9 {
				t.Errorf("9 visits ran the app %d times", n)
			}
		})
	}
}

// A session whose server is lost moves: on this request if it is retried, else on the next. It
// stays where it moved, on other nodes too, also when its first server is back.
func TestLostSessionMoves(t *testing.T) {
	for name, retry := range map[string]string{
		"retried":     " lb_try_duration 5s\n lb_try_interval 1ms\n",
		"not retried": "",
	} {
		t.Run(name, func(t *testing.T) {
			servers, addrs := three(t)
			storage := storageDir(t)
			config := "reverse_proxy " + addrs + " {\n lb_policy bokeh\n header_up X-A b\n" + retry + "}"
			s := serveFrom(t, storage, config)
			p, w := s.visit()
			home := at(servers, p.Server)
			home.stop()
			w.Close()
			soonCounts(t, "unused at home", p.Server, tally{0, 0, 0, 1})

			moved := s.open(p.Token)
			if retry == "" {
				if moved.status != http.StatusBadGateway {
					t.Errorf("first try: %d", moved.status)
				}
				moved = s.open(p.Token)
			}
			if moved.status != http.StatusSwitchingProtocols || moved.server == p.Server {
				t.Fatalf("status %d at %s", moved.status, moved.server)
			}
			soonCounts(t, "moved", moved.server, tally{0, 0, 1, 0})
			soonCounts(t, "left", p.Server, tally{})

			newBokeh(t, p.Server) // it is back, without the session
			if again := s.open(p.Token); again.server != moved.server {
				t.Errorf("a later socket went to %s, want %s", again.server, moved.server)
			}
		})
	}
}

// Another node finds by itself where a session has moved.
func TestLostSessionMovesAlikeOnAllNodes(t *testing.T) {
	servers, addrs := three(t)
	storage := storageDir(t)
	config := "reverse_proxy " + addrs + " {\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n}"
	s := serveFrom(t, storage, config)
	var pages []page
	for range 15 {
		pages = append(pages, s.get("/app"))
	}
	servers[0].stop()
	moved := map[string]string{}
	for _, p := range pages {
		w := s.open(p.Token)
		moved[p.Token] = w.server
		if stays := p.Server != servers[0].addr(); stays != (w.server == p.Server) {
			t.Errorf("a session of %s went to %s", p.Server, w.server)
		}
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s = serveFrom(t, storage, config)
	for _, p := range pages {
		if w := s.open(p.Token); w.server != moved[p.Token] {
			t.Errorf("moved to %s on one node, to %s on another", moved[p.Token], w.server)
		}
	}
}

// A server that takes no connection in time may be busy with a page, while more than its system lets wait. New sessions go elsewhere at
// once, its own only when that has lasted for a minute.
func TestBusyServerIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		late := func(r *request) {
			r.visit().dialed(r.visit().attempt, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded})
			r.badGateway()
			synctest.Wait()
		}
		socketAt := func(when, want string) {
			t.Helper()
			r := newSocket(s, token)
			if addr, why := r.choose(pool); (addr == home) != (want == "bound") || why != want {
				t.Errorf("%s: %s at %s, home is %s", when, why, addr, home)
			}
			late(r)
		}
		socketAt("before", "bound")
		for range 20 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == home {
				t.Fatal("a new session went to an upstream that takes no connection")
			}
			r.end()
		}
		for i := range 11 {
			time.Sleep(5 * time.Second)
			socketAt(fmt.Sprint("for ", 5*(i+1), " s"), "bound")
		}
		there := newSocket(s, token)
		there.choose(pool)
		there.visit().connected(there.visit().attempt)
		there.end()
		synctest.Wait()
		for i := range 12 {
			time.Sleep(5 * time.Second)
			socketAt(fmt.Sprint("for ", 5*i, " s since it was there"), "bound")
		}
		time.Sleep(6 * time.Second)
		socketAt("for a minute", "moved")
	})
}

// A full upstream still takes its own sessions.
func TestFullUpstreamKeepsItsSessions(t *testing.T) {
	pool := testPool(2)
	s := newTestSelection(pool)
	ring := *s.ring.Load()
	stamp := ring[0].Stamp(ring[0].Tag("u1:80"))
	pool[1].MaxRequests = -1
	if addr, why := newSocket(s, bokehtest.Token(t, stamp, nil)).choose(pool); addr != "u1:80" || why != "bound" {
		t.Errorf("%s at %s", why, addr)
	}
}

func TestForeignIDs(t *testing.T) {
	pool := testPool(5)
	one, two := newTestSelection(pool), newTestSelection(testPool(5))
	count := map[string]int{}
	for i := range 200 {
		id := fmt.Sprint("id-", i)
		page := newRequest(one, "/app", bokeh.SessionIDHeader, id)
		addr, why := page.choose(pool)
		if why != "new" {
			t.Fatalf("decision %s", why)
		}
		count[addr]++
		page.end()
		// Its socket finds it through another node as well, by the id alone.
		if there, _ := newSocket(two, bokehtest.Token(t, id, nil)).choose(two.static); there != addr {
			t.Errorf("page at %s, socket at %s", addr, there)
		}
	}
	for addr, n := range count {
		if n < 20 || n > 60 {
			t.Errorf("%s has %d of 200 sessions", addr, n)
		}
	}
	if len(count) != 5 {
		t.Errorf("only %d of 5 upstreams are used", len(count))
	}
}

// A client names a session of ours whose server is lost, to a stack that makes ids of its own: the socket goes where
// the page went, on every node.
func TestOldIDOfAStackThatIgnoresIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		old := bokeh.ReadToken(token, bokehtest.Ring).ID
		page := newRequest(s, "/app", bokeh.SessionIDHeader, old)
		page.choose(pool)
		page.refuse()
		there, _ := page.choose(pool)
		page.answer(200)
		if there == home {
			t.Fatal("the page stays at the server that refuses it")
		}
		if got := page.Header.Get(bokeh.SessionIDHeader); got != old {
			t.Errorf("the upstream sees another id than the client sent: %q", got)
		}
		packed := bokehtest.Token(t, "made-by-the-stack", map[string]any{bokeh.SessionIDHeader: old, bokeh.StampHeader: page.Header.Get(bokeh.StampHeader)})
		for name, node := range map[string]*Selection{"this node": s, "another": newTestSelection(pool)} {
			if addr, _ := newSocket(node, packed).choose(pool); addr != there {
				t.Errorf("%s: page at %s, socket at %s", name, there, addr)
			}
		}
	})
}

// A client names a session of ours whose server drains: the page goes elsewhere, and so does its socket through another
// Caddy, though the session's id names the draining server.
func TestOldIDOfADrainingUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		one, two := newTestSelection(pool), newTestSelection(pool)
		old := bokehtest.Stamp("u0:80")
		for _, s := range []*Selection{one, two} {
			defer drainUpstream(s, "u0:80")()
		}
		page := newRequest(one, "/app", bokeh.SessionIDHeader, old)
		there, _ := page.choose(pool)
		page.answer(200)
		if there == "u0:80" {
			t.Fatal("the page goes to the draining server")
		}
		token := bokehtest.Token(t, old, map[string]any{bokeh.SessionIDHeader: old, bokeh.StampHeader: page.Header.Get(bokeh.StampHeader)})
		for name, node := range map[string]*Selection{"this node": one, "another": two} {
			if addr, _ := newSocket(node, token).choose(pool); addr != there {
				t.Errorf("%s: page at %s, socket at %s", name, there, addr)
			}
		}
	})
}

// One id on two sites is two sessions, and each site sees only its own pool.
func TestOneForeignIDOnTwoSites(t *testing.T) {
	inner, outer := testPool(1), reverseproxy.UpstreamPool{{Host: new(reverseproxy.Host), Dial: "public:80"}}
	a, b := newTestSelection(inner), newTestSelection(outer)
	b.attach(a.table)
	b.owner = a.table.newOwner(false)
	b.knowPool(&reverseproxy.Handler{Upstreams: outer})
	token := bokehtest.Token(t, "shared-id", nil)
	if addr, _ := newSocket(a, token).choose(inner); addr != "u0:80" {
		t.Errorf("inner site: %s", addr)
	}
	if addr, _ := newSocket(b, token).choose(outer); addr != "public:80" {
		t.Errorf("outer site: %s", addr)
	}
	if addr, _ := newSocket(a, token).choose(inner); addr != "u0:80" {
		t.Errorf("inner site again: %s", addr)
	}
}

// A reload that takes an upstream off loses no session there: not while the config before is still ending, nor where another
// site has the upstream.
func TestReloadThatTakesOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		before := newTestSelection(pool)
		_, token := landed(t, before, pool[:1])
		after := newTestSelectionWith(before.table, pool[1:])
		other := newTestSelection(pool[:1])
		other.attach(before.table)
		other.owner = before.table.newOwner(false)
		other.knowPool(&reverseproxy.Handler{Upstreams: pool[:1]})
		for range 3 {
			r := newSocket(after, token)
			if addr, why := r.choose(pool[1:]); addr != u0 || why != "bound" {
				t.Errorf("after the reload it is %s at %s", why, addr)
			}
			r.answer(http.StatusSwitchingProtocols)
			synctest.Wait()
		}
	})
}

// Also where the sites share some upstreams: each finds its own session, the same on every node.
func TestOneForeignIDOnTwoSitesThatShare(t *testing.T) {
	both, one := testPool(2), testPool(2)[1:]
	a, b := newTestSelection(both), newTestSelection(one)
	b.attach(a.table)
	b.owner = a.table.newOwner(false)
	b.knowPool(&reverseproxy.Handler{Upstreams: one})
	moved := 0
	for i := range 50 {
		token := bokehtest.Token(t, fmt.Sprint("id-", i), nil)
		before, _ := newSocket(a, token).choose(both)
		newSocket(b, token).choose(one)
		if after, _ := newSocket(a, token).choose(both); after != before {
			moved++
		}
	}
	if moved > 0 {
		t.Errorf("%d of 50 sessions of one site were moved by the other", moved)
	}
}

// A stamp that names an upstream that is gone, and one by a key that is, lead to the same
// upstream on every node.
func TestStampThatNamesNobody(t *testing.T) {
	pool := testPool(4)
	for name, stamp := range map[string]string{
		"gone":        bokehtest.Stamp("gone:80"),
		"another key": stamp.NewKey([]byte("x")).Stamp(stamp.Tag{}),
	} {
		first := ""
		for range 3 {
			addr, _ := newSocket(newTestSelection(pool), bokehtest.Token(t, stamp, nil)).choose(pool)
			if first == "" {
				first = addr
			}
			if addr == "" || addr != first {
				t.Errorf("%s: %q, then %q", name, first, addr)
			}
		}
	}
}
