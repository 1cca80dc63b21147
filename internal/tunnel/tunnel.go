// Package tunnel passes the bytes of a websocket between a client and a Bokeh server, and sees from the headers of frames and messages what
// the server has been asked and has answered. What passes is never changed, held back or kept. Where it is no websocket, or not Bokeh's
// protocol, it passes without being looked at. What a tunnel takes of memory is bounded, whatever passes.
//
// This file holds the tunnel.
package tunnel

import (
	"errors"
	"io"
	"sync"
)

// Watcher hears of what is said in one tunnel. Its methods are called one at a time, with the tunnel locked, so they return at once.
type Watcher interface {
	// Heard is called when something has come from the server, whatever that is.
	Heard()

	// Asked is called when all of something has been sent that the server is to answer. That the websocket opens is asked for as well, and
	// not told: New is called when that is so.
	Asked()

	// Answered is called when the server has begun to answer what was asked first of what it has not answered.
	Answered()

	// Refused is called if the first that the server says is that it closes, or if it ends without a word and the client has not gone.
	Refused()

	// Lost is called when it turns out that what passes cannot be read. What was asked and not answered is never known to be answered.
	// Only Heard is called from then on.
	Lost()
}

// Conn is the connection to the server, in whatever protocol, as the proxy uses it: what it reads comes from the server, what it writes is
// the client's. One goroutine may read and others write, as with a net.Conn.
type Conn struct {
	server io.ReadWriteCloser
	size   int // of a buffer; 0 where it grows with what passes

	watcher Watcher // nil where nobody watches

	mu      sync.Mutex // guards all below
	says    messages   // of the server
	asks    messages   // of the client
	greeted bool       // it is known whether the server acknowledges the websocket or refuses
	left    bool       // the client has gone, so it tells nothing if the server closes
	pending int        // what was asked and is not answered
}

// New returns a tunnel to a server, on a connection that has been upgraded. The buffers of its WriteTo and ReadFrom have size bytes; where
// that is 0 they are small while little passes, and grow to 32 KiB. Without a watcher nothing is looked at.
func New(server io.ReadWriteCloser, size int, w Watcher) *Conn {
	c := &Conn{server: server, size: size, watcher: w}
	c.asks.masked = true
	c.pending = 1 // a server acknowledges each websocket
	return c
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.server.Read(p)
	c.passedFromServer(p[:n], err)
	return n, err
}

// Write implements io.Writer.
func (c *Conn) Write(p []byte) (int, error) {
	c.passesToServer(p) // before it does, for the server may be quick to answer
	return c.server.Write(p)
}

// Close implements io.Closer.
func (c *Conn) Close() error {
	c.clientLeaves()
	return c.server.Close()
}

// CloseWrite tells the server that nothing more comes from the client. Its error is errors.ErrUnsupported where the connection cannot be
// closed on one side.
func (c *Conn) CloseWrite() error {
	c.clientLeaves()
	if half, can := c.server.(interface{ CloseWrite() error }); can {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// passedFromServer looks at what has come from the server.
func (c *Conn) passedFromServer(p []byte, err error) {
	if c.watcher == nil || len(p) == 0 && err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) > 0 {
		c.watcher.Heard()
	}
	if c.isLost() {
		return
	}
	t := c.says.read(p)
	if !c.greeted && (t.data || t.closes || c.says.lost || err != nil) {
		c.greeted = true
		switch {
		case t.data:
			t.answers++ // to the websocket, which it has acknowledged
		case t.closes, len(p) == 0 && errors.Is(err, io.EOF) && !c.left:
			c.watcher.Refused()
		}
	}
	c.answer(&t)
	if c.says.lost {
		c.watcher.Lost()
	}
}

// passesToServer looks at what is sent to the server.
func (c *Conn) passesToServer(p []byte) {
	if c.watcher == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isLost() {
		return
	}
	t := c.asks.read(p)
	if c.isPacked() {
		t.asks = min(t.asks, max(1-c.pending, 0)) // which of them are whole messages of Bokeh is unknown
	}
	c.ask(t.asks)
	if c.asks.lost {
		c.watcher.Lost()
	}
}

// isLost says whether one direction cannot be read, so that nothing is looked at any more. c.mu is locked.
func (c *Conn) isLost() bool { return c.says.lost || c.asks.lost }

// isPacked says whether messages are compressed, so that what answers what is unknown: any data answers all. c.mu is locked.
func (c *Conn) isPacked() bool { return c.says.packed || c.asks.packed }

// ask takes note of what the server is to answer. c.mu is locked.
func (c *Conn) ask(n int) {
	for range n {
		c.pending++
		c.watcher.Asked()
	}
}

// answer takes note of what the server has answered. c.mu is locked.
func (c *Conn) answer(t *tally) {
	answers := t.answers
	if t.data && c.isPacked() {
		answers = c.pending
	}
	for range min(answers, c.pending) {
		c.pending--
		c.watcher.Answered()
	}
}

// clientLeaves takes note that the client has gone.
func (c *Conn) clientLeaves() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
}
