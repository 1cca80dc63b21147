// This file tests that visitors without rights weigh no more than the work that they make.

package caddybokeh

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// Whatever a client says of a page, of its host or of what it has already: where max_sessions are there, no other app runs.
func TestWaysAroundMaxSessions(t *testing.T) {
	for name, ask := range map[string]func(s *Selection, i int) *request{
		"an upgrade with a token of its own": func(s *Selection, i int) *request {
			return newRequest(s, "/app", "Upgrade", "websocket", "Sec-Websocket-Protocol", "bokeh, "+bokehtest.Token(t, fmt.Sprint("mine", i), nil))
		},
		"an image at another spelling of the host": func(s *Selection, i int) *request {
			r := newRequest(s, "/app", "Sec-Fetch-Dest", "image")
			r.Host = fmt.Sprint("EXAMPLE.com.:", 8000+i)
			return r
		},
		"an image at a made-up host": func(s *Selection, i int) *request {
			r := newRequest(s, "/app", "Sec-Fetch-Dest", "image")
			r.Host = fmt.Sprint("made-up", i)
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := testPool(1)
				s := newCapped(newLedger(), pool, 1, 0)
				landed(t, s, pool)
				for i := range 20 {
					if addr, why := ask(s, i).choose(pool); addr != "" {
						t.Fatalf("it is %s at %s", why, addr)
					}
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// Bokeh makes a session also for a script that embeds an app and does not say where, before it answers 400; and for a page
// of which the client says that it has it.
func TestRunsThatAreNoPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 3, 0)
		for i := range 5 {
			r := newRequest(s, "/app/autoload.js")
			if addr, _ := r.choose(pool); (addr != "") != (i < 3) {
				t.Errorf("the %d. goes to %q", i+1, addr)
			}
			if i < 3 {
				r.answer(http.StatusBadRequest)
				synctest.Wait()
			}
		}
		time.Sleep(time.Minute)
		page := newRequest(s, "/app", "If-None-Match", "*")
		page.choose(pool)
		if got := page.Header.Get("If-None-Match"); got != "" {
			t.Errorf("the server is told If-None-Match %s", got)
		}
	})
}

// A page with a body too long to be waited for is counted with the end of that, and needs a place then.
func TestLongBodiesNeedPlaces(t *testing.T) {
	b := newBokeh(t, "")
	b.hold = make(chan struct{})
	ran := make(chan int64, 100)
	b.files = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body) // as Tornado does before it runs anything
		if err != nil {
			return
		}
		ran <- n
		<-b.hold
	})
	s := serve(t, "bokeh_proxy "+b.addr()+" {\n max_sessions 1\n lb_try_duration 1ms\n}")
	for i, reader := range []func() io.Reader{
		func() io.Reader { return strings.NewReader(strings.Repeat("x", 2*mostBody)) },
		func() io.Reader { return io.MultiReader(strings.NewReader(strings.Repeat("x", 2*mostBody))) }, // of no length
	} {
		var all sync.WaitGroup
		refused := make(chan int, 20)
		for range 20 {
			all.Go(func() {
				r, err := http.NewRequest(http.MethodGet, fmt.Sprint("http://", s.addr, "/page/", i), reader()) // each at an address of which nothing is known
				if err != nil {
					t.Error(err)
					return
				}
				res, err := s.client.Do(r)
				if err != nil {
					refused <- 0 // the server has hung up before it had all
					return
				}
				defer res.Body.Close()
				if res.StatusCode >= http.StatusInternalServerError {
					refused <- res.StatusCode
				}
			})
		}
		for range 19 {
			<-refused
		}
		if n := <-ran; n != 2*mostBody {
			t.Errorf("the server got %d bytes", n)
		}
		soonCounts(t, "one is built", b.addr(), tally{1, 0, 0, 0})
		b.hold <- struct{}{}
		all.Wait()
		if len(ran) > 0 {
			t.Errorf("another %d ran", len(ran))
		}
		soonCounts(t, "and over", b.addr(), tally{})
	}
}

// Pages that are left weigh by what pages take there, also where the client makes up their app; and once for a session.
func TestAbortedPages(t *testing.T) {
	for name, tc := range map[string]struct {
		host, query string
		most        int64
	}{
		"of the app":      {"", "", 2},
		"of made-up ones": {"made-up", "", 2},
		"of one session":  {"", "?bokeh-session-id=mine", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := testPool(2)
				s := newTestSelection(pool)
				for i := range 40 { // it takes 20 ms
					r := newRequest(s, "/app").from(fmt.Sprint("198.51.100.", i))
					r.choose(pool)
					time.Sleep(20 * time.Millisecond)
					r.answer(http.StatusOK)
					time.Sleep(time.Second)
				}
				time.Sleep(time.Minute)
				for i := range 180 {
					r := newRequest(s, "/app"+tc.query).from("192.0.2.1")
					if tc.host != "" {
						r.Host = fmt.Sprint(tc.host, i)
					}
					r.choose(pool)
					r.visit().connected(r.visit().attempt)
					time.Sleep(5 * time.Millisecond)
					r.end()
					time.Sleep(time.Millisecond)
					for _, u := range pool {
						if got := s.members.get(u.Dial).LeftPages.Count(); got > tc.most {
							t.Fatalf("%d pages weigh at %s", got, u.Dial)
						}
					}
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// A page that is left before its answer counts as a session whose websocket has not come in time: its server makes it all the
// same, and keeps it. A server that has hung up keeps nothing.
func TestPlaceOfALeftPage(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*request)
		kept bool
	}{
		"left":              {func(r *request) { r.end() }, true},
		"given up by Caddy": {func(r *request) { r.proxyError(http.StatusGatewayTimeout) }, true},
		"hung up":           {func(r *request) { r.proxyError(http.StatusBadGateway) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newCapped(newLedger(), testPool(1), 1, 0)
				m := s.members.get(u0)
				r := newRequest(s, "/app")
				r.choose(testPool(1))
				r.visit().connected(r.visit().attempt)
				time.Sleep(time.Second)
				tc.end(r)
				for after, want := range map[time.Duration]struct{ places, sessions int64 }{
					time.Second: {0, 1},
					s.lifetime:  {0, 1},
					s.lifetime + sessions.UnknownPage + 2*sessions.ExpiryTick: {0, 0},
				} {
					if !tc.kept {
						want.places, want.sessions = 0, 0
					}
					time.AfterFunc(after, func() {
						if places, sessions := m.Slots.Taken(1), m.Slots.Sessions.Load(); places != want.places || sessions != want.sessions {
							t.Errorf("after %v it has %d sessions and %d places are taken, want %v", after, sessions, places, want)
						}
					})
				}
				time.Sleep(time.Minute)
				if n := m.History.Silent.Load(); n != 0 {
					t.Errorf("%d pages are said to have got no websocket", n)
				}
			})
		})
	}
}

// A page that is left twice is still being built.
func TestPageLeftTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		m := s.members.get(u0)
		for range 2 {
			r := newRequest(s, "/app?bokeh-session-id=mine")
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			time.Sleep(10 * time.Millisecond)
			r.end()
			synctest.Wait()
			if n := m.Backlog(); n != 1 {
				t.Errorf("%d pages weigh", n)
			}
		}
		time.Sleep(time.Minute)
	})
}

// A session holds one place for one time while it has no websocket: not longer for a second page, or for a websocket that is
// refused; and a place that was given away comes back only with one that is open.
func TestPlaceWithoutASocket(t *testing.T) {
	for name, again := range map[string]func(s *Selection, pool []*member, token string){
		"a second page": func(s *Selection, _ []*member, _ string) {
			r := newRequest(s, "/app?bokeh-session-id=given")
			r.choose(testPool(1))
			r.answer(http.StatusOK)
		},
		"a refused websocket": func(s *Selection, _ []*member, token string) {
			s.watches = true
			r := newSocket(s, token)
			r.choose(testPool(1))
			v := r.visit()
			v.connected(v.attempt)
			v.hasAnswer(&http.Response{StatusCode: http.StatusForbidden, Body: http.NoBody})
			r.end()
			s.watches = false
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pool := testPool(1)
				s := newTestSelection(pool)
				page := newRequest(s, "/app?bokeh-session-id=given")
				page.choose(pool)
				page.answer(http.StatusOK)
				synctest.Wait()
				m := s.members.get(u0)
				for range 10 {
					time.Sleep(time.Second)
					again(s, nil, bokehtest.Token(t, "given", nil))
					synctest.Wait()
				}
				if got := m.Slots.Taken(1); got != 0 {
					t.Errorf("after ten seconds it holds %d places", got)
				}
				open := newSocket(s, bokehtest.Token(t, "given", nil))
				open.choose(pool)
				open.visit().connected(open.visit().attempt)
				open.visit().firstByteCame(open.visit().attempt)
				if got := m.Slots.Taken(1); got != 1 {
					t.Errorf("with a websocket it holds %d places", got)
				}
				open.answer(http.StatusSwitchingProtocols)
				time.Sleep(time.Minute)
				if n, placeless := m.Slots.Sessions.Load(), m.Slots.Slotless.Load(); n != 0 || placeless != 0 {
					t.Errorf("in the end there are %d sessions, %d without a place", n, placeless)
				}
			})
		})
	}
}

// Who asks for pages alone makes a server have twice its sessions, and no more.
func TestPagesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 40, 0)
		m := s.members.get(u0)
		most := int64(0)
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == "" {
				r.end()
			} else {
				r.answer(http.StatusOK)
			}
			most = max(most, m.Slots.Sessions.Load())
		}
		if most > 80 {
			t.Errorf("%d sessions where 40 are allowed", most)
		}
		time.Sleep(time.Minute)
	})
}

// An address that varies fails each time for the first time. It takes no server from others.
func TestFailingAddressThatVaries(t *testing.T) {
	for _, clients := range []int{1, 10, 200} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(4)
			s := newTestSelection(pool)
			landed(t, s, pool)
			for i := range 1000 {
				r := newRequest(s, fmt.Sprint("/api/item/", i)).from(fmt.Sprint("192.0.2.", i%clients))
				r.choose(pool)
				r.answer(http.StatusInternalServerError)
				synctest.Wait()
				for _, u := range pool {
					if s.members.get(u.Dial).isToBeSpared(s.table.Now()) {
						t.Fatalf("%d clients: %s is kept off after %d requests", clients, u.Dial, i+1)
					}
				}
				time.Sleep(250 * time.Millisecond)
			}
			time.Sleep(time.Minute)
		})
	}
}

// Of an address of IPv6 a client chooses half by itself.
func TestClientOfManyAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		s.GroupBy = "{http.vars.client_ip}"
		landed(t, s, pool[:1])
		for i := range 100 {
			r := newRequest(s, "/app?boom").from(fmt.Sprintf("2001:db8::%x", i))
			r.choose(pool[:1])
			r.answer(http.StatusInternalServerError)
			synctest.Wait()
		}
		if m := s.members.get(u0); m.Breaker.Tripped() || m.Backlog() > 1 {
			t.Errorf("in trouble %v, %d pages weigh", m.Breaker.Tripped(), m.Backlog())
		}
		time.Sleep(time.Minute)
	})
}

// Where all visitors have one address, as behind a proxy that is not trusted, a server that fails is found as soon as where each has its own.
func TestFailingServerBehindOneAddress(t *testing.T) {
	for name, clients := range map[string]int{"one address": 1, "many": 1000} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(5)
			s := newTestSelection(pool)
			rnd := rand.New(rand.NewPCG(1, 2))
			visit := func(broken string) (failed bool) {
				r := newRequest(s, "/app").from(fmt.Sprint("192.0.2.", rnd.IntN(clients)))
				if addr, _ := r.choose(pool); addr == broken {
					r.answer(http.StatusInternalServerError)
					return true
				}
				go func() {
					time.Sleep(400 * time.Millisecond)
					r.answer(http.StatusOK)
				}()
				return false
			}
			failed := 0
			for i := range 800 {
				if i < 200 {
					visit("")
				} else if visit(u0) {
					failed++
				}
				time.Sleep(time.Duration(rnd.ExpFloat64() * float64(100*time.Millisecond)))
			}
			if failed > 12 {
				t.Errorf("%s: %d of 600 visits fail", name, failed)
			}
			time.Sleep(time.Minute)
		})
	}
}

// That a dial took too long an hour ago says nothing of one that does now.
func TestDialsThatTakeLongNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newLedger()
		u := tb.Hold(u0)
		for range 3 {
			u.Dialed(tb.Now(), tb.Now(), breaker.Backoff, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded})
			if u.IsSilent(tb.Now()) {
				t.Error("it is taken for lost")
			}
			time.Sleep(time.Hour)
		}
	})
}

// Of a TLS handshake that fails no server has heard what was asked.
func TestFailedTLSIsTriedElsewhere(t *testing.T) {
	good := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tokenMark) }))
	defer good.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for conn, err := ln.Accept(); err == nil; conn, err = ln.Accept() {
			conn.Close()
		}
	}()
	s := serve(t, "bokeh_proxy "+ln.Addr().String()+" "+good.Listener.Addr().String()+" {\n lb_try_interval 1ms\n transport http {\n tls_insecure_skip_verify\n }\n}")
	for range 6 {
		if got := s.get("/app").status; got != http.StatusOK {
			t.Errorf("answered with %d", got)
		}
	}
}

// A page whose body comes to its end when there is no place any more never has been the server's, so it is no session.
func TestRefusedLongBodyHoldsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 1, 0)
		m := s.members.get(u0)
		long := func() *request {
			r := newRequest(s, "/app")
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", 2*mostBody))), 2*mostBody
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			return r
		}
		var all []*request
		for range 5 { // all are let in, for none weighs yet
			all = append(all, long())
		}
		for i, r := range all {
			_, err := io.Copy(io.Discard, r.Body)
			if (err == nil) != (i == 0) {
				t.Errorf("%d: error %v", i, err)
			}
		}
		synctest.Wait()
		if n, q := m.Slots.Sessions.Load(), m.Backlog(); n != 1 || q != 1 {
			t.Errorf("%d sessions and %d pages are counted, the server has 1; places taken: %d of 1", n, q, m.Slots.Taken(1))
		}
		for _, r := range all {
			r.badGateway()
		}
		time.Sleep(time.Minute)
	})
}

// 2. Who reloads a slow page on a site with one place left must not be kept out by himself.

// Who reloads a page that takes long does not wait for the place of the page that was left.
func TestReloadOfASlowPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 1, 5*time.Second)
		first := newRequest(s, "/app")
		first.choose(pool)
		first.visit().connected(first.visit().attempt)
		time.Sleep(1100 * time.Millisecond)
		first.end()
		synctest.Wait()
		second, begun := newRequest(s, "/app"), time.Now()
		addr, header := second.proxied(pool)
		if addr == "" {
			t.Errorf("the reload gets 503 after %v, %v", time.Since(begun), header)
		}
		second.end()
		time.Sleep(time.Minute)
	})
}

// 3. A session named in the address, left unanswered on a server that is then called down, is tried elsewhere.

// An error in answer to a page makes no session, so a page that is left after it is still being built.
func TestErrorMakesNoSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		m := s.members.get(u0)
		ask := func(q string) *request {
			r := newRequest(s, "/app?bokeh-session-id=mine"+q)
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			return r
		}
		leave := func() {
			r := ask("")
			time.Sleep(10 * time.Millisecond)
			r.end()
			synctest.Wait()
		}
		leave()
		if n := m.Backlog(); n != 1 {
			t.Errorf("left once: %d pages weigh", n)
		}
		ask("&boom").answer(500)
		synctest.Wait()
		time.Sleep(5 * time.Second)
		leave()
		if n := m.Backlog(); n != 1 {
			t.Errorf("left after an error: %d pages weigh", n)
		}
		time.Sleep(time.Minute)
		if n := m.History.Silent.Load(); n != 0 {
			t.Errorf("%d pages that never came are said to have got no websocket", n)
		}
	})
}

// 10. What pages that are left do under max_sessions.

// A page that names its session, and has never come, binds nobody to a server that is called down.
func TestReloadOfANamedSessionWhereTheServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		ask := func() (*request, string) {
			r := newRequest(s, "/app?bokeh-session-id=mine")
			addr, _ := r.choose(pool)
			return r, addr
		}
		r, home := ask()
		r.hang()
		synctest.Wait()
		s.healthy = func(u *reverseproxy.Upstream) bool { return u.Dial != home }
		for i := range 5 {
			r, addr := ask()
			if addr == home {
				t.Errorf("reload %d goes to %s, which is called down", i+1, addr)
			}
			r.hang()
			synctest.Wait()
		}
		time.Sleep(time.Minute)
	})
}

// 4. Other sites with some of the servers, the same before and after, take no session from one whose reload replaces a server.
