// This file tests what goes wrong: cut sockets, restarts, reloads, servers that die or hang.

package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

func TestReconnect(t *testing.T) {
	t.Parallel()
	f := start(t, plan{size: 2})
	for range 3 {
		b := f.visit()
		b.clicks(2)
		place := b.place()
		b.mark()
		f.front.cut()
		b.reconnected()
		b.click(3)
		if b.place() != place {
			t.Errorf("the document was on server %s, now on %s", place, b.place())
		}
		b.close()
	}
	f.wantRuns(3)
}

func TestCaddyRestarts(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]string{"stored key": "", "own key": "bokeh {\n\t\t\tsecret_key ours\n\t\t}"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, plan{size: 2, policy: policy})
			tabs := f.atWork(4)
			f.restartCaddy()
			for _, b := range tabs {
				b.reconnected()
				b.click(3)
			}
			f.wantRuns(4)
		})
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]bool{"with stream_close_delay": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, plan{size: 2, keepAlive: keep})
			tabs := f.atWork(3)
			f.reload()
			for _, b := range tabs {
				if !keep {
					b.reconnected()
				}
				b.click(3)
				if b.kept() != keep {
					t.Errorf("the websocket was kept: %v, want %v", b.kept(), keep)
				}
			}
			f.visit().click(1)
			f.wantRuns(4)
		})
	}
}

// A server that dies while people visit costs the visit that it had begun, which may be what it died of; without retries
// also the one that finds it dead. Its own visitors get a fresh document on another server.
func TestServerDies(t *testing.T) {
	t.Parallel()
	for name, proxy := range map[string]string{"with retries": "\t\tlb_try_duration 5s", "without": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, plan{proxy: proxy})
			tabs := f.atWork(3)
			dead := tabs[0].place()
			go f.server(dead).Kill()
			failed := 0
			for range 8 {
				b := newTab(t)
				if b.goTo(f.url("/counter")) != http.StatusOK {
					failed++
				} else {
					b.ready()
					b.click(1)
				}
				b.close()
			}
			if most := map[string]int{"with retries": 1, "without": 2}[name]; failed > most {
				t.Errorf("%d visits failed, want at most %d", failed, most)
			}
			tabs[0].reconnected()
			tabs[0].await("the document is fresh", `model("count").text == "0"`)
			tabs[0].click(1)
			if at := tabs[0].place(); at == dead {
				t.Errorf("the document is still on server %s", at)
			}
			for _, b := range tabs[1:] {
				b.click(3)
				if !b.kept() {
					t.Error("a session of another server was moved")
				}
			}
			// It stays where it moved.
			moved := tabs[0].place()
			tabs[0].mark()
			f.front.cut()
			tabs[0].reconnected()
			tabs[0].click(2)
			if at := tabs[0].place(); at != moved {
				t.Errorf("it moved again, from server %s to %s", moved, at)
			}
			// The server may have run the app for a page that it did not live to send.
			want := 3 + 8 - failed + 1
			if n, by := f.appRuns(); n < want || n > want+1 {
				t.Errorf("the app ran %d times, want %d, or one more: %v", n, want, by)
			}
		})
	}
}

// A server that hangs, and is called down by health checks, costs no new visit; its own visitors
// come back to it when it goes on.
func TestServerHangs(t *testing.T) {
	t.Parallel()
	f := start(t, plan{proxy: "\t\thealth_uri /counter/metadata\n\t\thealth_interval 250ms\n\t\thealth_timeout " + stack.Stretch(time.Second).String()})
	b := f.visit()
	b.clicks(2)
	b.mark()
	place := b.place()
	hung := f.server(place)
	if err := hung.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.awaitLog("HTTP request failed")
	for i := range 6 {
		if i == 3 {
			// By now the policy has seen the server down, and still must send its visitor there.
			f.front.cut()
		}
		// A browser opens one websocket to a site after the other, and its first one hangs now.
		other := f.visitIn(newVisitor(t))
		other.click(1)
		if other.place() == place {
			t.Error("a new visit went to the server that hangs")
		}
		other.close()
	}
	time.AfterFunc(2*time.Second, func() { _ = hung.Signal(syscall.SIGCONT) })
	b.reconnected()
	b.click(3)
	if b.place() != place {
		t.Errorf("the document was on server %s, now on %s", place, b.place())
	}
	f.wantRuns(7)
}

// noise is text that cannot be packed well.
func noise(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(rand.Text())
	}
	return b.String()[:n]
}

// A visitor with many cookies is served, by uvicorn where that is told to take such headers; where not, the log says so, and what
// helps with that server.
func TestManyCookies(t *testing.T) {
	t.Parallel()
	const takes, refused = "WEBSOCKETS_MAX_LINE_LENGTH=65536", "does not take a websocket with a long header"
	// Without it a header that happens to come in pieces is refused, which is one in ten here.
	inPieces := []string{"--h11-max-incomplete-event-size", "65536"}
	told := func(c stackCase) stackCase {
		c.serve, c.serveEnv = inPieces, []string{takes}
		return c
	}
	daphne := underUvicorn("Daphne", "bokeh_asgi")
	daphne.program = []string{"daphne", "bokeh_asgi:application", "--bind", "127.0.0.1"}
	for _, c := range []struct {
		stackCase
		advice string // empty where the visitor is served
	}{
		{bokehServe("Tornado", ""), ""},
		{underUvicorn("uvicorn", "bokeh_asgi"), takes},
		{told(underUvicorn("uvicorn that was told", "bokeh_asgi")), ""},
		{told(underUvicorn("bokeh-fastapi where uvicorn was told", "bokeh_fastapi_app")), ""},
		{daphne, "daphne's limit is 16 KB and cannot be raised"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := c.withTestFiles()
			p.size = 1
			f := start(t, p)
			b := newVisitor(t)
			for i := range 3 { // one has 4 KB at most
				send(b, network.SetCookie, network.SetCookieParams{Name: fmt.Sprint("c", i), Value: noise(3000), URL: f.url("/")})
			}
			if c.advice != "" {
				b.goTo(f.url(c.page))
				f.awaitLog(c.advice)
				return
			}
			f.visitIn(b).clicks(2)
			var token string
			if b.eval(`tokens.at(-1)`, &token); len(token) < 8192 {
				t.Errorf("the token has %d bytes", len(token))
			}
			f.wantRuns(1)
			if strings.Contains(f.caddy.Output(), refused) {
				t.Error("what works is called a mistake")
			}
		})
	}
}

// What real servers refuse is logged with the flag that mends it.
func TestMistakesAreLogged(t *testing.T) {
	t.Parallel()
	life := stack.Stretch(10 * time.Second).Truncate(time.Second)
	f := start(t, plan{size: 1, serve: []string{"--session-token-expiration", fmt.Sprint(life.Seconds())}})
	b := f.visit()
	b.click(1)
	var tokens []string
	b.eval(`window.tokens`, &tokens)
	origins := []string{"http://elsewhere.example:8080", "http://[2001:db8::1]:8080", "null"}
	for _, origin := range origins { // before the token expires
		if got := status(t, f.url("/counter/ws"), with(socketHeader("bokeh, "+tokens[0]), "Origin", origin)); !strings.HasPrefix(got, "403") {
			t.Errorf("a websocket of a page of %s is answered with %s", origin, got)
		}
	}
	f.awaitLog("--allow-websocket-origin=elsewhere.example:8080")
	f.awaitLog("BOKEH_ALLOW_WS_ORIGIN=[2001:db8::1]:8080")
	f.awaitLog("belongs to no site")
	time.Sleep(life + 2*time.Second) // the token expires by the servers' clock
	f.front.cut()
	f.awaitLog("--session-token-expiration")
}

// A server that is told what the log says of a page at an IPv6 address lets that in.
func TestAdviceOnIPv6Works(t *testing.T) {
	t.Parallel()
	f := start(t, plan{size: 1, serveEnv: []string{"BOKEH_ALLOW_WS_ORIGIN=[2001:db8::1]:8080"}})
	token := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"session_id":"x","session_expiry":%d}`, time.Now().Add(time.Hour).Unix()))
	if got := status(t, f.url("/counter/ws"), with(socketHeader("bokeh, "+token), "Origin", "http://[2001:db8::1]:8080")); !strings.HasPrefix(got, "101") {
		t.Errorf("the websocket of a page at an address that is allowed is answered with %s", got)
	}
}
