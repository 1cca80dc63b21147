// This file tests that a page weighs nothing before it is asked for completely.

package caddybokeh

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// halfAsked asks for a path with a body of which nothing comes.
func (s *site) halfAsked(path, header string) net.Conn {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10\r\n%s\r\n", path, s.addr, header)
	return conn
}

// Whoever holds half requests open shuts nobody out.
func TestHalfRequestsWeighNothing(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "bokeh_proxy "+addrs+" {\n max_sessions 1\n}")
	token := bokehtest.Token(t, "given", nil)
	for range 10 {
		s.halfAsked("/app", "")
		s.halfAsked("/app?bokeh-session-id=given", "")
		s.halfAsked("/app/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: bokeh, "+token+"\r\n")
	}
	last := s.halfAsked("/app", "")
	for range 3 {
		s.visit()
	}
	if got := runs(servers); got != 3 {
		t.Errorf("the app ran %d times for 3 visits", got)
	}
	for _, b := range servers {
		soonCounts(t, "visited once", b.addr(), tally{0, 0, 1, 0})
	}
	// What comes to its end is a page like any other, for which there is no place here.
	if _, err := last.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 12)
	if _, err := io.ReadFull(last, answer); err != nil || string(answer) != "HTTP/1.1 503" {
		t.Errorf("answered with %q, error %v", answer, err)
	}
}

// A server gets the body as the client has sent it.
func TestBodyOfAPage(t *testing.T) {
	b := newBokeh(t, "")
	b.files = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %v %s", r.ContentLength, err, got)
	})
	s := serve(t, "bokeh_proxy "+deadAddr(t)+" "+deadAddr(t)+" "+b.addr())
	for name, tc := range map[string]struct {
		body   io.Reader
		length int
	}{
		"none":            {nil, 0},
		"short":           {strings.NewReader("0123456789"), 10},
		"of no length":    {io.MultiReader(strings.NewReader("0123456789")), 10},
		"as much as goes": {strings.NewReader(strings.Repeat("x", mostBody)), mostBody},
		"long":            {strings.NewReader(strings.Repeat("x", mostBody+1)), mostBody + 1},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequest(http.MethodGet, "http://"+s.addr+"/echo/"+url.PathEscape(name), tc.body) // each at an address of which nothing is known
			if err != nil {
				t.Fatal(err)
			}
			res, err := s.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			got, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			head := fmt.Sprintf("%d <nil> ", tc.length)
			if body, ok := strings.CutPrefix(string(got), head); !ok || len(body) != tc.length {
				t.Errorf("status %d, the server got %d bytes, %.60q", res.StatusCode, len(got)-len(head), got)
			}
		})
	}
}

// A page whose server refuses the connection is asked of another one, however long its body is.
func TestBodyIsTriedElsewhere(t *testing.T) {
	for name, size := range map[string]int{"short": 100, "as much as goes": mostBody, "a bit more": mostBody + 1024, "long": 4 * mostBody} {
		t.Run(name, func(t *testing.T) {
			b := newBokeh(t, "")
			b.files = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, n, err)
			})
			s := serve(t, "bokeh_proxy "+deadAddr(t)+" "+b.addr())
			for i := range 8 { // half of them begin at the dead one
				r, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s/echo/%d", s.addr, i), strings.NewReader(strings.Repeat("x", size)))
				if err != nil {
					t.Fatal(err)
				}
				res, err := s.client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if want := fmt.Sprint(size, nil); err != nil || string(got) != want {
					t.Errorf("page %d: status %d, %q, error %v; the server is to get %q", i, res.StatusCode, got, err, want)
				}
				thisLedger().Each(func(u *sessions.Upstream) { // the dead one may be well again
					u.Breaker.Success()
					u.Dialed(0, 0, 0, nil)
				})
			}
		})
	}
}

// endless is a body of which only the first part comes.
type endless struct {
	io.Reader
	more chan struct{}
}

func (e endless) Read(p []byte) (int, error) {
	if n, err := e.Reader.Read(p); err == nil {
		return n, nil
	}
	<-e.more
	return 0, io.EOF
}

func (endless) Close() error { return nil }

// Too long a body is not waited for: such a page counts when it is answered.
func TestPageWithALongBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		page := newRequest(newTestSelection(pool), "/app")
		body := endless{strings.NewReader(strings.Repeat("x", mostBody+1)), make(chan struct{})}
		page.Body, page.ContentLength = body, 1<<30
		page.choose(pool)
		u := page.visit().attempt.m
		if got := u.Slots.Sessions.Load(); got != 0 {
			t.Errorf("%d sessions before the answer", got)
		}
		page.answer(200)
		synctest.Wait()
		if got := u.Count(sessions.Waiting); got != 1 {
			t.Errorf("%d pages wait for their socket, want 1", got)
		}
		close(body.more)
	})
}

// Over HTTP/3 a request does not say whether it has a body. What has none is a page like any other.
func TestBodyOverHTTP3(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		ask := func(body string) (*request, endless) {
			page := newRequest(s, "/app")
			e := endless{strings.NewReader(body), make(chan struct{})}
			page.ProtoMajor, page.Body, page.ContentLength = 3, e, -1
			go page.choose(pool)
			synctest.Wait()
			return page, e
		}
		half, end := ask("0123456789")
		none, endOfNone := ask("")
		close(endOfNone.more)
		synctest.Wait()
		u := s.index.Load().all[0].member
		if got := u.Count(sessions.Building); got != 1 {
			t.Errorf("%d pages are built, want that which is complete", got)
		}
		if none.Body != http.NoBody || none.ContentLength != 0 || none.visit().mayFail {
			t.Error("what brings no body counts as something that may fail by itself")
		}
		close(end.more)
		synctest.Wait()
		if got := u.Count(sessions.Building); got != 2 || !half.visit().mayFail {
			t.Errorf("%d pages are built, want 2", got)
		}
	})
}

// Pages whose visitors have gone weigh as long as the server may be at them, and no longer.
func TestPagesThatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		page := func() *request {
			r := newRequest(s, "/app")
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			return r
		}
		u := func() *sessions.Upstream { return s.index.Load().all[0].Upstream }
		weighs := func(when string, want int64) {
			t.Helper()
			synctest.Wait()
			if got := u().Backlog(); got != want {
				t.Errorf("%s: %d pages weigh, want %d", when, got, want)
			}
		}
		for range 3 { // so that it is known what a page takes
			r := page()
			time.Sleep(100 * time.Millisecond)
			r.answer(200)
		}
		first, second := page(), page()
		time.Sleep(10 * time.Millisecond)
		first.end()
		second.end()
		weighs("left at once", 2)
		time.Sleep(91 * time.Millisecond)
		weighs("the first is done", 1)
		time.Sleep(100 * time.Millisecond)
		weighs("the second is done", 0)

		for range 10 {
			again := newRequest(s, "/app?bokeh-session-id=given")
			again.choose(pool)
			again.visit().connected(again.visit().attempt)
			again.end()
		}
		weighs("one session, left again and again", 1)
		time.Sleep(200 * time.Millisecond)

		hangs := page()
		time.Sleep(3 * time.Second)
		hangs.end()
		weighs("left after long", 1)
		time.Sleep(2900 * time.Millisecond)
		weighs("almost as long again", 1)
		time.Sleep(101 * time.Millisecond)
		weighs("as long again", 0)

		left := page()
		time.Sleep(time.Second)
		left.end()
		weighs("left after a second", 1)
		file := newRequest(s, "/static/x.js")
		file.choose(pool)
		file.answer(200)
		weighs("what was asked later is answered", 0)
	})
}

// A server that sends 103 Early Hints is still at the page.
func TestEarlyHintsAreNoPage(t *testing.T) {
	for name, transport := range map[string]string{"by itself": "", "of the config": "\n transport http"} {
		t.Run(name, func(t *testing.T) {
			b := newBokeh(t, "")
			b.hints, b.hold = true, make(chan struct{})
			s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh"+transport+"\n}")
			hinted := make(chan struct{})
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
				close(hinted)
				return nil
			}})
			got := make(chan error, 1)
			go func() {
				_, err := s.tryGet(ctx, "/app")
				got <- err
			}()
			<-hinted
			if got := sessionsOf(b.addr()); got != (tally{1, 0, 0, 0}) {
				t.Errorf("hinted: building, waiting, connected, unused = %v", got)
			}
			close(b.hold)
			if err := <-got; err != nil {
				t.Error(err)
			}
			soonCounts(t, "built", b.addr(), tally{0, 1, 0, 0})
		})
	}
}
