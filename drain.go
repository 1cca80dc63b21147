// This file holds which upstreams are draining: they get no new session and keep their own.

package caddybokeh

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// maxEnded bounds what is remembered of the sessions of a draining upstream. Only a client that
// makes up ids for a stamp of its own gets there.
const maxEnded = 1 << 16

// draining says whether an upstream is draining, and what must be remembered for as long.
type draining struct {
	is      atomic.Int32         // what follows from configs and said: one of the three below
	configs atomic.Int64         // policies whose config drains the upstream
	begun   atomic.Int64         // when the first of them did, as Unix time in milliseconds
	said    atomic.Pointer[said] // by which an operator drains it, or nil
	empty   atomic.Int64         // until when it is certain that no session is left on any node, on the table's clock
	alone   atomic.Int64         // until when it is certain that no other node has sessions there, on the same clock

	reopened atomic.Int64 // when it was opened again last after it was closed, on the same clock; 0 if never
	requests requests

	mu sync.Mutex // guards ended, and the change of is
	// ended are the sessions that have ended since it drains. Their stamps still name the
	// upstream, but what comes with one of them would begin anew there.
	ended map[sessionKey]struct{}
}

// said is what an operator says of an upstream that drains.
type said struct {
	closed bool      // its grace period is over
	since  time.Time // it drains
}

const (
	isReady    = iota
	isDraining // gets no new session
	isClosed   // gets nothing
)

// on says whether the upstream is draining, or closed.
func (d *draining) on() bool { return d.is.Load() != isReady }

// closed says whether nothing may go to the upstream.
func (d *draining) closed() bool { return d.is.Load() == isClosed }

// isEmpty says whether the upstream drains, and it is certain that no session is left.
func (d *draining) isEmpty(now time.Duration) bool {
	return d.on() && now <= time.Duration(d.empty.Load())
}

// since returns when the upstream began to drain, or the zero time if it does not.
func (d *draining) since() time.Time {
	if s := d.said.Load(); s != nil {
		return s.since
	}
	if at := d.begun.Load(); at != 0 && d.configs.Load() > 0 {
		return time.UnixMilli(at)
	}
	return time.Time{}
}

// add counts a config that drains the upstream, or one less.
func (d *draining) add(n int64) {
	if d.configs.Add(n) == 1 && n > 0 {
		d.begun.Store(time.Now().UnixMilli())
	}
	d.changed()
}

// set makes s what an operator says of the upstream; nil takes the drain back.
func (d *draining) set(s *said) {
	d.said.Store(s)
	d.empty.Store(0) // that was found of another drain
	if s == nil || !s.closed {
		d.requests.reopen()
	}
	d.changed()
}

// doubt takes note that it is not certain any more that the upstream is empty.
func (d *draining) doubt() { d.empty.Store(0) }

// changed brings everything in line with configs and said.
func (d *draining) changed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.said.Load()
	switch {
	case s != nil && s.closed:
		d.is.Store(isClosed)
	case s != nil || d.configs.Load() > 0:
		d.is.Store(isDraining)
	default:
		d.is.Store(isReady)
		d.empty.Store(0)
		d.ended = nil
	}
}

// remember takes note that a session has ended, or has moved away, if the upstream is draining.
func (d *draining) remember(k sessionKey) {
	if !d.on() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on() {
		return
	}
	if d.ended == nil {
		d.ended = make(map[sessionKey]struct{})
	}
	for old := range d.ended {
		if len(d.ended) < maxEnded {
			break
		}
		delete(d.ended, old)
	}
	d.ended[k] = struct{}{}
}

// hasEnded says whether one of the keys is that of a session that has certainly ended. All have
// where the upstream is empty. Where there are other nodes, one that has ended here may live on
// through another.
func (d *draining) hasEnded(now time.Duration, keys ...sessionKey) bool {
	switch {
	case d.isEmpty(now):
		return true
	case now > time.Duration(d.alone.Load()):
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range keys {
		if _, ended := d.ended[k]; ended {
			return true
		}
	}
	return false
}

// requests are those that an upstream has not done with, so that they can be ended.
type requests struct {
	mu   sync.Mutex // guards all below
	open map[*openRequest]struct{}
	late time.Time // by when all are ended; zero if they are not to be
}

// openRequest is one of them.
type openRequest struct {
	tunnel time.Time // since when it is one; zero for what is no websocket, or is not answered yet
	run    interface {
		cutOff() // ends it, and what is counted of it
	}
}

// tunnelRest is how long a websocket is let be after its answer: before the browser has that, the
// end of it would be a failed request.
const tunnelRest = time.Second

// add takes note of a request that was sent.
func (rs *requests) add(r *openRequest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.open == nil {
		rs.open = make(map[*openRequest]struct{})
	}
	rs.open[r] = struct{}{}
	if !rs.late.IsZero() {
		// It was on its way when the others were told to end.
		rs.endIn(r, rand.N(max(time.Until(rs.late), 1)))
	}
}

// opened takes note that a request has become a websocket.
func (rs *requests) opened(r *openRequest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r.tunnel = time.Now()
}

// remove forgets a request that is over.
func (rs *requests) remove(r *openRequest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.open, r)
}

// endAll ends all, evenly spread over a span, and says how many they are, and how many of them are websockets.
func (rs *requests) endAll(span time.Duration) (all, tunnels int) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.late = time.Now().Add(span)
	all = len(rs.open)
	i := 0
	for r := range rs.open {
		if !r.tunnel.IsZero() {
			tunnels++
		}
		rs.endIn(r, span/time.Duration(all)*time.Duration(i))
		i++
	}
	return all, tunnels
}

// endIn ends a request in a while, unless that is not to be any more. rs.mu is locked.
func (rs *requests) endIn(r *openRequest, d time.Duration) {
	late := rs.late
	time.AfterFunc(d, func() {
		if rs.isDue(r, late) {
			r.run.cutOff()
		}
	})
}

// isDue says whether a request is to end now. One that has just become a websocket is put off.
func (rs *requests) isDue(r *openRequest, late time.Time) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	_, open := rs.open[r]
	if !open || !rs.late.Equal(late) {
		return false
	}
	if rest := time.Until(r.tunnel.Add(tunnelRest)); rest > 0 {
		rs.endIn(r, rest)
		return false
	}
	return true
}

// reopen lets those be that are still open.
func (rs *requests) reopen() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.late = time.Time{}
}
