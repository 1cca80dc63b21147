// This file holds the bodies of page requests: no page weighs before it is asked for completely.

package caddybokeh

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// mostBody bounds the body of a page request that is waited for. What a browser asks for as a page has none, and Bokeh reads
// no more of one than a form with a session's id.
const mostBody = 16 << 10

// body is what came with a request for a page or a websocket.
type body struct {
	read  bool // as far as it is waited for
	whole bool // and that is all of it
	bytes []byte
	rest  io.ReadCloser // of one that is too long or has broken
}

// receive waits for the body of a request that may begin a session. A server begins a page when it has all of the request
// (Tornado reads the body before it runs a handler), so half a request is no work. It would weigh like a page if it was sent
// on, for the price of an open connection. A page whose body is too long to be waited for weighs from the end of that on.
func (v *visit) receive(r *http.Request) {
	if v.Kind != bokeh.Page && v.Kind != bokeh.Socket {
		return
	}
	b := &v.body
	if !b.read {
		b.read = true
		b.readFrom(r.Body)
		v.startedAt = v.s.table.Now()
		v.hasBody = len(b.bytes) > 0 || !b.whole
		v.odd = v.odd || v.hasBody
		v.mayFail = v.mayFail || v.hasBody
	}
	v.putBack(b, r)
}

func (b *body) readFrom(from io.ReadCloser) {
	if b.whole = from == nil || from == http.NoBody; b.whole {
		return
	}
	var err error
	b.bytes, err = io.ReadAll(io.LimitReader(from, mostBody+1))
	b.whole = err == nil && len(b.bytes) <= mostBody
	b.rest = from
}

// putBack gives the request a body to read, for each attempt anew.
func (v *visit) putBack(b *body, r *http.Request) {
	switch {
	case b.rest == nil: // it never had one
	case !b.whole:
		r.Body = &lastPart{Reader: io.MultiReader(bytes.NewReader(b.bytes), b.rest), rest: b.rest, left: r.ContentLength, all: v.hasAll}
	case len(b.bytes) == 0:
		r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, 0, nil
	default:
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(b.bytes)), int64(len(b.bytes)), nil
	}
}

// lastPart is a body too long to be waited for. The server does not get the end of it before that has been counted.
type lastPart struct {
	io.Reader
	rest  io.Closer
	asked atomic.Bool  // for a first byte; it may be closed meanwhile
	left  int64        // bytes until the end; below 0 if nobody knows
	all   func() error // called once with the end, which it may refuse; nil after that
}

// Close implements io.Closer. What nobody has read of may be sent by the next attempt: a dial that fails closes the body too. Caddy sees to
// that by itself, but only for a body that was not read from, and of this one the first part was.
func (l *lastPart) Close() error {
	if !l.asked.Load() {
		return nil
	}
	return l.rest.Close()
}

// Read implements io.Reader.
func (l *lastPart) Read(p []byte) (int, error) {
	l.asked.Store(true)
	n, err := l.Reader.Read(p)
	if l.left >= 0 {
		l.left -= int64(n)
	}
	if l.all == nil || err != io.EOF && (err != nil || l.left != 0) {
		return n, err
	}
	all := l.all
	l.all = nil
	if refused := all(); refused != nil {
		return 0, refused
	}
	return n, err
}

// errNoSlot is that of a page whose body has come to its end when there is no slot for it any more.
var errNoSlot = errors.New("the upstream takes no new session any more")

// hasAll counts a page whose body has come to its end, and refuses it where no new session may begin by now.
func (v *visit) hasAll() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := v.attempt
	if a.finished || a.count == nil {
		return nil
	}
	a.weigh(a.count)
	if v.isOver() || v.ID == "" && a.m.Drain.On() || a.m.Drain.IsClosed() {
		a.load.PageEnded(false, false) // the server never has all of it
		a.load = sessions.Load{}
		v.finish(a, 0)
		return errNoSlot
	}
	return nil
}
