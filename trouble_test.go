// This file tests that upstreams which fail attract nobody, and are tried again with one visit at a time.

package caddybokeh

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// tryPage sends a visit, which serve plays at the upstream that is chosen.
func tryPage(s *Selection, pool reverseproxy.UpstreamPool, serve func(addr string, r *request)) {
	r := newRequest(s, "/app")
	addr, _ := r.choose(pool)
	serve(addr, r)
	r.end()
	synctest.Wait()
}

// A server that fails at once has nothing to build and no sessions. Each of these fails in its way
// for ten minutes, with a visit a second, and hardly anybody meets it. Then it is well again, and
// gets its share.
func TestFailingUpstreamAttractsNobody(t *testing.T) {
	const bad = "u0:80"
	for name, c := range map[string]struct {
		fail func(*request)
		most int // visits that meet it
	}{
		"refuses dials": {(*request).refuse, 15},
		"answers 500":   {func(r *request) { r.answer(http.StatusInternalServerError) }, 17},
		"hangs up": {func(r *request) {
			r.visit().connected(r.visit().attempt)
			r.repl.Set(placeholderErrorID, "x")
			r.repl.Set(placeholderErrorStatus, http.StatusBadGateway)
		}, 17},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			met := 0
			for range 600 {
				tryPage(s, pool, func(addr string, r *request) {
					if addr == bad {
						met++
						c.fail(r)
					} else {
						r.answer(http.StatusOK)
					}
				})
				time.Sleep(time.Second)
			}
			if met > c.most || met < 10 {
				t.Errorf("%s: %d of 600 visits met it, want 10 to %d", name, met, c.most)
			}
			met = 0
			for range 300 {
				tryPage(s, pool, func(addr string, r *request) {
					if addr == bad {
						met++
					}
					r.answer(http.StatusOK)
				})
				time.Sleep(time.Second)
			}
			if met < 60 {
				t.Errorf("%s: well again, it gets %d of 300 visits", name, met)
			}
		})
	}
}

// While one visit tries an upstream again, the others go elsewhere.
func TestOneVisitTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		tryPage(s, pool[:1], func(_ string, r *request) { r.refuse() })
		time.Sleep(breaker.Backoff)
		var slow []*request
		tries := 0
		for range 20 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == "u0:80" {
				tries++
			}
			slow = append(slow, r)
		}
		if tries != 1 {
			t.Errorf("%d of 20 visits try it, want 1", tries)
		}
		for _, r := range slow {
			r.end() // the visitors have gone: that says nothing
		}
		synctest.Wait()
		newRequest(s, "/app").choose(pool[1:]) // so that the other is busy
		r := newRequest(s, "/app")
		if addr, _ := r.choose(pool); addr != "u0:80" {
			t.Errorf("after a visitor who went away nobody tries it: the next visit goes to %s", addr)
		}
		r.answer(http.StatusOK)
		synctest.Wait()
		if m := s.members.get("u0:80"); m.isToBeSpared(s.table.Now()) || m.Breaker.State(s.table.Now()) == breaker.Probing {
			t.Error("it has answered, and is kept off")
		}
	})
}

// Where this handler takes care of another one's error, that says nothing of its upstreams.
func TestErrorOfAnotherHandler(t *testing.T) {
	for name, c := range map[string]struct {
		ends  string // the error that the request has when it ends
		keeps bool
	}{
		"client leaves": {"before", false},
		"page fails":    {"after", true},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			for range 10 {
				r := newRequest(s, "/app")
				before := caddyhttp.HandlerError{ID: "before", StatusCode: http.StatusBadGateway}
				r.Request = r.WithContext(context.WithValue(r.Context(), caddyhttp.ErrorCtxKey, error(before)))
				r.choose(pool)
				r.visit().connected(r.visit().attempt)
				r.repl.Set(placeholderErrorID, c.ends)
				r.repl.Set(placeholderErrorStatus, http.StatusBadGateway)
				r.end()
				synctest.Wait()
			}
			if got := s.members.get("u0:80").isToBeSpared(s.table.Now()); got != c.keeps {
				t.Errorf("%s: it is kept off: %t", name, got)
			}
		})
	}
}

// Bokeh answers 500 to an id that is empty, and whoever sends one must not take a server from others.
func TestNamedPagesCauseNoTrouble(t *testing.T) {
	for name, named := range map[string]func(s *Selection) *request{
		"empty id":           func(s *Selection) *request { return newRequest(s, "/app", bokeh.SessionIDHeader, "") },
		"empty argument":     func(s *Selection) *request { return newRequest(s, "/app?bokeh-session-id=") },
		"unreadable":         func(s *Selection) *request { return newRequest(s, "/app?bokeh-session-id=%ff") },
		"token that is none": func(s *Selection) *request { return newRequest(s, "/app?bokeh-token=x") },
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			for range 10 {
				r := named(s)
				r.choose(pool)
				r.answer(http.StatusInternalServerError)
				synctest.Wait()
			}
			if s.members.get("u0:80").isToBeSpared(s.table.Now()) {
				t.Errorf("%s: it is kept off", name)
			}
		})
	}
}

// A request that may fail by its own fault takes no server from others, nor the turn to try one from those who would.
func TestRequestsThatMayFail(t *testing.T) {
	for name, odd := range map[string]func(r *request){
		"a body of unknown length": func(r *request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), -1 },
		"a body":                   func(r *request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), 1 },
		"a long body": func(r *request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", 2*mostBody))), 2*mostBody
		},
		"a large header": func(r *request) { r.Header.Set("Cookie", strings.Repeat("x", plainHeader)) },
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(2)
			s := newTestSelection(pool)
			m := s.members.get("u0:80")
			for range 10 {
				r := newRequest(s, "/app")
				odd(r)
				r.choose(pool[:1])
				r.visit().connected(r.visit().attempt)
				r.repl.Set(placeholderErrorID, "x")
				r.repl.Set(placeholderErrorStatus, http.StatusBadGateway)
				r.end()
				synctest.Wait()
			}
			if m.Breaker.Tripped() {
				t.Errorf("%s: it is kept off", name)
			}
			m.Breaker.Failure(s.table.Now(), s.table.Now(), breaker.Backoff)
			time.Sleep(time.Minute)
			busy := newRequest(s, "/app")
			busy.choose(pool[1:])
			for range 5 {
				r := newRequest(s, "/app")
				odd(r)
				if addr, _ := r.choose(pool); addr != "u1:80" {
					t.Errorf("%s: it tries what has failed", name)
				}
			}
			if addr, _ := newRequest(s, "/app").choose(pool); addr != "u0:80" {
				t.Errorf("%s: the visit after it does not try what has failed", name)
			}
			time.Sleep(time.Minute)
		})
	}
}

// Over HTTP/3 nobody knows whether a request has a body, and a server that fails must be found out all the same.
func TestPagesOverHTTP3AreTaken(t *testing.T) {
	r := newRequest(newTestSelection(testPool(1)), "/app")
	r.ContentLength, r.ProtoMajor = -1, 3
	if r.visit().mayFail {
		t.Error("a page over HTTP/3 may fail by its own fault")
	}
}

// A visit that tries an upstream for ever, because its server hangs, does not keep the others off for ever.
func TestTrialThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		m := s.members.get("u0:80")
		m.Breaker.Failure(0, s.table.Now(), breaker.Backoff)
		time.Sleep(breaker.Backoff)
		newRequest(s, "/app").choose(pool[1:])
		hangs := newRequest(s, "/app")
		if addr, _ := hangs.choose(pool); addr != "u0:80" {
			t.Fatal("it is tried at ", addr)
		}
		time.Sleep(breaker.MaxBackoff - time.Second)
		for range 3 {
			if addr, _ := newRequest(s, "/app").choose(pool); addr != "u1:80" {
				t.Error("two try it at once")
			}
		}
		time.Sleep(time.Second)
		next := newRequest(s, "/app")
		if addr, _ := next.choose(pool); addr != "u0:80" {
			t.Fatal("after a minute nobody else tries it")
		}
		hangs.end() // which is not the one that tries any more
		synctest.Wait()
		if m.Breaker.State(s.table.Now()) != breaker.Probing {
			t.Error("the trial ended with that of another visit")
		}
		next.end()
		synctest.Wait()
		if m.Breaker.State(s.table.Now()) == breaker.Probing {
			t.Error("the trial goes on without a visit")
		}
		time.Sleep(time.Minute)
	})
}

// An operator reads once that a server fails, whatever number of visits meets it, and once that it is back.
func TestTroubleIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		core, logs := observer.New(zapcore.InfoLevel)
		s.logger = zap.New(core)
		for range 3 {
			for range 5 {
				tryPage(s, pool[:1], func(_ string, r *request) { r.refuse() })
			}
			time.Sleep(time.Minute)
			tryPage(s, pool[:1], func(_ string, r *request) { r.refuse() })
			time.Sleep(time.Minute)
			for range 5 {
				tryPage(s, pool[:1], func(_ string, r *request) { r.answer(http.StatusOK) })
			}
		}
		var got []string
		for _, e := range logs.All() {
			got = append(got, e.Level.String())
		}
		if want := []string{"warn", "info", "warn", "info", "warn", "info"}; !slices.Equal(got, want) {
			t.Errorf("logged: %q", got)
		}
		time.Sleep(time.Minute)
	})
}

// What lb_retry_match retries is told by its status: a page that is not there is no server's fault.
func TestRetriedAnswers(t *testing.T) {
	for status, keeps := range map[int]bool{
		http.StatusNotFound:           false,
		http.StatusOK:                 false,
		http.StatusServiceUnavailable: true,
		0:                             true, // the answer broke off
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			for range breaker.PagesInARow {
				r := newRequest(s, "/app")
				r.choose(pool)
				r.visit().connected(r.visit().attempt)
				r.visit().firstByteCame(r.visit().attempt)
				if status != 0 {
					r.repl.Set(placeholderStatus, status)
				}
				r.choose(pool)
				if _, left := r.repl.Get(placeholderStatus); left {
					t.Error("the status of an attempt is left to the next")
				}
				r.end()
				synctest.Wait()
			}
			if got := s.members.get("u0:80").Breaker.Tripped(); got != keeps {
				t.Errorf("%d is retried: in trouble: %t", status, got)
			}
			time.Sleep(time.Minute)
		})
	}
}

// A server says "100 Continue" before it has built a page, so nobody gets to ask for it.
func TestNobodyIsToldToContinue(t *testing.T) {
	b := newBokeh(t, "")
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")
	if p := s.get("/app", "Expect", "100-continue"); p.status != http.StatusOK || b.lastPage().Get("Expect") != "" {
		t.Errorf("a page with %q is answered with %d", b.lastPage().Get("Expect"), p.status)
	}
}

// A server that has failed is tried by visits, not by all the files that a page asks for.
func TestFilesTryNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		dead := s.members.get("u0:80")
		dead.Breaker.Failure(0, s.table.Now(), breaker.Backoff)
		building := newRequest(s, "/app", bokeh.SessionIDHeader, "x")
		for building.choose(pool); building.visit().attempt.m == dead; building.choose(pool) {
			building.refuse()
		}
		time.Sleep(time.Minute) // the pause is over
		for range 20 {
			r := newRequest(s, "/static/js/bokeh.js")
			if addr, _ := r.choose(pool); addr != "u1:80" {
				t.Fatalf("a file is asked for at %s", addr)
			}
			r.answer(http.StatusOK)
			synctest.Wait()
		}
		visit := newRequest(s, "/app")
		if addr, _ := visit.choose(pool); addr != "u0:80" {
			t.Errorf("a visit goes to %s", addr)
		}
		visit.end()
		building.end()
		synctest.Wait()
		time.Sleep(time.Minute)
	})
}

// What clients can cause keeps nobody off, nor brings anybody back.
func TestClientsCauseNoTrouble(t *testing.T) {
	for name, c := range map[string]func(*request){
		"4xx":                 func(r *request) { r.answer(http.StatusNotFound) },
		"left before it came": func(r *request) { r.visit().connected(r.visit().attempt); r.end() },
		"left, as Caddy says it": func(r *request) {
			r.visit().connected(r.visit().attempt)
			r.repl.Set(placeholderErrorID, "x")
			r.repl.Set(placeholderErrorStatus, 499)
		},
		"page without a socket": func(r *request) { r.answer(http.StatusOK) },
		"dial that was cancelled": func(r *request) {
			r.visit().dialed(r.visit().attempt, errors.Join(errors.New("dial"), r.Context().Err()))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			for range 10 {
				tryPage(s, pool, func(_ string, r *request) {
					if name == "dial that was cancelled" {
						r.end()
					}
					c(r)
				})
			}
			if s.members.get("u0:80").isToBeSpared(s.table.Now()) {
				t.Errorf("%s: it is kept off", name)
			}
			for range breaker.PagesInARow { // pages fail, not dials
				s.members.get("u0:80").Breaker.PageFailure(s.table.Now(), s.table.Now(), breaker.PagesInARow)
			}
			time.Sleep(breaker.QuickBackoff / 2)
			if name == "page without a socket" {
				return // it is a page
			}
			before := s.members.get("u0:80").Breaker.Until()
			tryPage(s, pool, func(_ string, r *request) {
				if name == "dial that was cancelled" {
					r.end()
				}
				c(r)
			})
			if after := s.members.get("u0:80").Breaker.Until(); after != before {
				t.Errorf("%s: it is tried again at %d instead of %d", name, after, before)
			}
		})
	}
}

// Visits that were on their way when the first one failed are one failure, and where all fail nobody
// is turned away.
func TestManyFailAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		var all []*request
		for range 50 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == "" {
				t.Fatal("no upstream")
			}
			all = append(all, r)
		}
		time.Sleep(time.Millisecond)
		for _, r := range all {
			r.refuse()
			r.end()
		}
		synctest.Wait()
		if m := s.members.get("u0:80"); m.Breaker.Until() > s.table.Now()+breaker.Backoff {
			t.Errorf("after 50 at once the pause is over at %v, now it is %v", m.Breaker.Until(), s.table.Now())
		}
		if addr, _ := newRequest(s, "/app").choose(pool); addr == "" {
			t.Error("the only upstream is in trouble, and nobody may try it")
		}
	})
}

// The same behind a real proxy, without retries and without health checks.
func TestFailingServerBehindCaddy(t *testing.T) {
	hangsUp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hangsUp.Close()
	go func() {
		for {
			c, err := hangsUp.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1<<10))
			c.Close()
		}
	}()
	fails := newBokeh(t, "")
	fails.status.Store(http.StatusInternalServerError)
	for name, c := range map[string]struct {
		addr string
		most int // visits that meet it, each half a second at most
	}{
		"refuses dials": {deadAddr(t), 1},
		"answers 500":   {fails.addr(), breaker.PagesInARow},
		"hangs up":      {hangsUp.Addr().String(), breaker.PagesInARow},
	} {
		t.Run(name, func(t *testing.T) {
			_, upstreams := three(t)
			s := serve(t, "reverse_proxy "+upstreams+" "+c.addr+" {\n lb_policy bokeh\n}")
			begun := time.Now()
			met := 0
			for range 60 {
				if p := s.get("/app"); p.status != http.StatusOK {
					met++
				}
			}
			// Each pause that may be over costs one more.
			if most := c.most + int(time.Since(begun)/breaker.Backoff); met > most || met == 0 {
				t.Errorf("%d of 60 visits met it, want 1 to %d", met, most)
			}
		})
	}
}

// After all have failed together for a while, the first one that is well again is not everyone's choice.
func TestWholeFleetFails(t *testing.T) {
	for name, fail := range map[string]func(*request){
		"refuses dials": (*request).refuse,
		"answers 500":   func(r *request) { r.answer(http.StatusInternalServerError) },
	} {
		for _, outage := range []time.Duration{10 * time.Second, 10 * time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				pool := testPool(5)
				s := newTestSelection(pool)
				s.members.get("u4:80").Drain.AddConfigs(1) // which is well, and takes nobody
				for start := time.Now(); time.Since(start) < outage; time.Sleep(200 * time.Millisecond) {
					tryPage(s, pool, func(_ string, r *request) { fail(r) })
				}
				got := make(map[string]int)
				var all sync.WaitGroup
				for range 200 {
					r := newRequest(s, "/app")
					addr, _ := r.choose(pool)
					got[addr]++
					all.Go(func() {
						time.Sleep(150 * time.Millisecond)
						r.answer(http.StatusOK)
					})
					time.Sleep(50 * time.Millisecond)
					synctest.Wait()
				}
				all.Wait()
				for addr, n := range got {
					if n > 80 {
						t.Errorf("%s for %v, and well again: %s gets %d of 200 visits: %v", name, outage, addr, n, got)
					}
				}
				time.Sleep(time.Minute)
			})
		}
	}
}

// One request may fail wherever it is tried. That is no server's fault.
func TestRequestThatFailsEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		for range 20 { // as the proxy retries where a server hangs up
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			time.Sleep(250 * time.Millisecond)
		}
		r.end()
		synctest.Wait()
		for _, u := range pool {
			if m := s.members.get(u.Dial); m.Breaker.Tripped() {
				t.Errorf("after one visit %s is in trouble", m.Name)
			}
		}
		time.Sleep(time.Minute)
	})
}

// Where the proxy tries another upstream, one that refuses connections is tried again soon.
func TestPauseDependsOnRetries(t *testing.T) {
	for name, c := range map[string]struct {
		lb   *reverseproxy.LoadBalancing
		want time.Duration
	}{
		"no block":        {nil, breaker.Backoff},
		"no retries":      {&reverseproxy.LoadBalancing{}, breaker.Backoff},
		"lb_try_duration": {&reverseproxy.LoadBalancing{TryDuration: caddy.Duration(time.Second)}, breaker.QuickBackoff},
		"lb_retries":      {&reverseproxy.LoadBalancing{Retries: 1}, breaker.QuickBackoff},
	} {
		pool := testPool(2)
		s := newTestSelection(pool)
		s.knowPool(&reverseproxy.Handler{Upstreams: pool, LoadBalancing: c.lb})
		if s.pause != c.want {
			t.Errorf("%s: the pause is %v, want %v", name, s.pause, c.want)
		}
	}
}

// Who tries an upstream has tried it when it answers, however long the answer takes.
func TestTrialEndsAtTheFirstByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		for range breaker.PagesInARow {
			tryPage(s, pool[:1], func(_ string, r *request) { r.answer(http.StatusInternalServerError) })
			time.Sleep(sessions.FailedPageWeight + 1)
		}
		newRequest(s, "/app").choose(pool[1:]) // so that the other is busy
		long := newRequest(s, "/events")
		if addr, _ := long.choose(pool); addr != "u0:80" {
			t.Fatal("it is tried at ", addr)
		}
		long.visit().connected(long.visit().attempt)
		long.visit().firstByteCame(long.visit().attempt)
		tryPage(s, pool, func(addr string, r *request) {
			if addr != "u0:80" {
				t.Errorf("while a long answer goes on, nobody else tries")
			}
			r.answer(http.StatusOK)
		})
		if s.members.get("u0:80").Breaker.Tripped() {
			t.Error("it has answered, and is in trouble")
		}
		long.end()
	})
}
