// This file holds the requests that an upstream has not done with, so that they can be ended when its grace period is over.

package sessions

import (
	"math/rand/v2"
	"sync"
	"time"
)

// OpenRequests are those that an upstream has not done with, so that they can be ended.
type OpenRequests struct {
	mu   sync.Mutex // guards all below
	open map[*OpenRequest]struct{}
	late time.Time // by when all are ended; zero if they are not to be
}

// OpenRequest is one of them.
type OpenRequest struct {
	tunnel time.Time // since when it is one; zero for what is no websocket, or is not answered yet
	Of     interface {
		CutOff() // ends it, and what is counted of it
	}
}

// Add takes note of a request that was sent.
func (rs *OpenRequests) Add(r *OpenRequest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.open == nil {
		rs.open = make(map[*OpenRequest]struct{})
	}
	rs.open[r] = struct{}{}
	if !rs.late.IsZero() {
		// It was on its way when the others were told to end.
		rs.endIn(r, rand.N(max(time.Until(rs.late), 1)))
	}
}

// Opened takes note that a request has become a websocket.
func (rs *OpenRequests) Opened(r *OpenRequest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r.tunnel = time.Now()
}

// Remove forgets a request that is over.
func (rs *OpenRequests) Remove(r *OpenRequest) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.open, r)
}

// EndAll ends all, evenly spread over a span, and says how many they are, and how many of them are websockets.
func (rs *OpenRequests) EndAll(span time.Duration) (all, tunnels int) {
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
func (rs *OpenRequests) endIn(r *OpenRequest, d time.Duration) {
	late := rs.late
	time.AfterFunc(d, func() {
		if rs.isDue(r, late) {
			r.Of.CutOff()
		}
	})
}

// isDue says whether a request is to end now. One that has just become a websocket is put off.
func (rs *OpenRequests) isDue(r *OpenRequest, late time.Time) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	_, open := rs.open[r]
	if !open || !rs.late.Equal(late) {
		return false
	}
	if rest := time.Until(r.tunnel.Add(TunnelRest)); rest > 0 {
		rs.endIn(r, rest)
		return false
	}
	return true
}

// reopen lets those be that are still open.
func (rs *OpenRequests) reopen() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.late = time.Time{}
}
