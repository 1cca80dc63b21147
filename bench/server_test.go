// This file holds the tests of the simulated server: its thread, and when a session begins and ends.

package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestThread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var one thread
		begun := time.Now()
		ends := make(chan time.Duration, 4)
		do := func(d time.Duration) {
			go func() {
				_ = one.work(t.Context(), d)
				ends <- time.Since(begun)
			}()
			synctest.Wait()
		}
		do(20 * time.Millisecond)
		do(10 * time.Millisecond)
		do(0) // waits for what came before
		time.Sleep(100 * time.Millisecond)
		do(5 * time.Millisecond) // was idle
		time.Sleep(time.Second)
		for _, want := range []int64{20, 30, 30, 105} {
			if got := (<-ends).Milliseconds(); got != want {
				t.Errorf("done after %d ms, want %d", got, want)
			}
		}
		if !one.busyUntil().Equal(begun.Add(105 * time.Millisecond)) {
			t.Errorf("busy until %v", one.busyUntil().Sub(begun))
		}
	})
}

func TestGauge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauge
		g.add(2)
		time.Sleep(time.Second)
		g.add(-1)
		time.Sleep(3 * time.Second)
		if got := g.sum(); got != 5 {
			t.Errorf("two for a second and one for three are %v", got)
		}
	})
}

// As Bokeh's defaults: a session without a socket is unused for 15 s, and found within 17 s more. Here five times faster.
func TestSessionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		defer end()
		s := &server{pace: 1, runs: &runs{of: map[string]int{}}}
		l := &life{server: s, ctx: ctx, docs: map[string]*doc{}}
		go l.check()
		page := httptest.NewRequest(http.MethodGet, "/app?cost=20000000&visit=1", nil)
		left, stays := "left", "stays"
		for _, id := range []string{left, stays, stays} {
			if err := l.open(id, page); err != nil {
				t.Fatal(err)
			}
		}
		l.connect(stays, 1)
		if s.runs.of["1"] != 2 {
			t.Errorf("the app ran %d times for two sessions", s.runs.of["1"])
		}
		has := func(want ...string) {
			t.Helper()
			synctest.Wait()
			l.mu.Lock()
			defer l.mu.Unlock()
			var got []string
			for id := range l.docs {
				got = append(got, id)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("sessions %v, want %v", got, want)
			}
		}
		time.Sleep(unusedLifetime - 100*time.Millisecond)
		has(left, stays)
		time.Sleep(checkUnused + 100*time.Millisecond)
		has(stays)
		l.connect(stays, -1)
		time.Sleep(unusedLifetime - 100*time.Millisecond)
		has(stays)
		time.Sleep(checkUnused + 100*time.Millisecond)
		has()
	})
}

func TestServer(t *testing.T) {
	addrs, err := freeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: addrs[0], pace: 1, runs: &runs{of: map[string]int{}}}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.kill()
	leave := make(chan struct{})
	v := visit{
		visitor: newVisitor(netip.MustParseAddr("127.1.2.3"), true), to: proxy{s.addr},
		app: "/app", query: "cost=1000000&visit=1", again: "cost=1000000&visit=again", stay: time.Hour, leave: leave,
	}
	at, token, err := v.page(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := v.socket(t.Context(), at, token, v.query)
		if err != nil {
			t.Fatal(err)
		}
		c.CloseNow()
	}
	if s.runs.of["1"] != 1 {
		t.Errorf("the app ran %d times for a page and two sockets of its session", s.runs.of["1"])
	}

	// A server that dies and is back knows nobody; a browser comes again and finds a new document.
	ready := make(chan struct{})
	v.ready = func() { close(ready) }
	done := make(chan outcome)
	go func() { done <- v.begin(t.Context(), time.Now()) }()
	<-ready
	s.kill()
	if _, _, err := v.page(t.Context()); err == nil {
		t.Error("a dead server answers")
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	for again := func() bool {
		s.runs.mu.Lock()
		defer s.runs.mu.Unlock()
		return s.runs.of["again"] > 0
	}; !again(); {
		time.Sleep(10 * time.Millisecond)
	}
	close(leave)
	if o := <-done; o.failed == "lost" || o.ready == 0 {
		t.Errorf("a browser that was cut off: %+v", o)
	}

	s.fails.Store(true)
	if _, _, err := v.page(t.Context()); err == nil || err.Error() != "500" {
		t.Errorf("a server that fails: %v", err)
	}
}

// A server runs no app before it has the body of a request, and some addresses fail at any server.
func TestBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{pace: 1, runs: &runs{of: map[string]int{}}}
		l := &life{server: s, ctx: t.Context(), docs: map[string]*doc{}}
		body, rest := io.Pipe()
		page, failing := httptest.NewRecorder(), httptest.NewRecorder()
		go l.page(page, httptest.NewRequest(http.MethodGet, "/app?cost=1&visit=1", body))
		time.Sleep(time.Hour)
		synctest.Wait()
		if s.runs.of["1"] != 0 {
			t.Error("the app ran before the body was there")
		}
		rest.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if page.Code != http.StatusOK || s.runs.of["1"] != 1 {
			t.Errorf("%d, and the app ran %d times", page.Code, s.runs.of["1"])
		}
		l.page(failing, httptest.NewRequest(http.MethodGet, "/app?"+failingQuery, nil))
		if failing.Code != http.StatusInternalServerError {
			t.Errorf("%d", failing.Code)
		}
	})
}

// A server takes the id that a page request brings, and puts its headers into the token.
func TestToken(t *testing.T) {
	page := httptest.NewRequest(http.MethodGet, "/app", nil)
	page.Header.Set("Bokeh-Session-Id", "brought")
	ws := httptest.NewRequest(http.MethodGet, "/app/ws", nil)
	ws.Header.Set("Sec-WebSocket-Protocol", "bokeh, "+newToken(sessionID(page), page))
	if id, err := idOfToken(ws); id != "brought" || err != nil {
		t.Errorf("id %q, %v", id, err)
	}
	page.Header.Del("Bokeh-Session-Id")
	if a, b := sessionID(page), sessionID(page); a == b {
		t.Error("two sessions have one id")
	}
}
