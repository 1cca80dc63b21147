// This file holds what a server first says on a websocket: whether it has a session behind it, or refuses.

package caddybokeh

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// Opcodes of websocket frames (RFC 6455, section 5.2).
const (
	opcodeBits  = 0x0f
	opcodeClose = 0x8
)

// greeting is the body of a websocket whose first frame from the server is looked at as it passes. Bokeh looks at the token when it has
// upgraded the connection: to one that has expired, or is signed by nobody, it says nothing but that it closes, or not even that (bokeh/server/views/ws.py,
// open), and no app has run. To all others its first frame is the ACK.
type greeting struct {
	io.ReadWriteCloser
	refused func()      // called if the server refuses; nil once it has said something
	left    atomic.Bool // the client has gone, so that it tells nothing if the server closes
}

// Read implements io.Reader.
func (g *greeting) Read(p []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(p)
	if g.refused == nil || n == 0 && err == nil {
		return n, err
	}
	if n == 0 && err == io.EOF && !g.left.Load() || n > 0 && p[0]&opcodeBits == opcodeClose {
		g.refused()
	}
	g.refused = nil
	return n, err
}

// Close implements io.Closer.
func (g *greeting) Close() error {
	g.left.Store(true)
	return g.ReadWriteCloser.Close()
}

// CloseWrite closes one direction, as the body of a websocket can.
func (g *greeting) CloseWrite() error {
	g.left.Store(true)
	if half, ok := g.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// listen looks at what the server says first on a websocket. v.mu is locked.
func (v *visit) listen(a *attempt, res *http.Response) {
	if v.Kind != bokeh.Socket {
		return
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		v.finish(a, res.StatusCode) // however long its client takes to read that
		return
	}
	a.load.SocketOpened()
	conn, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		return
	}
	res.Body = &greeting{ReadWriteCloser: conn, refused: func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		a.refused = true
	}}
}
