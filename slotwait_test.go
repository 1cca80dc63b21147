// This file tests max_sessions: who is refused, and who gets a place that becomes free.

package caddybokeh

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// newCapped returns a policy with a limit of sessions in a handler that goes on looking for a while.
func newCapped(t *ledger, pool reverseproxy.UpstreamPool, limit int, patience time.Duration) *Selection {
	s := newTestSelectionWith(t, pool)
	s.MaxSessions, s.patience = limit, patience
	return s
}

// proxied asks again as the reverse proxy does, until the time is up. It returns the upstream, or nothing, and
// the headers that the visitor gets.
func (r *request) proxied(pool reverseproxy.UpstreamPool) (addr string, header http.Header) {
	w := httptest.NewRecorder()
	for ; ; time.Sleep(250 * time.Millisecond) {
		if u := r.s.Select(pool, r.Request, w); u != nil {
			return u.Dial, w.Header()
		}
		if r.s.table.Now()-r.visit().startedAt >= r.s.patience || r.Context().Err() != nil {
			return "", w.Header()
		}
	}
}

// occupy begins n sessions, whose sockets stay open until they are hung up.
func occupy(t *testing.T, s *Selection, pool reverseproxy.UpstreamPool, n int) (tokens []string, hangUp []func()) {
	t.Helper()
	for range n {
		page := newRequest(s, "/app")
		if addr, _ := page.choose(pool); addr == "" {
			t.Fatal("no upstream for a session that has a place")
		}
		page.answer(http.StatusOK)
		synctest.Wait()
		token := bokehtest.Token(t, page.stamp(), nil)
		socket := newSocket(s, token)
		socket.choose(pool)
		socket.visit().connected(socket.visit().attempt)
		socket.visit().firstByteCame(socket.visit().attempt)
		tokens, hangUp = append(tokens, token), append(hangUp, func() { socket.answer(http.StatusSwitchingProtocols) })
	}
	return tokens, hangUp
}

// Only new sessions are refused.
func TestMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 3, 0)
		tokens, hangUp := occupy(t, s, pool, 6)
		for _, m := range s.index.Load().all {
			if n := m.Slots.Sessions.Load(); n != 3 {
				t.Errorf("%d sessions at %s, want 3", n, m.Name)
			}
		}
		start := time.Now()
		addr, header := newRequest(s, "/app").proxied(pool)
		if addr != "" || header.Get("Retry-After") == "" || time.Since(start) != 0 {
			t.Errorf("one too many goes to %q after %v, with Retry-After %q", addr, time.Since(start), header.Get("Retry-After"))
		}
		for what, r := range map[string]*request{
			"a bound socket":             newSocket(s, tokens[0]),
			"a page that others named":   newRequest(s, "/app", bokeh.SessionIDHeader, "x"),
			"a socket that others named": newSocket(s, bokehtest.Token(t, "y", nil)),
			"a static file":              newRequest(s, "/static/x.js"),
			"a stamp from before":        newSocket(s, bokehtest.Token(t, bokehtest.Stamp("u1:80"), nil)),
		} {
			if addr, _ := r.choose(pool); addr == "" {
				t.Errorf("no upstream for %s", what)
			}
			r.end()
		}
		hangUp[0]()
		time.Sleep(31 * time.Second)
		if addr, _ := newRequest(s, "/app").proxied(pool); addr != "" {
			t.Error("a session that its server still keeps has lost its place")
		}
		time.Sleep(2 * time.Second)
		addr, header = newRequest(s, "/app").proxied(pool)
		if addr == "" || header.Get("Retry-After") != "" {
			t.Errorf("with a free place a visit goes to %q, with Retry-After %q", addr, header.Get("Retry-After"))
		}
	})
}

// Who came first gets the place that becomes free; those who have just come stand behind.
func TestPlacesGoToTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 2, 10*time.Minute)
		hurried := newCapped(s.table, pool, 2, 0)
		_, hangUp := occupy(t, s, pool, 4)
		turns := make(chan int, 5)
		var last *request
		for i := range 5 {
			r := newRequest(s, "/app")
			last = r
			go func() {
				if addr, _ := r.proxied(pool); addr != "" {
					turns <- i
				}
			}()
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		if n := s.table.Waiting.Len(s.table.Now()); n != 5 {
			t.Fatalf("%d visits wait, want 5", n)
		}
		for i, end := range hangUp {
			end()
			time.Sleep(32*time.Second - time.Nanosecond)
			synctest.Wait()
			if len(turns) != 0 {
				t.Fatal("a visit has a place a moment before the session ends")
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if addr, _ := newRequest(hurried, "/app").choose(pool); addr != "" {
				t.Errorf("a visit that has just come got a place while others wait")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if len(turns) != 1 {
				t.Fatalf("%d visits have got the place that became free", len(turns))
			}
			if next := <-turns; next != i {
				t.Errorf("visit %d got it, want %d", next, i)
			}
		}
		for _, m := range s.index.Load().all {
			if n := m.Slots.Sessions.Load(); n > 2 {
				t.Errorf("%d sessions at %s", n, m.Name)
			}
		}
		last.end() // nobody has left for it
		synctest.Wait()
	})
}

// A ticket dies with its request, and the wait ends when the handler has no more patience.
func TestTicketDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 1, 5*time.Second)
		_, hangUp := occupy(t, s, pool, 1)
		start := time.Now()
		r := newRequest(s, "/app")
		addr, header := r.proxied(pool)
		if waited := time.Since(start); addr != "" || waited < 5*time.Second || waited > 5250*time.Millisecond || header.Get("Retry-After") == "" {
			t.Errorf("goes to %q after %v, with Retry-After %q", addr, time.Since(start), header.Get("Retry-After"))
		}
		if ms, _ := r.repl.Get(placeholderWaited); fmt.Sprint(ms) < "5000" || fmt.Sprint(ms) > "5250" {
			t.Errorf("it says that it has waited %v ms", ms)
		}
		r.end()
		synctest.Wait()
		if !s.table.Waiting.IsEmpty() {
			t.Error("it waits though the request has ended")
		}
		if n := s.table.nobody[nobodyFull].Load(); n != 1 {
			t.Errorf("%d requests are counted, want 1", n)
		}

		// Of two that wait the first goes away, so the place is the second one's.
		patient := newCapped(s.table, pool, 1, time.Minute)
		first, second := newRequest(patient, "/app"), newRequest(patient, "/app")
		go first.proxied(pool)
		time.Sleep(time.Millisecond)
		var got string
		go func() { got, _ = second.proxied(pool) }()
		time.Sleep(time.Second)
		hangUp[0]()
		first.end()
		time.Sleep(33 * time.Second)
		synctest.Wait()
		if got == "" {
			t.Error("the second waits though the first has gone")
		}
		second.end()
		time.Sleep(time.Minute)
	})
}

// A reload does not end the wait: the ticket is in the line of the process.
func TestWaitOverAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		tb := newLedger()
		before := newCapped(tb, pool, 1, time.Minute)
		unloaded := make(chan struct{})
		before.unloaded = unloaded
		_, hangUp := occupy(t, before, pool, 1)
		var order []string
		wait := func(name string, s *Selection) {
			r := newRequest(s, "/app")
			if addr, _ := r.proxied(pool); addr != "" {
				order = append(order, name)
			}
			time.Sleep(time.Second)
			r.end()
		}
		go wait("old", before)
		time.Sleep(time.Second / 2)
		after := newCapped(tb, pool, 1, time.Minute)
		close(unloaded)
		before.members.close()
		go wait("new", after)
		hangUp[0]()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(order) != 2 || order[0] != "old" {
			t.Errorf("places went to %v", order)
		}
		time.Sleep(time.Minute)
	})
}

// Also where the reload has taken the upstream off, which is forgotten with its last session, those who wait for it never
// have more than they may.
func TestWaitForAnUpstreamThatIsTakenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		tb := newLedger()
		s := newCapped(tb, pool, 1, time.Minute)
		unloaded := make(chan struct{})
		s.unloaded = unloaded
		_, hangUp := occupy(t, s, pool, 1)
		var mu sync.Mutex
		served, open, most := 0, 0, 0
		for range 5 {
			go func() {
				r := newRequest(s, "/app")
				defer r.end()
				if addr, _ := r.proxied(pool); addr == "" {
					return
				}
				r.visit().connected(r.visit().attempt)
				mu.Lock()
				served++
				open++
				most = max(most, open)
				mu.Unlock()
				time.Sleep(10 * time.Second)
				mu.Lock()
				open--
				mu.Unlock()
				r.answer(http.StatusNotFound)
			}()
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		close(unloaded)
		s.members.close()
		hangUp[0]()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if served < 3 || most != 1 {
			t.Errorf("of 5 visits %d got a place, %d at a time", served, most)
		}
		if _, known := tb.Size(); known != 0 || !tb.Waiting.IsEmpty() {
			t.Errorf("%d upstreams and %d visits are left", known, tb.Waiting.Len(tb.Now()))
		}
	})
}

// Two who look at the same moment at an upstream that nobody holds any more see two of the same name. One of them waits.
func TestTwoLookAtAnUpstreamThatIsTakenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 1, time.Minute)
		unloaded := make(chan struct{})
		s.unloaded = unloaded
		close(unloaded)
		s.members.close()
		first, second := newRequest(s, "/app"), newRequest(s, "/app")
		looks := 0
		s.healthy = func(*reverseproxy.Upstream) bool {
			switch looks++; looks {
			case 1:
				first.choose(pool) // while the second is choosing
				time.AfterFunc(10*time.Second, first.end)
			case 1000:
				t.Fatal("it looks for ever")
			}
			return true
		}
		begun := time.Now()
		if addr, _ := second.proxied(pool); addr == "" || time.Since(begun) < 10*time.Second {
			t.Errorf("the second gets %q after %v", addr, time.Since(begun))
		}
		second.end()
		time.Sleep(time.Minute)
	})
}

// Who goes away while waiting was not turned away.
func TestLeavingIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newCapped(newLedger(), pool, 1, time.Minute)
		_, hangUp := occupy(t, s, pool, 1)
		var all []*request
		for range 100 {
			r := newRequest(s, "/app")
			all = append(all, r)
			go r.proxied(pool)
		}
		time.Sleep(100 * time.Millisecond)
		for _, r := range all {
			r.end()
		}
		synctest.Wait()
		if n := s.table.nobody[nobodyFull].Load(); n != 0 {
			t.Errorf("%d of 100 who left are counted", n)
		}
		hangUp[0]()
		time.Sleep(time.Minute)
	})
}

// Whoever comes, waits, leaves, fails or ends, and through whichever policy: never has an upstream more
// sessions than it may have, nobody waits while there is a place, and in the end nobody is left.
func TestLineAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			pool := testPool(3)
			tb := newLedger()
			limit := 1 + rnd.IntN(3)
			policies := []*Selection{newCapped(tb, pool, limit, 20*time.Second), newCapped(tb, pool, limit, 3*time.Second)}
			var idle time.Time // since when there have been places
			for range 150 {
				s, leaves, refused, aborts, stays := policies[rnd.IntN(2)], rnd.IntN(6) == 0, rnd.IntN(8) == 0, rnd.IntN(4) == 0, time.Duration(rnd.IntN(int(10*time.Second)))
				go func() {
					r := newRequest(s, "/app")
					defer r.end()
					if leaves {
						time.AfterFunc(stays, r.end)
					}
					addr, _ := r.proxied(pool)
					if refused && addr != "" {
						r.refuse()
						addr, _ = r.proxied(pool)
					}
					if addr != "" {
						r.visit().connected(r.visit().attempt)
						time.Sleep(stays)
						if !aborts {
							r.answer(http.StatusNotFound)
						}
					}
				}()
				time.Sleep(time.Duration(rnd.IntN(int(time.Second))))
				synctest.Wait()
				free := 0
				for _, m := range policies[0].candidatesIn(pool, nil) {
					n := m.Slots.Taken(int64(limit))
					if n > int64(limit) || m.Slots.Sessions.Load() > 2*int64(limit) {
						t.Fatalf("seed %d: %d sessions at %s have %d places of %d", seed, m.Slots.Sessions.Load(), m.Name, n, limit)
					}
					if !m.isToBeSpared(tb.Now()) {
						free += limit - int(n)
					}
				}
				waiting := tb.Waiting.Len(tb.Now())
				switch {
				case free == 0 || waiting == 0:
					idle = time.Time{}
				case idle.IsZero():
					idle = time.Now()
				case time.Since(idle) > slotInterval: // by then they look again for what they are not told of
					t.Errorf("seed %d: %d visits wait while there are %d places", seed, waiting, free)
				}
			}
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if !tb.Waiting.IsEmpty() {
				t.Errorf("seed %d: some still wait", seed)
			}
			for _, m := range policies[0].candidatesIn(pool, nil) {
				if n := m.Slots.Sessions.Load(); n != 0 {
					t.Errorf("seed %d: %d sessions are left at %s", seed, n, m.Name)
				}
			}
		})
	}
}

// Behind Caddy: a visit waits for the place of another, over a reload, and a bound socket always gets through.
func TestWaitBehindCaddy(t *testing.T) {
	b := newBokeh(t, "")
	handlers := "reverse_proxy " + b.addr() + " {\n lb_policy bokeh {\n max_sessions 1\n unused_session_lifetime 1s\n check_unused_sessions 1s\n}\n" +
		"lb_try_duration %s\n stream_close_delay 1h\n}"
	s := serve(t, fmt.Sprintf(handlers, "20s"))
	p, w := s.visit()
	w.Close()
	again := s.open(p.Token)
	if again.status != http.StatusSwitchingProtocols {
		t.Fatalf("a bound socket is answered %d", again.status)
	}
	waits := make(chan page)
	go func() { waits <- s.get("/app") }()
	soon(t, "a visit waits", func() bool { return thisLedger().Waiting.Len(thisLedger().Now()) == 1 })
	s.reload(fmt.Sprintf(handlers, "0s"))
	if p := s.get("/app"); p.status != http.StatusServiceUnavailable || p.header.Get("Retry-After") == "" {
		t.Errorf("who has no patience is answered %d, with Retry-After %q", p.status, p.header.Get("Retry-After"))
	}
	again.Close()
	if p := <-waits; p.status != http.StatusOK {
		t.Errorf("who waited over a reload is answered %d", p.status)
	}
}

// The sessions of a group are at one upstream, alike through every node, as long as that takes new ones.
func TestGroupBy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(5)
		nodes := []*Selection{newTestSelection(pool), newTestSelection(pool)}
		for _, s := range nodes {
			s.GroupBy, s.MaxSessions = "{http.request.header.User}", 1000
		}
		at := func(s *Selection, user string) string {
			r := newRequest(s, "/app", "User", user)
			r.repl.Set("http.request.header.User", user)
			addr, why := r.choose(pool)
			if why != string(decisionNew) {
				t.Errorf("the decision is %s", why)
			}
			r.answer(http.StatusOK)
			synctest.Wait()
			return addr
		}
		used := map[string]int{}
		for i := range 50 {
			user := fmt.Sprint("user ", i)
			home := at(nodes[0], user)
			used[home]++
			for range 3 {
				if addr := at(nodes[i%2], user); addr != home {
					t.Errorf("%s is at %s and at %s", user, home, addr)
				}
			}
		}
		if len(used) != 5 {
			t.Errorf("50 users are at %v", used)
		}

		// Where the home drains, fails or is full, all find the same other one, and come back after that.
		home := at(nodes[0], "heavy")
		for what, state := range map[string]func(m *member, on bool){
			"drains": func(m *member, on bool) {
				if on {
					m.Drain.AddConfigs(1)
				} else {
					m.Drain.AddConfigs(-1)
				}
			},
			"is full": func(m *member, on bool) {
				if on {
					m.Slots.Sessions.Add(1000)
				} else {
					m.Slots.Sessions.Add(-1000)
				}
			},
			"fails": func(m *member, on bool) {
				if on {
					m.Breaker.Failure(0, nodes[0].table.Now(), breaker.Backoff)
				} else {
					m.Breaker.Success()
				}
			},
		} {
			var others []string
			for _, s := range nodes {
				m := s.members.get(home)
				state(m, true)
				others = append(others, at(s, "heavy"))
				state(m, false)
				if addr := at(s, "heavy"); addr != home {
					t.Errorf("it %s no more, and the group is at %s", what, addr)
				}
			}
			if others[0] == home || others[0] != others[1] {
				t.Errorf("home %s, and when that %s, nodes send to %v", home, what, others)
			}
		}

		// Who has no value goes where it is ready first, and if nobody knows what that is, the log says so.
		for group, want := range map[string]int{"{http.request.header.User}": 0, "{http.auth.user.id}": 1} {
			s := newTestSelection(pool)
			s.GroupBy = group
			core, logs := observer.New(zapcore.WarnLevel)
			s.logger = zap.New(core)
			spread := map[string]bool{}
			for range 5 {
				r := newRequest(s, "/app")
				r.repl.Set("http.request.header.User", "")
				addr, _ := r.choose(pool)
				spread[addr] = true
			}
			if len(spread) != 5 {
				t.Errorf("5 sessions of no group are at %v", spread)
			}
			if n := logs.FilterMessageSnippet("group_by has no value").Len(); n != want {
				t.Errorf("%s: logged %d times, want %d", group, n, want)
			}
		}
	})
}

// Where all others are full, who can wait no longer gets a place even at a server that has failed: it may be well again.
func TestLastChance(t *testing.T) {
	for _, patience := range []time.Duration{0, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(2)
			s := newCapped(newLedger(), pool, 1, patience)
			failing := s.members.get("u1:80")
			failing.Breaker.Failure(0, s.table.Now(), breaker.MaxBackoff)
			_, hangUp := occupy(t, s, pool, 1)
			start := time.Now()
			r := newRequest(s, "/app")
			if addr, _ := r.proxied(pool); addr != "u1:80" || time.Since(start) != patience {
				t.Fatalf("goes to %q after %v, want u1:80 after %v", addr, time.Since(start), patience)
			}
			r.answer(http.StatusOK)
			synctest.Wait()
			if failing.Breaker.Tripped() {
				t.Error("it has answered, and is not well")
			}
			if addr, _ := newRequest(s, "/app").proxied(pool); addr != "" {
				t.Errorf("one too many goes to %s", addr)
			}
			hangUp[0]()
		})
	}
}

// A place that those who wait cannot take, for their site calls its server unhealthy, is kept from nobody.
func TestPlaceOfAnotherSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 1, time.Minute)
		s.healthy = func(u *reverseproxy.Upstream) bool { return u.Dial != "u1:80" }
		other := newCapped(s.table, pool, 1, 0)
		_, hangUp := occupy(t, s, pool, 1)
		r := newRequest(s, "/app")
		go r.proxied(pool)
		synctest.Wait()
		if addr, _ := newRequest(other, "/app").proxied(pool); addr != "u1:80" {
			t.Errorf("a visit of the other site goes to %q", addr)
		}
		r.end()
		hangUp[0]()
	})
}

// Who waits need not take a place where visits fail.
func TestLineKeepsOffTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 1, time.Minute)
		occupy(t, s, pool[:1], 1)
		met, waited := 0, 0
		for range 20 {
			r := newRequest(s, "/app")
			addrs := make(chan string, 1)
			go func() {
				addr, _ := r.proxied(pool)
				addrs <- addr
			}()
			synctest.Wait()
			if len(addrs) == 1 && <-addrs == "u1:80" {
				met++
				r.answer(http.StatusInternalServerError)
			} else {
				waited++
			}
			r.end()
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if met > 8 {
			t.Errorf("%d of 20 visits are given to a server that fails, and %d wait", met, waited)
		}
	})
}

// A server that refuses connections does not mix up the line: who tries it keeps the turn.
func TestOrderBesideTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 1, 10*time.Minute)
		_, hangUp := occupy(t, s, pool[:1], 1)
		turns := make(chan int, 5)
		for i := range cap(turns) {
			r := newRequest(s, "/app")
			go func() {
				for {
					if addr, _ := r.proxied(pool); addr == "u0:80" {
						turns <- i
						time.Sleep(100 * time.Millisecond)
						r.answer(http.StatusNotFound) // no session, so the place is the next one's
						return
					}
					r.refuse()
					time.Sleep(250 * time.Millisecond)
				}
			}()
			time.Sleep(33 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		hangUp[0]()
		time.Sleep(40 * time.Second)
		for i := range cap(turns) {
			if len(turns) == 0 {
				t.Fatalf("only %d are served", i)
			}
			if turn := <-turns; turn != i {
				t.Errorf("visit %d is served as number %d", turn, i)
			}
		}
		time.Sleep(time.Minute)
	})
}

// The proxy does not say that it has given a visit up. Its request may live on, for as long as somebody reads the error page.
func TestTicketOfWhoHasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		tb := newLedger()
		// One says it by its patience, the other one, as with a number of retries, not at all.
		hasty, silent, patient := newCapped(tb, pool, 1, 2*time.Second), newCapped(tb, pool, 1, time.Hour), newCapped(tb, pool, 1, time.Hour)
		silent.static = nil
		_, hangUp := occupy(t, patient, pool, 1)
		gone := []*request{newRequest(hasty, "/app"), newRequest(silent, "/app")}
		gone[0].proxied(pool)
		gone[1].choose(pool)
		next := newRequest(patient, "/app")
		addrs := make(chan string, 1)
		go func() {
			addr, _ := next.proxied(pool)
			addrs <- addr
		}()
		hangUp[0]()
		time.Sleep(time.Minute)
		if len(addrs) == 0 {
			t.Errorf("a place is free, and the next visit waits behind %d", tb.Waiting.Len(tb.Now())-1)
		}
		for _, r := range append(gone, next) {
			r.end()
		}
		time.Sleep(time.Minute)
	})
}

// When an upstream takes sessions again, those who wait come before those who have just come.
func TestNewPlacesAreTheLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newCapped(newLedger(), pool, 1, time.Minute)
		m := s.members.get("u1:80")
		m.Drain.AddConfigs(1)
		occupy(t, s, pool[:1], 1)
		waits, comes := newRequest(s, "/app"), newRequest(newCapped(s.table, pool, 1, 0), "/app")
		addrs := make(chan string, 1)
		go func() {
			addr, _ := waits.proxied(pool)
			addrs <- addr
		}()
		time.Sleep(20*time.Second + slotInterval/2)
		m.Drain.AddConfigs(-1)
		if addr, _ := comes.choose(pool); addr != "" {
			t.Errorf("who has just come gets %s", addr)
		}
		synctest.Wait()
		if len(addrs) == 0 {
			t.Error("who waits is not told of it")
		}
		waits.end()
		comes.end()
		time.Sleep(time.Minute)
	})
}

// A page whose websocket does not come holds its place for a few seconds, also while its client reads it slowly. When the websocket
// comes all the same it is let in.
func TestPagesWithoutASocketGiveUpTheirPlaces(t *testing.T) {
	for name, read := range map[string]bool{"read": true, "not read": false} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(2)
			s := newCapped(newLedger(), pool, 3, time.Minute)
			var pages []*request
			for range 6 {
				page := newRequest(s, "/app")
				if addr, _ := page.choose(pool); addr == "" {
					t.Fatal("no upstream for a session that has a place")
				}
				if read {
					page.answer(http.StatusOK)
				} else {
					page.visit().connected(page.visit().attempt)
					page.visit().firstByteCame(page.visit().attempt)
				}
				synctest.Wait()
				pages = append(pages, page)
			}
			begun := time.Now()
			next := newRequest(s, "/app")
			if addr, _ := next.proxied(pool); addr == "" || time.Since(begun) < sessions.SlotTimeout || time.Since(begun) > sessions.SlotTimeout+2*sessions.ExpiryTick {
				t.Errorf("%s: the next visit goes to %q after %v", name, addr, time.Since(begun))
			}
			next.answer(http.StatusOK)
			synctest.Wait()
			for _, m := range s.index.Load().all {
				if got := tallyOf(m.Upstream); got[1] < 3 || m.Slots.Taken(3) > 1 {
					t.Errorf("%s: %v at %s, which hold %d places", name, got, m.Name, m.Slots.Taken(3))
				}
			}
			late := newSocket(s, bokehtest.Token(t, pages[0].stamp(), nil))
			addr, why := late.choose(pool)
			late.visit().connected(late.visit().attempt)
			late.visit().firstByteCame(late.visit().attempt)
			if why != string(decisionBound) {
				t.Errorf("%s: a socket that comes late is %s", name, why)
			}
			if m := s.members.get(addr); m.Slots.Slotless.Load() != 2 {
				t.Errorf("%s: %d sessions of three hold no place where one has its socket by now", name, m.Slots.Slotless.Load())
			}
			late.end()
			for _, page := range pages {
				page.end()
			}
			time.Sleep(time.Minute)
			for _, m := range s.index.Load().all {
				if m.Slots.Sessions.Load() != 0 || m.Slots.Slotless.Load() != 0 {
					t.Errorf("%s: in the end %d sessions, %d without a place", name, m.Slots.Sessions.Load(), m.Slots.Slotless.Load())
				}
			}
		})
	}
}
