// This file tests whose sessions are whose over a reload.

package caddybokeh

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
)

// poolOf returns a pool of the given upstreams.
func poolOf(dials ...string) (pool reverseproxy.UpstreamPool) {
	for _, dial := range dials {
		pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
	}
	return pool
}

// loaded returns the policies of a config that is loaded, one for each pool.
func loaded(tb *ledger, pools ...reverseproxy.UpstreamPool) (policies []*Selection) {
	for i, pool := range pools {
		s := newTestSelection(pool)
		s.attach(tb)
		s.owner = tb.newOwner(i == 0)
		s.knowPool(&reverseproxy.Handler{Upstreams: pool})
		policies = append(policies, s)
	}
	return policies
}

// standing gives each policy of a config a place of its own, the same in each config.
func standing(policies []*Selection) []*Selection {
	for i, s := range policies {
		s.owner.place[0] = byte(1 + i)
	}
	return policies
}

// A session of one site leads no visitor of another one to its server, not after a reload either; and its own site still finds it.
// The sites have one host, port and path, as where handle_path or a matcher of addresses tells them apart.
func TestReloadOpensNoDoor(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after []reverseproxy.UpstreamPool // of the site that has the session, and of another
		own           string                      // where its own site looks for it
	}{
		"nothing changes":              {[]reverseproxy.UpstreamPool{poolOf("in:1"), poolOf("out:1", "out:2")}, []reverseproxy.UpstreamPool{poolOf("in:1"), poolOf("out:1", "out:2")}, "in:1"},
		"they share a server":          {[]reverseproxy.UpstreamPool{poolOf("in:1", "both:1"), poolOf("both:1", "out:1")}, []reverseproxy.UpstreamPool{poolOf("in:1", "both:1"), poolOf("both:1", "out:1")}, "in:1"},
		"it is taken off":              {[]reverseproxy.UpstreamPool{poolOf("in:1", "in:2"), poolOf("out:1")}, []reverseproxy.UpstreamPool{poolOf("in:2"), poolOf("out:1")}, "in:1"},
		"it is taken off and given to": {[]reverseproxy.UpstreamPool{poolOf("in:1", "in:2"), poolOf("out:1")}, []reverseproxy.UpstreamPool{poolOf("in:2"), poolOf("out:1", "in:1")}, "in:1"},
	} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", places known: ", known), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					tb := newLedger()
					before := loaded(tb, tc.before...)
					_, token := landed(t, before[0], tc.before[0][:1])
					after := loaded(tb, tc.after...)
					if known {
						standing(before)
						standing(after)
					}
					if addr, why := newSocket(after[0], token).choose(tc.after[0]); addr != tc.own {
						t.Errorf("its own site leads to %s: %s", addr, why)
					}
					for i, other := range []*Selection{before[1], after[1]} {
						pool := [][]reverseproxy.UpstreamPool{tc.before, tc.after}[i][1]
						if addr, why := newSocket(other, token).choose(pool); addr == "in:1" && !slices.ContainsFunc(pool, func(u *reverseproxy.Upstream) bool { return u.Dial == addr }) {
							t.Errorf("the other site, config %d, leads there: %s", i, why)
						}
					}
				})
			})
		}
	}
}

// Where a pool is replaced as a whole its sessions are still found, unless another site has their server by now.
func TestPoolIsReplaced(t *testing.T) {
	for name, tc := range map[string]struct {
		other reverseproxy.UpstreamPool
		want  string
	}{"by others": {poolOf("z:1"), "blue:1"}, "and given to another site": {poolOf("blue:1"), "green:1"}} {
		synctest.Test(t, func(t *testing.T) {
			tb := newLedger()
			before := loaded(tb, poolOf("blue:1"))
			_, token := landed(t, before[0], poolOf("blue:1"))
			after := loaded(tb, poolOf("green:1"), tc.other)
			if addr, why := newSocket(after[0], token).choose(after[0].static); addr != tc.want {
				t.Errorf("%s: it is %s at %s, want %s", name, why, addr, tc.want)
			}
			_ = before
		})
	}
}

// An address that another site's source has found since a reload to another source is that site's.
func TestAddressFoundSinceAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		before := discovering(tb, true, "app-v1")
		_, token := landed(t, before, poolOf("10.0.0.1:80"))
		open := newSocket(before, token)
		open.choose(poolOf("10.0.0.1:80"))
		after, other := discovering(tb, true, "app-v2"), discovering(tb, false, "of-another-site")
		newRequest(after, "/app").choose(poolOf("10.0.0.2:80"))
		newRequest(other, "/app").choose(poolOf("10.0.0.9:80"))
		time.Sleep(time.Minute)
		if err := before.Cleanup(); err != nil {
			t.Error(err)
		}
		if addr, why := newSocket(after, token).choose(poolOf("10.0.0.2:80")); addr != "10.0.0.1:80" {
			t.Errorf("while nobody else has its server it is %s at %s", why, addr)
		}
		newRequest(other, "/app").choose(poolOf("10.0.0.9:80", "10.0.0.1:80"))
		time.Sleep(time.Second)
		if addr, why := newSocket(after, token).choose(poolOf("10.0.0.2:80")); addr != "10.0.0.2:80" {
			t.Errorf("it is %s at %s, the server of another site", why, addr)
		}
	})
}

// discovering returns a policy whose upstreams a source finds, of a config of which it may be the first.
func discovering(tb *ledger, first bool, name string) *Selection {
	s := newTestSelection(nil)
	s.attach(tb)
	s.owner = tb.newOwner(first)
	s.knowPool(&reverseproxy.Handler{DynamicUpstreamsRaw: fmt.Appendf(nil, `{"source":"a","name":%q}`, name)})
	return s
}

// wantAt says whether a request of a session goes to an upstream.
func (r *request) wantAt(t *testing.T, pool reverseproxy.UpstreamPool, want, what string) {
	t.Helper()
	if addr, why := r.choose(pool); addr != want {
		t.Errorf("%s goes to %s, %s", what, addr, why)
	}
}

// open lets a websocket be opened.
func (r *request) open() {
	r.visit().connected(r.visit().attempt)
	r.visit().firstByteCame(r.visit().attempt)
}

// Where the websockets of a site have a handler of their own, both find the sessions of a server that its source does not find any more.
func TestTwoHandlersOfOneSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		pages, sockets, other := discovering(tb, true, "app"), discovering(tb, false, "app"), discovering(tb, false, "of-another-site")
		both, one := poolOf("10.0.0.1:80", "10.0.0.2:80"), poolOf("10.0.0.2:80")
		newRequest(pages, "/static/x.js").choose(both)
		_, token := landed(t, pages, both[:1])
		socket := newSocket(sockets, token)
		socket.wantAt(t, both, "10.0.0.1:80", "its websocket")
		socket.open()
		newRequest(pages, "/app?bokeh-session-id="+bokeh.ReadToken(token, bokehtest.Ring).ID).wantAt(t, one, "10.0.0.1:80", "a page of it")
		newSocket(other, token).wantAt(t, one, "10.0.0.2:80", "its token, at another site whose source finds the same just now,")
		socket.end()
		time.Sleep(2 * time.Minute)
	})
}

// Both find also those of a server that a reload takes off.
func TestTwoHandlersOverAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		before := loaded(tb, poolOf("a:1", "b:1"), poolOf("a:1", "b:1"), poolOf("c:1")) // pages, websockets, another site
		_, token := landed(t, before[0], before[0].static[:1])
		after := loaded(tb, poolOf("b:1"), poolOf("b:1"), poolOf("b:1", "c:1"))
		socket := newSocket(after[1], token)
		socket.wantAt(t, after[1].static, "a:1", "its websocket")
		socket.open()
		newRequest(after[0], "/app?bokeh-session-id="+bokeh.ReadToken(token, bokehtest.Ring).ID).wantAt(t, after[0].static, "a:1", "a page of it")
		if addr, why := newSocket(after[2], token).choose(after[2].static); addr == "a:1" {
			t.Errorf("another site leads there: %s", why)
		}
		socket.end()
		time.Sleep(2 * time.Minute)
	})
}

// A reload that replaces a server keeps its sessions, whatever other sites have. None of these is led there.
func TestReloadBesideOtherSites(t *testing.T) {
	for name, tc := range map[string]struct{ before, after, other, otherAfter []string }{
		"one of two is replaced, the other is another site's": {[]string{"s:1", "s:2"}, []string{"s:2", "s:3"}, []string{"s:2"}, []string{"s:2"}},
		"all are replaced, and have a name of their own":      {[]string{"blue:1"}, []string{"green:1"}, []string{"blue:1"}, []string{"blue:1"}},
		"all are replaced, at another site as well":           {[]string{"s:1", "s:2"}, []string{"s:3"}, []string{"s:2"}, []string{"s:4"}},
		"one of two is taken off":                             {[]string{"s:1", "s:2"}, []string{"s:2"}, []string{"s:2", "z:1"}, []string{"s:2", "z:1"}},
		"it is taken off here and another is added there":     {[]string{"s:1", "s:2"}, []string{"s:2"}, []string{"s:2"}, []string{"s:2", "s:3"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newLedger()
				before := standing(loaded(tb, poolOf(tc.before...), poolOf(tc.other...)))
				home, token := landed(t, before[0], before[0].static[:1])
				_, another := landed(t, before[0], before[0].static[:1])
				after := standing(loaded(tb, poolOf(tc.after...), poolOf(tc.otherAfter...)))
				if addr, why := newSocket(after[1], another).choose(after[1].static); addr == home && !slices.Contains(tc.otherAfter, home) {
					t.Errorf("another site leads there: %s", why)
				}
				newSocket(after[0], token).wantAt(t, after[0].static, home, "its token, at its own site,")
				time.Sleep(2 * time.Minute)
			})
		})
	}
}

// Where it is not known which policy stands where, the pools tell; and where these fit another one better, nobody follows.
func TestReloadInDoubt(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after, other, otherAfter []string
		place, otherPlace                byte // of after and otherAfter; before has 1, and other 2
		want                             []string
	}{
		"a server is replaced":                        {[]string{"in:1", "both:1"}, []string{"in:2", "both:1"}, []string{"both:1"}, []string{"both:1"}, 0, 0, []string{"both:1", "in:2"}},
		"the same, and another site is new":           {[]string{"in:1", "both:1"}, []string{"in:2", "both:1"}, nil, []string{"both:1"}, 1, 2, []string{"in:2", "both:1"}},
		"the sites change places":                     {[]string{"in:1", "in:2"}, []string{"in:2"}, []string{"out:1"}, []string{"out:1"}, 2, 1, []string{"in:1"}},
		"the same, and one is written in other words": {[]string{"in:1", "in:2"}, []string{"in:2"}, []string{"out:1"}, []string{"out:1"}, 3, 1, []string{"in:1"}},
		"all is replaced, and another site is new":    {[]string{"in:1"}, []string{"in:2"}, nil, []string{"out:1"}, 1, 2, []string{"in:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newLedger()
				before := standing(loaded(tb, poolOf(tc.before...), poolOf(tc.other...)))
				home, token := landed(t, before[0], before[0].static[:1])
				_, another := landed(t, before[0], before[0].static[:1])
				after := loaded(tb, poolOf(tc.after...), poolOf(tc.otherAfter...))
				after[0].owner.place[0], after[1].owner.place[0] = tc.place, tc.otherPlace
				if addr, why := newSocket(after[1], another).choose(after[1].static); addr == home {
					t.Errorf("the other site leads there: %s", why)
				}
				if addr, why := newSocket(after[0], token).choose(after[0].static); !slices.Contains(tc.want, addr) {
					t.Errorf("its own site leads to %s: %s, want one of %s", addr, why, tc.want)
				}
				time.Sleep(2 * time.Minute)
			})
		})
	}
}

// Of a config that has ended nothing is kept but what its sessions need, however many follow.
func TestOwnersAreForgotten(t *testing.T) {
	tb := newLedger()
	var old []weak.Pointer[config]
	for range 10 {
		policies := loaded(tb, poolOf("a:1", "b:1"), poolOf("b:1"))
		for _, s := range policies {
			r := newRequest(s, "/app?bokeh-session-id=given")
			r.choose(s.static)
			r.end()
		}
		old = append(old, weak.Make(policies[0].owner.config))
		for _, s := range policies {
			if err := s.Cleanup(); err != nil {
				t.Error(err)
			}
		}
	}
	soon(t, "all configs but the last one are forgotten", func() bool {
		runtime.GC()
		return !slices.ContainsFunc(old[:9], func(c weak.Pointer[config]) bool { return c.Value() != nil })
	})
	if len(tb.owners) > 0 {
		t.Errorf("%d owners are kept", len(tb.owners))
	}
}
