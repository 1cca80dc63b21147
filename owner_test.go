// This file tests whose sessions are whose over a reload.

package caddybokeh

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// poolOf returns a pool of the given upstreams.
func poolOf(dials ...string) (pool reverseproxy.UpstreamPool) {
	for _, dial := range dials {
		pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
	}
	return pool
}

// loaded returns the policies of a config that is loaded, one for each pool.
func loaded(tb *table, pools ...reverseproxy.UpstreamPool) (policies []*Selection) {
	for i, pool := range pools {
		s := newTestSelection(pool)
		s.attach(tb)
		s.owner = tb.newOwner(i == 0)
		s.knowPool(&reverseproxy.Handler{Upstreams: pool})
		policies = append(policies, s)
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
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tb := newTable()
				before := loaded(tb, tc.before...)
				_, token := landed(t, before[0], tc.before[0][:1])
				after := loaded(tb, tc.after...)
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

// Where a pool is replaced as a whole its sessions are still found, unless another site has their server by now.
func TestPoolIsReplaced(t *testing.T) {
	for name, tc := range map[string]struct {
		other reverseproxy.UpstreamPool
		want  string
	}{"by others": {poolOf("z:1"), "blue:1"}, "and given to another site": {poolOf("blue:1"), "green:1"}} {
		synctest.Test(t, func(t *testing.T) {
			tb := newTable()
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
		tb := newTable()
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
func discovering(tb *table, first bool, name string) *Selection {
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
	r.run().connected(r.run().attempt)
	r.run().firstByteCame(r.run().attempt)
}

// Where the websockets of a site have a handler of their own, both find the sessions of a server that its source does not find any more.
func TestTwoHandlersOfOneSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		pages, sockets, other := discovering(tb, true, "app"), discovering(tb, false, "app"), discovering(tb, false, "of-another-site")
		both, one := poolOf("10.0.0.1:80", "10.0.0.2:80"), poolOf("10.0.0.2:80")
		newRequest(pages, "/static/x.js").choose(both)
		_, token := landed(t, pages, both[:1])
		socket := newSocket(sockets, token)
		socket.wantAt(t, both, "10.0.0.1:80", "its websocket")
		socket.open()
		newRequest(pages, "/app?bokeh-session-id="+readToken(token, testRing).id).wantAt(t, one, "10.0.0.1:80", "a page of it")
		newSocket(other, token).wantAt(t, one, "10.0.0.2:80", "its token, at another site whose source finds the same just now,")
		socket.end()
		time.Sleep(2 * time.Minute)
	})
}

// Both find also those of a server that a reload takes off.
func TestTwoHandlersOverAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		before := loaded(tb, poolOf("a:1", "b:1"), poolOf("a:1", "b:1"), poolOf("c:1")) // pages, websockets, another site
		_, token := landed(t, before[0], before[0].static[:1])
		after := loaded(tb, poolOf("b:1"), poolOf("b:1"), poolOf("b:1", "c:1"))
		socket := newSocket(after[1], token)
		socket.wantAt(t, after[1].static, "a:1", "its websocket")
		socket.open()
		newRequest(after[0], "/app?bokeh-session-id="+readToken(token, testRing).id).wantAt(t, after[0].static, "a:1", "a page of it")
		if addr, why := newSocket(after[2], token).choose(after[2].static); addr == "a:1" {
			t.Errorf("another site leads there: %s", why)
		}
		socket.end()
		time.Sleep(2 * time.Minute)
	})
}
