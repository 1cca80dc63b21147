// This file tests what connections tell, and what counts of attempts that fail.

package caddybokeh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

func TestNewSessionSurvivesDeadUpstreams(t *testing.T) {
	for name, extra := range map[string]string{
		"":                       "",
		"with header operations": " header_up X-A b\n",
	} {
		t.Run(name, func(t *testing.T) {
			alive := newBokeh(t, "")
			dead := []string{deadAddr(t), deadAddr(t), deadAddr(t)}
			s := serve(t, "reverse_proxy "+strings.Join(dead, " ")+" "+alive.addr()+
				" {\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n"+extra+"}")
			for range 5 {
				p, w := s.visit()
				// The stamp that reached the server is the fresh one, which names it.
				stamp := alive.lastPage().Get(bokeh.SessionIDHeader)
				ring := *activeRing(t)
				tg, k, ok := ring.Verify(stamp)
				if !ok || tg != k.Tag(sharedName(upstreamName(alive.addr()))) {
					t.Errorf("the server got the stamp %q", stamp)
				}
				if bokeh.ReadToken(p.Token, ring).Stamp != stamp {
					t.Error("the token does not carry the stamp")
				}
				w.Close()
			}
			for _, addr := range dead {
				if got := sessionsOf(addr); got != (tally{}) {
					t.Errorf("a dead upstream has the sessions %v", got)
				}
			}
			soonCounts(t, "all unused", alive.addr(), tally{0, 0, 0, 5})
		})
	}
}

// Without retries the failed dial of one visit tells the next one.
func TestDeadUpstreamIsPassedOver(t *testing.T) {
	for name, tc := range map[string]struct {
		dead  func() string
		proxy string
	}{
		"refuses":   {dead: func() string { return deadAddr(t) }},
		"is no TLS": {func() string { return newBokeh(t, "").addr() }, " transport http {\n tls_insecure_skip_verify\n }\n"},
	} {
		t.Run(name, func(t *testing.T) {
			alive := unstartedBokeh(t, "")
			if tc.proxy == "" {
				alive.Start()
			} else {
				alive.StartTLS()
			}
			s := serve(t, "reverse_proxy "+tc.dead()+" "+alive.addr()+" {\n lb_policy bokeh\n"+tc.proxy+"}")
			failed := 0
			for range 10 {
				if s.get("/app").status != http.StatusOK {
					failed++
				}
			}
			if failed > 1 {
				t.Errorf("%d of 10 visits failed, want at most the first", failed)
			}
		})
	}
}

func TestPoolOfOneRidesOutARestart(t *testing.T) {
	b := newBokeh(t, "")
	addr := b.addr()
	s := serve(t, "reverse_proxy "+addr+" {\n lb_policy bokeh\n lb_try_duration 10s\n lb_try_interval 10ms\n transport http {\n keepalive off\n }\n}") // one that was kept may break with a request on it
	p, w := s.visit()
	b.stop()
	w.Close()
	before := selectionsOf(addr)
	got := make(chan page, 2)
	go func() { got <- s.get("/app") }()
	opened := make(chan ws, 1)
	go func() { opened <- s.open(p.Token) }()
	soon(t, "both asked more than once", func() bool { return selectionsOf(addr) > before+2 })
	newBokeh(t, addr)
	if p := <-got; p.status != http.StatusOK {
		t.Errorf("page: %d", p.status)
	}
	if w := <-opened; w.status != http.StatusSwitchingProtocols {
		t.Errorf("socket: %d", w.status)
	}
}

func TestCountsOfTroubledPages(t *testing.T) {
	b := newBokeh(t, "")
	b.hold = make(chan struct{})
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.tryGet(ctx, "/app")
		done <- err
	}()
	soonCounts(t, "building", b.addr(), tally{1, 0, 0, 0})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	soonCounts(t, "aborted", b.addr(), tally{})

	close(b.hold)
	for _, status := range []int{http.StatusFound, http.StatusNotFound, http.StatusInternalServerError} {
		b.status.Store(int64(status))
		if p := s.get("/app"); p.status != status {
			t.Errorf("status %d, want %d", p.status, status)
		}
		soonCounts(t, fmt.Sprint("answered ", status), b.addr(), tally{})
	}
}

// Where another handler takes over the answer, its status is not that of the page.
func TestCountsOfAnAnswerTakenOver(t *testing.T) {
	for name, policy := range map[string]string{"the same": "bokeh", "another": "first"} {
		t.Run("by "+name+" policy", func(t *testing.T) {
			gone, other := newBokeh(t, ""), newBokeh(t, "")
			gone.status.Store(http.StatusGone)
			s := serve(t, "reverse_proxy "+gone.addr()+" {\n lb_policy bokeh\n @gone status 410\n handle_response @gone {\n"+
				" reverse_proxy "+other.addr()+" {\n lb_policy "+policy+"\n }\n }\n}")
			p := s.get("/app")
			if p.Server != other.addr() {
				t.Fatalf("%d by %q", p.status, p.Server)
			}
			if policy == "bokeh" {
				soonCounts(t, "page served", other.addr(), tally{0, 1, 0, 0})
			}
			soonCounts(t, "page gone", gone.addr(), tally{})
		})
	}
}

// A page is built when its first byte comes, however long the rest takes.
func TestBuildingEndsAtTheFirstByte(t *testing.T) {
	b := newBokeh(t, "")
	b.drip = make(chan struct{})
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n flush_interval -1\n}")
	got := make(chan page, 1)
	go func() { got <- s.get("/app") }()
	soonCounts(t, "first byte", b.addr(), tally{0, 1, 0, 0})
	close(b.drip)
	<-got
	soonCounts(t, "last byte", b.addr(), tally{0, 1, 0, 0})
}

func TestRetriesByNumber(t *testing.T) {
	alive := newBokeh(t, "")
	s := serve(t, "reverse_proxy "+deadAddr(t)+" "+deadAddr(t)+" "+alive.addr()+" {\n lb_policy bokeh\n lb_retries 2\n}")
	for range 5 {
		s.visit()
	}
	soonCounts(t, "all connected", alive.addr(), tally{0, 0, 5, 0})
}

// A site that asks servers for TLS which they do not speak must not move the sessions of another.
func TestOneSitesTLSIsNotAnothers(t *testing.T) {
	_, addrs := three(t)
	s := serve(t, "handle /two/* {\n reverse_proxy https://"+strings.ReplaceAll(addrs, " ", " https://")+" {\n lb_policy bokeh\n }\n}\n"+
		"handle {\n reverse_proxy "+addrs+" {\n lb_policy bokeh\n }\n}")
	var pages []page
	for range 6 {
		pages = append(pages, s.get("/app"))
	}
	for range 3 {
		if p := s.get("/two/app"); p.status != http.StatusBadGateway {
			t.Errorf("status %d", p.status)
		}
	}
	for _, p := range pages {
		if w := s.open(p.Token); w.server != p.Server {
			t.Errorf("page by %s, socket by %s", p.Server, w.server)
		}
	}
}

// An https upstream brings a header operation of its own, and another port.
func TestTLSUpstreams(t *testing.T) {
	var addrs []string
	var servers []*bokehServer
	for range 2 {
		b := unstartedBokeh(t, "")
		b.StartTLS()
		servers = append(servers, b)
		addrs = append(addrs, "https://"+b.addr())
	}
	s := serve(t, "reverse_proxy "+strings.Join(addrs, " ")+" https://"+deadAddr(t)+" {\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n"+
		" transport http {\n tls_insecure_skip_verify\n }\n}")
	for range 6 {
		s.visit()
	}
	if n := runs(servers); n != 6 {
		t.Errorf("6 visits ran the app %d times", n)
	}
}

// A server that hangs, or fails at once, has nothing to build and no sessions. It must not draw the visitors.
func TestPagesThatFailWeigh(t *testing.T) {
	for name, fail := range map[string]func(*request){
		"hangs": func(r *request) { r.visit().connected(r.visit().attempt); time.Sleep(10 * time.Second); r.end() },
		"fails": func(r *request) { r.answer(500) },
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			bad := 0
			for range 30 {
				r := newRequest(s, "/app")
				if addr, _ := r.choose(pool); addr == "u0:80" {
					bad++
					go fail(r)
				} else {
					r.answer(200)
				}
				time.Sleep(time.Second)
			}
			if bad > 4 {
				t.Errorf("%s: %d of 30 visits in half a minute went to it", name, bad)
			}
			time.Sleep(time.Minute)
			for _, m := range s.index.Load().all {
				if m.Backlog() != 0 {
					t.Errorf("%s: a minute later %d pages weigh at %s", name, m.Backlog(), m.Name)
				}
			}
		})
	}
}

func TestRetriesOfANewSession(t *testing.T) {
	pool := testPool(3)
	s := newTestSelection(pool)
	r := newRequest(s, "/app")
	seen := map[string]bool{}
	stamps := map[string]bool{}
	for range 3 {
		addr, _ := r.choose(pool)
		tg, k, ok := bokehtest.Ring.Verify(r.stamp())
		if !ok || tg != k.Tag(addr) {
			t.Errorf("the stamp does not name %s", addr)
		}
		seen[addr], stamps[r.stamp()] = true, true
		r.refuse()
	}
	if len(seen) != 3 || len(stamps) != 3 {
		t.Errorf("3 attempts at %d upstreams with %d stamps", len(seen), len(stamps))
	}
	if addr, _ := r.choose(pool); addr == "" {
		t.Error("with all tried it does not start over")
	}
	total := int64(0)
	for _, m := range s.index.Load().all {
		total += m.Slots.Sessions.Load()
	}
	if total != 1 {
		t.Errorf("one request weighs %d", total)
	}
}

// Where every server has just refused a connection, each may be back: nobody is turned away.
func TestAllUpstreamsFailing(t *testing.T) {
	for name, pool := range map[string]reverseproxy.UpstreamPool{"pool of one": testPool(1), "pool of three": testPool(3)} {
		s := newTestSelection(pool)
		for _, m := range s.candidatesIn(pool, nil) {
			m.Dialed(0, s.table.Now(), breaker.Backoff, fmt.Errorf("connection refused"))
		}
		home := pool[len(pool)-1].Dial
		for what, r := range map[string]*request{
			"new page":                newRequest(s, "/app"),
			"page of a foreign id":    newRequest(s, "/app", bokeh.SessionIDHeader, "x"),
			"socket of a foreign id":  newSocket(s, bokehtest.Token(t, "x", nil)),
			"stamp that names nobody": newSocket(s, bokehtest.Token(t, bokehtest.Stamp("gone:80"), nil)),
			"static file":             newRequest(s, "/static/x.js"),
		} {
			if addr, _ := r.choose(pool); addr == "" {
				t.Errorf("%s: no upstream for a %s", name, what)
			}
		}
		if addr, why := newSocket(s, bokehtest.Token(t, bokehtest.Stamp(home), nil)).choose(pool); addr != home || why != "bound" {
			t.Errorf("%s: a session of %s is %s at %s", name, home, why, addr)
		}
	}
}

// A resolver that fails for two minutes changes nothing for visitors: who is there stays, also at an upstream that it had
// ceased to find before, and who comes is spread over those that it found last.
func TestResolverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(nil)
		discovers(s)
		homes := map[string]string{} // of the sessions, by their tokens
		visit := func(pool reverseproxy.UpstreamPool) (home string) {
			home, token := landed(t, s, pool)
			homes[token] = home
			return home
		}
		visit(testPool(1)) // u0 is gone after that
		found := func() reverseproxy.UpstreamPool { return testPool(3)[1:] }
		for range 4 {
			visit(found())
		}
		// Every browser loses its connection and comes back.
		comeBack := func(pool reverseproxy.UpstreamPool) {
			t.Helper()
			for token, home := range homes {
				r := newSocket(s, token)
				if addr, why := r.choose(pool); addr != home || why != "bound" {
					t.Errorf("at %s a session of %s is %s at %s", time.Now().Format(time.TimeOnly), home, why, addr)
				}
				r.answer(http.StatusSwitchingProtocols)
			}
			synctest.Wait()
		}
		comeBack(found())
		news := map[string]int{}
		for range 6 {
			time.Sleep(20 * time.Second)
			for range 4 {
				news[visit(nil)]++
			}
			if addr, why := newRequest(s, "/static/js/bokeh.js").choose(nil); addr == "" || addr == "u0:80" || why != "shared" {
				t.Errorf("a file is %s at %q", why, addr)
			}
			comeBack(nil)
		}
		if news["u1:80"] != 12 || news["u2:80"] != 12 {
			t.Errorf("the new sessions are at %v", news)
		}
		time.Sleep(20 * time.Second)
		comeBack(found())
	})
}

// What a handler before us left behind must not be taken for an answer to us.
func TestStatusOfAnEarlierHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.repl.Set(placeholderStatus, 200)
		r.choose(pool)
		r.refuse()
		r.end()
		synctest.Wait()
		wantTally(t, "failed", s.index.Load().all[0].Upstream, tally{})
	})
}

// The next request knows of a failed dial at once, not when the first one has been told; but a name of which one address
// takes the connection has not failed.
func TestFailedDialIsKnownAtOnce(t *testing.T) {
	for _, tc := range []struct {
		addrs, failures int
		want            bool
	}{{0, 1, true}, {1, 1, true}, {2, 1, false}, {2, 2, true}} {
		pool := testPool(1)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.choose(pool)
		v := r.visit()
		if tc.addrs > 0 {
			v.lookedUp(v.attempt, httptrace.DNSDoneInfo{Addrs: make([]net.IPAddr, tc.addrs)})
		}
		for range tc.failures {
			r.refuse()
		}
		m := s.index.Load().all[0].member
		if got := m.failing(s.table.Now()); got != tc.want {
			t.Errorf("%d of %d addresses: failing is %v, want %v", tc.failures, tc.addrs, got, tc.want)
		}
		v.failed()
		if !m.failing(s.table.Now()) {
			t.Errorf("%d of %d addresses, attempt over: not failing", tc.failures, tc.addrs)
		}
		v.connected(v.attempt)
		if m.failing(s.table.Now()) {
			t.Errorf("%d of %d addresses, then connected: failing", tc.failures, tc.addrs)
		}
	}
}

// Hooks of a connection can be called long after the attempt is over.
func TestLateHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.choose(pool)
		first := r.visit().attempt
		r.refuse()
		r.choose(pool)
		r.visit().firstByteCame(first)
		r.visit().dialed(first, fmt.Errorf("late"))
		if second := r.visit().attempt.m; second.failing(s.table.Now()) || second.Count(sessions.Building) != 1 {
			t.Error("a late hook of the first attempt tells on the second")
		}
		r.answer(200)
		synctest.Wait()
		r.visit().firstByteCame(r.visit().attempt)
		time.Sleep(testLifetime + 2*time.Second)
		wantEmpty(t, s.table, 2)
	})
}
