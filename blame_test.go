// This file tests that pages which fail speak against whoever it is: a server, an app, or one client.

package caddybokeh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// from makes a request one of a client with an address.
func (r *request) from(client string) *request {
	vars := map[string]any{caddyhttp.ClientIPVarKey: client}
	r.Request = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
	return r
}

// An address that every server answers with an error takes no server from those who ask for something else, whether one client asks or many do. One
// that fails at everything is found all the same.
func TestAddressThatAlwaysFails(t *testing.T) {
	for name, tc := range map[string]struct{ clients, errors int }{ // a second
		"asked for by one client":         {1, 40},
		"asked for by four clients often": {4, 200},
		"asked for by many clients":       {1000, 40},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(4)
			s := newTestSelection(pool)
			rnd := rand.New(rand.NewPCG(1, 2))
			broken := ""
			ask := func(target, client string) (addr string, ok bool) {
				r := newRequest(s, target).from(client)
				addr, _ = r.choose(pool)
				if addr == broken || target != "/app" {
					r.answer(http.StatusInternalServerError)
					return addr, false
				}
				go func() {
					time.Sleep(100 * time.Millisecond)
					r.answer(http.StatusOK)
				}()
				return addr, true
			}
			weighed := 0 // how many failures weighed at servers as visits came, in all
			play := func(span time.Duration) (visits, failed, troubled int) {
				for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(time.Duration(rnd.ExpFloat64() * float64(time.Second) / float64(24+tc.errors))) {
					if rnd.IntN(24+tc.errors) < tc.errors {
						ask("/app?boom", fmt.Sprint("192.0.2.", rnd.IntN(tc.clients)))
						continue
					}
					visits++
					if _, ok := ask("/app", fmt.Sprint("198.51.100.", rnd.IntN(1000))); !ok {
						failed++
					}
					for _, u := range pool {
						weighed += int(s.members.get(u.Dial).FailedPages.Count())
						if s.members.get(u.Dial).isToBeSpared(s.table.Now()) {
							troubled++
							break
						}
					}
				}
				return visits, failed, troubled
			}
			visits, _, troubled := play(5 * time.Minute)
			if troubled > visits/100 {
				t.Errorf("%s: a server is kept off for %d of %d visits", name, troubled, visits)
			}
			if weighed > visits/10 {
				t.Errorf("%s: %d failures weighed while %d visits came", name, weighed, visits)
			}
			broken = "u0:80"
			if visits, failed, _ := play(time.Minute); failed > visits/20 {
				t.Errorf("%s: a server that fails is met by %d of %d visits", name, failed, visits)
			}
			time.Sleep(time.Minute)
		})
	}
}

// Whose requests fail by themselves may be sent to one server. That keeps nobody off it.
func TestClientThatAlwaysFails(t *testing.T) {
	for name, ask := range map[string]func(s *Selection) *request{
		"names a session": func(s *Selection) *request { return newRequest(s, "/app?boom&bokeh-session-id=given") },
		"is of one group": func(s *Selection) *request { return newRequest(s, "/app?boom") },
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(2)
			s := newTestSelection(pool)
			s.GroupBy = "{http.vars.client_ip}" // so the pool is one server to this client
			for i := range 200 {
				r := ask(s).from("192.0.2.1")
				r.choose(pool[:1])
				r.answer(http.StatusInternalServerError)
				synctest.Wait()
				if i%10 == 0 { // others have their pages there
					r = newRequest(s, "/app").from(fmt.Sprint("198.51.100.", i))
					r.choose(pool[:1])
					r.answer(http.StatusOK)
				}
				time.Sleep(25 * time.Millisecond)
			}
			m := s.members.get("u0:80")
			if m.Breaker.Tripped() || m.Backlog() > 1 {
				t.Errorf("%s: in trouble %v, %d pages weigh", name, m.Breaker.Tripped(), m.Backlog())
			}
			time.Sleep(time.Minute)
		})
	}
}

func TestRowBeyondChance(t *testing.T) {
	for share, want := range map[float64]int64{0: 3, 0.001: 4, 0.1: 12, 0.25: 20, 0.5: 40, 0.9: 263, 1: 27618} {
		if got := rowBeyondChance(share); got != want {
			t.Errorf("where %v fail elsewhere, %d in a row are needed, want %d", share, got, want)
		}
	}
}

// One client's errors keep nobody off the only server that has places: it could go nowhere else.
func TestErrorsWhereOthersAreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 50, 5*time.Second)
		_, hangUp := occupy(t, s, pool[1:], 50) // u1 is full
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for ctx.Err() == nil {
				time.Sleep(150 * time.Millisecond)
				r := newRequest(s, "/app?boom").from("192.0.2.1")
				if addr, _ := r.proxied(pool); addr != "" {
					r.answer(http.StatusInternalServerError)
				}
				r.end()
			}
		}()
		waited := make(chan time.Duration, 60)
		for i := range cap(waited) {
			go func() {
				r, begun := newRequest(s, "/app").from(fmt.Sprint("198.51.100.", i)), time.Now()
				defer r.end()
				addr, _ := r.proxied(pool)
				waited <- time.Since(begun)
				if addr != "" {
					time.Sleep(100 * time.Millisecond)
					r.answer(http.StatusOK)
				}
			}()
			time.Sleep(time.Second)
		}
		cancel()
		for _, end := range hangUp {
			end()
		}
		time.Sleep(time.Minute)
		close(waited)
		long := 0
		for w := range waited {
			if w > time.Second {
				long++
			}
		}
		if long > cap(waited)/10 {
			t.Errorf("%d of %d visits wait", long, cap(waited))
		}
	})
}
