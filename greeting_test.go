// This file tests what is learned from what a server first says on a websocket.

package caddybokeh

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
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

// halfConn is a connection of which one direction can be closed.
type halfConn struct {
	net.Conn
	closed bool
}

func (c *halfConn) CloseWrite() error {
	c.closed = true
	return nil
}

// A websocket that is listened to can be closed by halves as one that is not.
func TestGreetingClosesByHalves(t *testing.T) {
	conn := new(halfConn)
	if err := (&greeting{ReadWriteCloser: conn}).CloseWrite(); err != nil || !conn.closed {
		t.Errorf("closed: %v, error %v", conn.closed, err)
	}
	if err := (&greeting{ReadWriteCloser: struct{ io.ReadWriteCloser }{}}).CloseWrite(); err == nil {
		t.Error("what cannot be closed by halves was")
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
