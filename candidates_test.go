// This file tests upstreams that come and go.

package caddybokeh

import (
	"crypto/rand"
	"fmt"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
)

func TestDialOfUnixSocket(t *testing.T) {
	path := t.TempDir() + "/bokeh.sock"
	b := newBokeh(t, path)
	s := serve(t, "reverse_proxy unix/"+path+" {\n lb_policy bokeh\n}")
	if p, w := s.visit(); p.Server != w.server || p.Server != b.addr() {
		t.Errorf("page by %q, socket by %q", p.Server, w.server)
	}
	if got := sessionsOf("unix/" + path); got != (tally{0, 0, 1, 0}) {
		t.Errorf("sessions %v", got)
	}
}

func TestPlaceholderInAddress(t *testing.T) {
	a, b := newBokeh(t, ""), newBokeh(t, "")
	s := serve(t, "reverse_proxy {query.a} {query.b} {\n lb_policy bokeh\n}")
	q := "?" + url.Values{"a": {a.addr()}, "b": {b.addr()}}.Encode()
	for range 6 {
		p := s.get("/app" + q)
		w, err := s.tryOpen("/app/ws"+q, "bokeh, "+p.Token)
		if err != nil || w.server != p.Server {
			t.Errorf("page by %q, socket by %q, %v", p.Server, w.server, err)
		}
	}
	if n := runs([]*bokehServer{a, b}); n != 6 {
		t.Errorf("6 visits ran the app %d times", n)
	}
}

// A dynamic source makes new upstreams for every attempt; sessions and failures are known by name.
func TestPoolThatChangesAtEveryAttempt(t *testing.T) {
	s := newTestSelection(nil)
	page := newRequest(s, "/app")
	home, _ := page.choose(testPool(3))
	page.answer(200)
	for range 10 {
		r := newSocket(s, bokehtest.Token(t, page.stamp(), nil))
		if addr, why := r.choose(testPool(3)); addr != home || why != "bound" {
			t.Errorf("%s at %s, home is %s", why, addr, home)
		}
		r.end()
	}
	r := newSocket(s, bokehtest.Token(t, page.stamp(), nil))
	r.choose(testPool(3))
	r.refuse()
	if addr, why := r.choose(testPool(3)); addr == home || why != "moved" {
		t.Errorf("%s at %s, home is %s", why, addr, home)
	}
}

// An upstream that has left a discovered pool gets no new session, keeps those it has until they end, and is then forgotten.
// Back in the pool it is as before.
func TestGoneUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(nil)
		discovers(s)
		home, token := landed(t, s, testPool(1))
		rest := func() reverseproxy.UpstreamPool { return testPool(3)[1:] }
		for range 20 {
			r := newRequest(s, "/app")
			if addr, why := r.choose(rest()); addr == home || why != "new" {
				t.Fatalf("a new session is %s at %s, which is gone", why, addr)
			}
			r.end()
			if addr, _ := newRequest(s, "/static/x.js").choose(rest()); addr == home {
				t.Fatal("a file was asked of an upstream that is gone")
			}
			if addr, _ := newRequest(s, "/app", bokeh.SessionIDHeader, rand.Text()).choose(rest()); addr == home {
				t.Fatal("a foreign id went to an upstream that is gone")
			}
		}
		open := newSocket(s, token)
		if addr, why := open.choose(rest()); addr != home || why != "bound" {
			t.Errorf("its own session is %s at %s, home is %s", why, addr, home)
		}
		if addr, why := newRequest(s, "/app", bokeh.SessionIDHeader, bokehtest.Stamp("u0:80")).choose(rest()); addr == home {
			t.Errorf("a page with its stamp is %s at %s", why, addr)
		}
		time.Sleep(2 * memberTTL)
		newRequest(s, "/app").choose(append(rest(), &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "u9:80"}))
		if addr, why := newSocket(s, token).choose(rest()); addr != home || why != "bound" {
			t.Errorf("after %v its own session is %s at %s", 2*memberTTL, why, addr)
		}
		wantTally(t, "still connected", upstreamAt(s.table, home), tally{0, 0, 1, 0})
		for range 10 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(testPool(1)); addr != home {
				t.Error("back in the pool it gets no new session")
			}
			r.end()
		}
		synctest.Wait()
		wantTally(t, "back in the pool", upstreamAt(s.table, home), tally{0, 0, 1, 0})
	})
}

// A resolver that answers with one half of the fleet and then the other changes nothing for visitors.
func TestAlternatingPool(t *testing.T) {
	s := newTestSelection(nil)
	discovers(s)
	halves := []reverseproxy.UpstreamPool{testPool(4)[:2], testPool(4)[2:]}
	var pages []*request
	for i := range 20 {
		r := newRequest(s, "/app")
		if addr, _ := r.choose(halves[i%2]); addr == "" {
			t.Fatal("no upstream for a page")
		}
		pages = append(pages, r)
		r.answer(200)
	}
	for i, p := range pages {
		for _, half := range halves {
			tg, k, _ := bokehtest.Ring.Verify(p.stamp())
			addr, why := newSocket(s, bokehtest.Token(t, p.stamp(), nil)).choose(half)
			if k.Tag(addr) != tg || why != "bound" {
				t.Errorf("visit %d: %s at %s", i, why, addr)
			}
		}
	}
}

// What a source finds for one request may be somebody else's: a token of one site opens no door on another.
func TestGoneUpstreamOfAnotherSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(nil)
		s.knowPool(&reverseproxy.Handler{DynamicUpstreamsRaw: []byte(`{"source":"a","name":"{http.request.host}"}`)})
		home, token := landed(t, s, testPool(1))
		if addr, _ := newSocket(s, token).choose(testPool(3)[1:]); addr == home {
			t.Errorf("another site's token led to %s", addr)
		}
	})
}

func TestEmptyPoolIsNoInformation(t *testing.T) {
	s := newTestSelection(nil)
	if addr, _ := newRequest(s, "/app").choose(nil); addr != "" {
		t.Errorf("%s of a pool that was always empty", addr)
	}
	discovers(s)
	newRequest(s, "/app").choose(testPool(2))
	if addr, _ := newRequest(s, "/app").choose(nil); addr == "" {
		t.Error("an empty pool after a good one serves nobody")
	}
}

// Clients that can make up addresses must not make the process grow.
func TestMembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := testPool(1)
		s := newTestSelection(kept)
		for i := range 3 * maxMembers {
			time.Sleep(time.Microsecond)
			s.members.get(fmt.Sprintf("made-up-%d:80", i))
		}
		if _, n := s.table.Size(); n > maxMembers+1 {
			t.Errorf("%d upstreams are known", n)
		}
		if _, ok := s.members.byDial.Load(kept[0].Dial); !ok {
			t.Error("the upstream of the config was forgotten")
		}
		time.Sleep(memberTTL + time.Minute)
		s.members.get("one-more:80")
		if _, n := s.table.Size(); n != 2 {
			t.Errorf("after a while %d upstreams are known, want 2", n)
		}
		if err := s.Cleanup(); err != nil {
			t.Fatal(err)
		}
		s.members.get("late:80")
		wantEmpty(t, s.table, 0)
	})
}
