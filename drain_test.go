// This file tests that draining upstreams get no new session and keep their own.

package caddybokeh

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// drainUpstream drains an upstream and returns what takes that back.
func drainUpstream(s *Selection, addr string) (undrain func()) {
	u := s.table.Hold(upstreamName(addr))
	u.Drain.AddConfigs(1)
	u.Drain.SetAlone(math.MaxInt64)
	return func() {
		u.Drain.AddConfigs(-1)
		s.table.Release(u)
	}
}

func TestDrainingKeepsItsSessionsAndGetsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		undrain := drainUpstream(s, home)

		for range 30 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == home {
				t.Fatal("a new session went to the draining upstream")
			}
			r.end()
			if addr, _ := newRequest(s, "/static/js/bokeh.js").choose(pool); addr == home {
				t.Fatal("a file was asked of the draining upstream, though there are others")
			}
		}
		for i := range 60 {
			r := newRequest(s, "/app", bokeh.SessionIDHeader, fmt.Sprint("id-", i))
			if addr, _ := r.choose(pool); addr == home {
				t.Fatal("a new session of a foreign id went to the draining upstream")
			}
			r.end()
		}
		for what, r := range map[string]*request{
			"its socket":          newSocket(s, token),
			"a second socket":     newSocket(s, token),
			"autoload.js, its id": newRequest(s, "/app/autoload.js", bokeh.SessionIDHeader, bokeh.ReadToken(token, bokehtest.Ring).ID),
		} {
			if addr, why := r.choose(pool); addr != home || why != "bound" {
				t.Errorf("%s is %s at %s, home is %s", what, why, addr, home)
			}
			r.answer(200)
		}
		synctest.Wait()

		undrain()
		seen := false
		for range 30 {
			r := newRequest(s, "/app")
			addr, _ := r.choose(pool)
			seen = seen || addr == home
			r.answer(200)
			synctest.Wait()
		}
		if !seen {
			t.Error("it gets no new session after the drain was taken back")
		}
	})
}

// A session that nobody here knows may live at the draining upstream that its stamp names: it did before a restart, or
// does through another node. A page with that stamp would begin one.
func TestDrainingAfterARestart(t *testing.T) {
	pool := testPool(3)
	s := newTestSelection(pool)
	drainUpstream(s, "u1:80")
	stamp := bokehtest.Stamp("u1:80")
	if addr, _ := newRequest(s, "/app", bokeh.SessionIDHeader, stamp).choose(pool); addr == "u1:80" {
		t.Error("a page went to the draining upstream")
	}
	s = newTestSelection(pool)
	drainUpstream(s, "u1:80")
	if addr, why := newSocket(s, bokehtest.Token(t, stamp, nil)).choose(pool); addr != "u1:80" || why != "bound" {
		t.Errorf("a socket is %s at %s", why, addr)
	}
}

// Sessions that end while their upstream drains are over: what comes late would begin anew there.
func TestDrainingRemembersWhatHasEnded(t *testing.T) {
	for name, beside := range map[string]bool{"id is the stamp": false, "stamp beside the id": true} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			s.givesIDs = !beside
			r := newRequest(s, "/app")
			home, _ := r.choose(pool)
			r.answer(200)
			synctest.Wait()
			token := bokehtest.Token(t, r.stamp(), nil)
			if beside {
				token = bokehtest.Token(t, "made-by-the-server", map[string]any{bokeh.StampHeader: r.stamp()})
			}
			undrain := drainUpstream(s, home)
			look := func(when string, want bool) {
				t.Helper()
				r := newSocket(s, token)
				if addr, why := r.choose(pool); (addr == home) != want {
					t.Errorf("%s, %s: %s at %s, home is %s", name, when, why, addr, home)
				}
				r.answer(101)
				synctest.Wait()
			}
			look("first socket", true)
			time.Sleep(testLifetime - time.Second)
			look("31 s after it closed", true)
			time.Sleep(testLifetime + time.Second)
			look("33 s after that", false)
			undrain()
		})
	}
}

// A page whose socket never came, until its session was over.
func TestDrainingRemembersPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		drainUpstream(s, home)
		time.Sleep(testLifetime + time.Second)
		if addr, _ := newSocket(s, token).choose(pool); addr == home {
			t.Error("the first socket of a session that is over went to the draining upstream")
		}
	})
}

// A process that refuses a connection has lost its sessions; back again, it must not get them anew while it drains.
func TestDrainingUpstreamRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		drainUpstream(s, home)
		r := newSocket(s, token)
		r.choose(pool)
		r.refuse()
		if addr, why := r.choose(pool); addr == home || why != "moved" {
			t.Errorf("%s at %s", why, addr)
		}
		r.end()
		synctest.Wait()
		time.Sleep(sessions.DialBackoff)
		if addr, why := newSocket(s, token).choose(pool); addr == home {
			t.Errorf("later %s at %s", why, addr)
		}
		// With no other upstream it is turned away all the same.
		one := newTestSelection(pool[:1])
		home, token = landed(t, one, pool[:1])
		drainUpstream(one, home)
		r = newSocket(one, token)
		r.choose(pool[:1])
		r.refuse()
		if addr, _ := r.choose(pool[:1]); addr != "" {
			t.Errorf("in a pool of one it went to %s", addr)
		}
		time.Sleep(sessions.DialBackoff)
		if addr, _ := newSocket(one, token).choose(pool[:1]); addr != "" {
			t.Errorf("later, in a pool of one, it went to %s", addr)
		}
	})
}

// The mark may come after an upstream was chosen and before the session is counted there.
func TestDrainingWhileChoosing(t *testing.T) {
	pool := testPool(3)
	s := newTestSelection(pool)
	marked := ""
	s.healthy = func(u *reverseproxy.Upstream) bool {
		if marked == "" {
			marked = u.Dial
			drainUpstream(s, marked)
		}
		return true
	}
	r := newRequest(s, "/app")
	original := r.Header
	addr, _ := r.choose(pool)
	if addr == marked {
		t.Errorf("the session went to %s, which was marked meanwhile", addr)
	}
	if n := upstreamAt(s.table, marked).Slots.Sessions.Load(); n != 0 {
		t.Errorf("%d sessions are counted there", n)
	}
	if tg, k, ok := bokehtest.Ring.Verify(r.stamp()); !ok || tg != k.Tag(addr) {
		t.Errorf("the stamp does not name %s", addr)
	}
	if got := original.Get(bokeh.SessionIDHeader); got != r.stamp() {
		t.Errorf("where there are header operations another stamp is sent, %s", got)
	}
}

// With every upstream draining new visitors are told when to come back, once in the log, and sessions go on.
func TestAllDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		core, logs := observer.New(zapcore.ErrorLevel)
		s.logger = zap.New(core)
		home, token := landed(t, s, pool)
		drainUpstream(s, "u0:80")
		undrain := drainUpstream(s, "u1:80")
		w := httptest.NewRecorder()
		r := newRequest(s, "/app")
		for range 10 {
			if u := s.Select(pool, r.Request, w); u != nil {
				t.Fatalf("a new session went to %s", u.Dial)
			}
		}
		if w.Header().Get("Retry-After") == "" {
			t.Error("the visitor is not told when to come back")
		}
		if addr, why := newSocket(s, token).choose(pool); addr != home || why != "bound" {
			t.Errorf("a session of %s is %s at %s", home, why, addr)
		}
		if addr, _ := newRequest(s, "/static/x.js").choose(pool); addr == "" {
			t.Error("a file is refused")
		}
		undrain()
		if u := s.Select(pool, r.Request, w); u == nil || u.Dial != "u1:80" {
			t.Errorf("after one drain was taken back: %v", u)
		}
		if h := w.Header().Get("Retry-After"); h != "" {
			t.Errorf("the header stays: %s", h)
		}
		if n := logs.Len(); n != 1 {
			t.Errorf("%d lines are logged, want 1", n)
		}
		// Upstreams that are down are another matter.
		s.healthy = func(*reverseproxy.Upstream) bool { return false }
		w = httptest.NewRecorder()
		s.Select(pool, newRequest(s, "/app").Request, w)
		if h := w.Header().Get("Retry-After"); h != "" {
			t.Errorf("all are down, and the visitor is told to come back in %s", h)
		}
	})
}

// By config, in a running Caddy, over reloads.
func TestDrainByConfig(t *testing.T) {
	servers, addrs := three(t)
	config := "reverse_proxy " + addrs + " {\n lb_policy bokeh {\n %s\n }\n stream_close_delay 1h\n}"
	s := serve(t, fmt.Sprintf(config, ""))
	p, _ := s.visit()
	late := s.get("/app") // its socket comes after the mark
	for range 4 {
		s.visit()
	}
	drained := at(servers, p.Server)
	before := drained.appRuns()

	s.reload(fmt.Sprintf(config, "drain "+p.Server))
	for range 6 {
		s.visit()
	}
	if w := s.open(late.Token); w.server != late.Server {
		t.Errorf("page by %s, socket by %s", late.Server, w.server)
	}
	if w := s.open(p.Token); w.server != p.Server {
		t.Errorf("a second socket of a session of %s went to %s", p.Server, w.server)
	}
	if n := drained.appRuns(); n != before {
		t.Errorf("the draining server ran the app %d times more", n-before)
	}
	s.reload(fmt.Sprintf(config, "drain "+addrs))
	turnedAway := s.get("/app")
	if turnedAway.status != http.StatusServiceUnavailable || turnedAway.header.Get("Retry-After") == "" {
		t.Errorf("all draining: %d, Retry-After %q", turnedAway.status, turnedAway.header.Get("Retry-After"))
	}
	if w := s.open(p.Token); w.server != p.Server {
		t.Errorf("all draining: a session of %s went to %s", p.Server, w.server)
	}
	if err := s.load(fmt.Sprintf(config, "secret_key {env.CADDY_BOKEH_NOT_SET}\n drain "+addrs)); err == nil {
		t.Fatal("an empty key is no error")
	}
	s.reload(fmt.Sprintf(config, ""))
	for addr := range strings.FieldsSeq(addrs) {
		soon(t, "ready again", func() bool {
			tb := thisLedger()
			return !upstreamAt(tb, upstreamName(addr)).Drain.On()
		})
	}
}

// A typo must not look like success.
func TestDrainOfAStrangerIsWarnedOf(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	s := &Selection{Drain: []string{"LOCALHOST:5006", "localhost:50006"}}
	s.logger = zap.New(core)
	s.warnOfStrangers(&reverseproxy.Handler{Upstreams: reverseproxy.UpstreamPool{{Dial: "localhost:5006"}}})
	if n := logs.Len(); n != 1 || logs.All()[0].ContextMap()["upstream"] != "localhost:50006" {
		t.Errorf("%d warnings: %v", n, logs.All())
	}
}

// An upstream that a reload takes out of every pool keeps its sessions until they end, and gets no other.
func TestUpstreamGoneByReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startCaddyOn(t, "a", v.Door(), testPool(3))
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		others := testPool(3)[1:]
		reload := func(pool reverseproxy.UpstreamPool) {
			t.Helper()
			s := newTestSelectionWith(a.s.table, pool)
			s.join(a.Cluster, a.door)
			if err := a.s.Cleanup(); err != nil {
				t.Fatal(err)
			}
			a.s, a.pool = s, pool
		}
		state := func() string {
			st, err := upstreamMeant(a.Cluster, u0)
			if err != nil {
				return "unknown"
			}
			return st.State
		}
		reload(others)
		pass(time.Hour)
		if got := state(); got != api.StateGone {
			t.Errorf("it is %s", got)
		}
		for range 20 {
			r := newRequest(a.s, "/app")
			if addr, _ := r.choose(others); addr == u0 {
				t.Fatal("a new session went to the gone upstream")
			}
			r.end()
		}
		hangUp()
		pass(30 * time.Second)
		home, hangUp := a.socket(token)
		if home != u0 {
			t.Fatal("the session went to ", home)
		}
		// The token opens no door elsewhere.
		for what, r := range map[string]*request{
			"another path": newRequest(a.s, "/other/ws", "Upgrade", "websocket", "Connection", "Upgrade", "Sec-Websocket-Protocol", "bokeh, "+token),
			"another host": newRequest(a.s, "http://other/app/ws", "Upgrade", "websocket", "Connection", "Upgrade", "Sec-Websocket-Protocol", "bokeh, "+token),
		} {
			if addr, _ := r.choose(others); addr == u0 {
				t.Errorf("%s: the session's token leads to the gone upstream", what)
			}
			r.end()
		}
		// It comes back with its count.
		reload(testPool(3))
		if st, err := upstreamMeant(a.Cluster, u0); err != nil || st.State != api.StateReady || st.Total != 1 {
			t.Errorf("back: %+v %v", st, err)
		}
		reload(others)
		hangUp()
		pass(33 * time.Second)
		if got := state(); got != "unknown" {
			t.Errorf("without sessions it is %s", got)
		}
		if home, _ := a.socket(token); home == u0 {
			t.Error("a session that has ended went to the gone upstream")
		}
	})
}

// A gone upstream that refuses a connection is lost at once, as any.
func TestGoneUpstreamThatIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		var others reverseproxy.UpstreamPool
		for _, u := range pool {
			if u.Dial != home {
				others = append(others, u)
			}
		}
		next := newTestSelectionWith(s.table, others)
		_ = s.Cleanup()
		r := newSocket(next, token)
		if addr, why := r.choose(others); addr != home || why != "bound" {
			t.Fatalf("the socket is %s at %s", why, addr)
		}
		r.refuse()
		if addr, why := r.choose(others); addr == home || why != "moved" {
			t.Errorf("after a refusal the socket is %s at %s", why, addr)
		}
	})
}

// Through a running Caddy: the config does not name the server any more, and its visitors notice nothing.
func TestReloadTakesAnUpstreamOut(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	config := "reverse_proxy %s {\n lb_policy bokeh\n stream_close_delay 1h\n}"
	s := serve(t, fmt.Sprintf(config, b1.addr()))
	p, w := s.visit()
	if err := s.load(fmt.Sprintf(config, b2.addr())); err != nil {
		t.Fatal(err)
	}
	soon(t, "a second socket", func() bool {
		second, err := s.tryOpen("/app/ws", "bokeh, "+p.Token)
		if err == nil && second.server != b1.addr() {
			t.Fatalf("a session of %s went to %s", b1.addr(), second.server)
		}
		return err == nil
	})
	if _, next := s.visit(); next.server != b2.addr() {
		t.Errorf("a visit went to %s", next.server)
	}
	w.Close()
	if n := b1.appRuns() + b2.appRuns(); n != 2 {
		t.Errorf("the app ran %d times", n)
	}
}

// In Caddy, too, what never ends by itself is ended: the server is let go of, and who waits for a page is told that none comes.
func TestRequestsAreEnded(t *testing.T) {
	b := newBokeh(t, "")
	b.hold = make(chan struct{})
	let := make(chan error, 1)
	b.files = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				let <- err
				return
			}
		}
	})
	s := serve(t, "bokeh_proxy "+b.addr()+" {\n unused_session_lifetime 1s\n check_unused_sessions 1s\n}")
	got := make(chan page, 1)
	go func() { got <- s.get("/app") }()
	reader := s.halfAsked("/endless", "")
	if _, err := reader.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	soonCounts(t, "one is built, one is not read", b.addr(), tally{1, 1, 0, 0})
	u := thisLedger().Hold(upstreamName(b.addr()))
	defer thisLedger().Release(u)
	u.Drain.Requests.EndAll(time.Nanosecond)
	if p := <-got; p.status != http.StatusBadGateway {
		t.Errorf("who waited for a page got %d", p.status)
	}
	<-let
	soonCounts(t, "both have ended", b.addr(), tally{0, 0, 0, 0})
}
