// This file tests the tunnels of websockets, and what is learned from what a server first says in one.

package caddybokeh

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/tunnel"
)

// A websocket that the server opens only to close it has no session behind it, and takes nobody's place.
func TestRefusedWebsockets(t *testing.T) {
	for name, tc := range map[string]struct {
		says string // the server, before it closes
		want tally
	}{
		"closes":                       {"\x88\x00", tally{}},
		"closes with a code":           {"\x88\x02\x03\xf0", tally{}},
		"hangs up":                     {"", tally{}},
		"speaks, and closes then":      {"\x81\x02{}\x88\x00", tally{0, 0, 0, 1}},
		"speaks in parts, then closes": {"\x01\x01{\x80\x01}\x88\x00", tally{0, 0, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBokeh(t, "")
			b.greets = func(conn net.Conn) {
				fmt.Fprint(conn, tc.says)
				conn.Close()
			}
			s := serve(t, "bokeh_proxy "+b.addr()+" {\n max_sessions 1\n}")
			for range 3 {
				w, err := s.tryOpen("/app/ws", "bokeh, "+bokehtest.Token(t, "given", nil))
				if err != nil || w.status != http.StatusSwitchingProtocols {
					t.Fatalf("opened with %d, error %v", w.status, err)
				}
				soon(t, "closed", func() bool {
					_, err := w.Write([]byte("x"))
					return err != nil
				})
			}
			soonCounts(t, name, b.addr(), tc.want)
		})
	}
}

// Whose client goes before the server has said anything was not refused: a busy server says it later.
func TestClientGoesBeforeTheGreeting(t *testing.T) {
	b := newBokeh(t, "")
	b.greets = func(conn net.Conn) {
		_, _ = io.Copy(io.Discard, conn) // until the client has gone
		conn.Close()
	}
	s := serve(t, "bokeh_proxy "+b.addr())
	w := s.open(s.get("/app").Token)
	w.Close()
	soonCounts(t, "gone", b.addr(), tally{0, 0, 0, 1})
}

// echo is a server that upgrades whatever it is asked for, and says again what it is told until nothing more comes.
func echo(t *testing.T) (addr string) {
	t.Helper()
	return upgrader(t, func(conn net.Conn, said io.Reader) { _, _ = io.Copy(conn, said) })
}

// upgrader is a server that upgrades whatever it is asked for, and then talks.
func upgrader(t *testing.T, talk func(conn net.Conn, said io.Reader)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				br := bufio.NewReader(conn)
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
				talk(conn, br)
			}()
		}
	}()
	return l.Addr().String()
}

// Whatever passes through an upgraded connection comes out as it went in, whether that is one of Bokeh's or not, until both sides have said
// that nothing more comes.
func TestUpgradedConnectionsPassEverything(t *testing.T) {
	said := make([]byte, 3<<20)
	for i := range said {
		said[i] = byte(rand.Uint32())
	}
	for handler, config := range map[string]string{
		"the directive":       "bokeh_proxy %s",
		"the policy":          "reverse_proxy %s {\n lb_policy bokeh\n}",
		"buffers of a size":   "reverse_proxy %s {\n lb_policy bokeh\n stream_buffer_size 4096\n}",
		"a site of many":      "handle /other {\n reverse_proxy %[1]s {\n lb_policy bokeh\n}\n}\n bokeh_proxy %[1]s",
		"headers to upstream": "reverse_proxy %s {\n lb_policy bokeh\n header_up X-A b\n}",
	} {
		s := serve(t, fmt.Sprintf(config, echo(t)))
		for what, head := range map[string]string{
			"Bokeh's":           "GET /app/ws HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: bokeh, " + bokehtest.Token(t, "given", nil) + "\r\n",
			"another websocket": "GET /other HTTP/1.1\r\nUpgrade: websocket\r\n",
			"another protocol":  "GET /other HTTP/1.1\r\nUpgrade: something\r\n",
		} {
			t.Run(handler+", "+what, func(t *testing.T) {
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprintf(conn, "%sHost: %s\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", head, s.addr)
				br := bufio.NewReader(conn)
				res, err := http.ReadResponse(br, nil) //nolint:bodyclose // what follows is the connection's
				if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
					t.Fatal(res, err)
				}
				go func() {
					_, _ = conn.Write(said)
					_ = conn.(*net.TCPConn).CloseWrite()
				}()
				if got, err := io.ReadAll(br); err != nil || !bytes.Equal(got, said) {
					t.Errorf("%d of %d bytes have come back, or others: %v", len(got), len(said), err)
				}
			})
		}
	}
}

// A handler's own buffers are taken away where each connection that it upgrades becomes a tunnel, so each must: the handler would copy a byte
// at a time.
func TestEachUpgradeBecomesATunnel(t *testing.T) {
	for given, want := range map[int]int{-1: 0, 0: 0, 1000: 1000} {
		h := &reverseproxy.Handler{StreamBufferSize: given}
		if ts := tunnelsOf(h); h.StreamBufferSize != 1 || ts.size != want {
			t.Errorf("of buffers of %d the handler's are %d, and a tunnel's %d", given, h.StreamBufferSize, ts.size)
		}
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	own := new(reverseproxy.HTTPTransport)
	if err := own.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "http://"+echo(t)+"/", nil)
	r = r.WithContext(context.WithValue(t.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer())) // which is no visit
	r.RequestURI = ""
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	res, err := watchedTransport{own, new(Selection)}.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, is := res.Body.(*tunnel.Conn); !is || res.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("the body of %d is a %T", res.StatusCode, res.Body)
	}
	before := res.Body
	if new(tunnels).dig(res, nil); res.Body != before {
		t.Error("a tunnel goes through another one")
	}
}

// textFrames returns messages of a websocket as they pass; those of a client are masked, with nothing but zeros.
func textFrames(ofClient bool, texts ...string) (b []byte) {
	for _, text := range texts {
		if ofClient {
			b = append(b, 0x81, 0x80|byte(len(text)), 0, 0, 0, 0)
		} else {
			b = append(b, 0x81, byte(len(text)))
		}
		b = append(b, text...)
	}
	return b
}

// How long a server takes to answer a click is measured, and neither what is asked is kept nor what nobody asked for counted.
func TestRepliesAreMeasured(t *testing.T) {
	const takes = 60 * time.Millisecond
	click := textFrames(true, `{"msgid":"1","msgtype":"PATCH-DOC"}`, "{}", `{"events":[]}`)
	addr := upgrader(t, func(conn net.Conn, said io.Reader) {
		_, _ = conn.Write(textFrames(false, `{"msgid":"0","msgtype":"ACK"}`, "{}", "{}"))
		got := make([]byte, len(click))
		for {
			if _, err := io.ReadFull(said, got); err != nil || !bytes.Equal(got, click) {
				return
			}
			_, _ = conn.Write(textFrames(false, `{"msgid":"8","msgtype":"PATCH-DOC"}`, "{}", "{}")) // what the callback changes
			time.Sleep(takes)
			_, _ = conn.Write(textFrames(false, `{"msgid":"9","msgtype":"OK","reqid":"1"}`, "{}", "{}"))
		}
	})
	s := serve(t, "bokeh_proxy "+addr)
	w := s.open(bokehtest.Token(t, "given", nil))
	r := &upstreamAt(thisLedger(), addr).History.Replies
	answered := func(want uint64) {
		t.Helper()
		soon(t, "answered", func() bool { count, _, _ := r.Count(); return count == want })
	}
	answered(1) // that it is open
	for i := range uint64(2) {
		if _, err := w.Write(click); err != nil {
			t.Fatal(err)
		}
		answered(i + 2)
	}
	if _, sum, within := r.Count(); sum < 2*takes.Seconds() || within[.05] > 1 {
		t.Errorf("two clicks took %v s, within %v", sum, within)
	}
	if share := upstreamAt(thisLedger(), addr).History.Busy.Share(thisLedger().Now()); share <= 0 || share > 1 {
		t.Errorf("the server was busy for %v of its time", share)
	}
}
