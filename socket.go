// This file holds the tunnel that a websocket becomes, and what is heard in it.

package caddybokeh

import (
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/tunnel"
)

// tunnels is how a policy makes tunnels of the connections that its handler upgrades. All of them become one, also those that
// are nobody's session, for the handler's own buffers are gone.
type tunnels struct {
	size int // of the buffers, as the handler's stream_buffer_size says; 0 where it says nothing, and they grow with what passes
}

// tunnelsOf returns how a handler's tunnels are made, and takes its own buffers away: for each direction of a connection it makes one that
// a tunnel does not use.
func tunnelsOf(h *reverseproxy.Handler) tunnels {
	size := max(h.StreamBufferSize, 0) // to Caddy less is nothing as well
	h.StreamBufferSize = 1
	return tunnels{size}
}

// dig makes a tunnel of an upgraded connection, unless it is one or is not upgraded. A watcher hears what is said in it; nil if nobody does.
func (ts tunnels) dig(res *http.Response, w tunnel.Watcher) {
	if res.StatusCode != http.StatusSwitchingProtocols {
		return
	}
	if _, is := res.Body.(*tunnel.Conn); is {
		return
	}
	if conn, ok := res.Body.(io.ReadWriteCloser); ok {
		res.Body = tunnel.New(conn, ts.size, w)
	}
}

// listen hears what is said on a websocket that has been answered. v.mu is locked.
func (v *visit) listen(a *attempt, res *http.Response) {
	if v.Kind != bokeh.Socket {
		return
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		v.finish(a, res.StatusCode) // however long its client takes to read that
		return
	}
	a.load.SocketOpened()
	a.talk = sessions.NewTalk(a.m.Upstream)
	a.talk.Asked(v.s.table.Now()) // to acknowledge the websocket
	v.s.tunnels.dig(res, &listener{v, a})
}

// listener hears what is said in the tunnel of a visit.
type listener struct {
	v *visit
	a *attempt
}

// Refused implements tunnel.Watcher. Bokeh looks at the token when it has upgraded the connection: to one that has expired, or is signed by
// nobody, it says nothing but that it closes, or not even that (bokeh/server/views/ws.py, open), and no app has run.
func (l *listener) Refused() {
	l.v.mu.Lock()
	defer l.v.mu.Unlock()
	l.a.refused = true
}

// Heard implements tunnel.Watcher.
func (*listener) Heard() {}

// Asked implements tunnel.Watcher.
func (l *listener) Asked() { l.a.talk.Asked(l.v.s.table.Now()) }

// Answered implements tunnel.Watcher.
func (l *listener) Answered() { l.a.talk.Answered(l.v.s.table.Now()) }

// Lost implements tunnel.Watcher.
func (l *listener) Lost() { l.a.talk.End(l.v.s.table.Now()) }

// Interface guard
var _ tunnel.Watcher = (*listener)(nil)
