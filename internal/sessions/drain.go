// This file holds which upstreams are draining: they get no new session and keep their own.

package sessions

import (
	"sync"
	"sync/atomic"
	"time"
)

// maxEnded bounds what is remembered of the sessions of a draining upstream. Only a client that
// makes up ids for a stamp of its own gets there.
const maxEnded = 1 << 16

// Drain says whether an upstream is draining, and what must be remembered for as long.
type Drain struct {
	is        atomic.Int32               // what follows from configs and order: one of the three below
	configs   atomic.Int64               // policies whose config drains the upstream
	startedAt atomic.Int64               // when the first of them did, as Unix time in milliseconds
	order     atomic.Pointer[DrainOrder] // by which an operator drains it, or nil
	empty     atomic.Int64               // until when it is certain that no session is left on any node, on the table's clock
	alone     atomic.Int64               // until when it is certain that no other node has sessions there, on the same clock

	reopened atomic.Int64 // when it was opened again last after it was closed, on the same clock; 0 if never
	Requests OpenRequests

	mu sync.Mutex // guards ended, and the change of is
	// ended are the sessions that have ended since it drains. Their stamps still name the
	// upstream, but what comes with one of them would begin anew there.
	ended map[Key]struct{}
}

// DrainOrder is what an operator says of an upstream that drains.
type DrainOrder struct {
	Closed bool      // its grace period is over
	Since  time.Time // it drains
}

const (
	isReady    = iota
	isDraining // gets no new session
	isClosed   // gets nothing
)

// On says whether the upstream is draining, or closed.
func (d *Drain) On() bool { return d.is.Load() != isReady }

// IsClosed says whether nothing may go to the upstream.
func (d *Drain) IsClosed() bool { return d.is.Load() == isClosed }

// IsEmpty says whether the upstream drains, and it is certain that no session is left.
func (d *Drain) IsEmpty(now time.Duration) bool {
	return d.On() && now <= time.Duration(d.empty.Load())
}

// ByConfig says whether a config drains the upstream.
func (d *Drain) ByConfig() bool { return d.configs.Load() > 0 }

// ByOperator says whether an operator drains it.
func (d *Drain) ByOperator() bool { return d.order.Load() != nil }

// SetEmpty takes note until when it is certain that no session is left on any node, on the table's clock; 0 for it is not.
func (d *Drain) SetEmpty(until int64) { d.empty.Store(until) }

// SetAlone takes note until when it is certain that no other node has sessions there, on the same clock.
func (d *Drain) SetAlone(until int64) { d.alone.Store(until) }

// SetReopened takes note that the upstream is opened again after it was closed.
func (d *Drain) SetReopened(now time.Duration) { d.reopened.Store(int64(now)) }

// ReopenedAt returns when that was last, or 0.
func (d *Drain) ReopenedAt() time.Duration { return time.Duration(d.reopened.Load()) }

// Since returns when the upstream began to drain, or the zero time if it does not.
func (d *Drain) Since() time.Time {
	if s := d.order.Load(); s != nil {
		return s.Since
	}
	if at := d.startedAt.Load(); at != 0 && d.configs.Load() > 0 {
		return time.UnixMilli(at)
	}
	return time.Time{}
}

// AddConfigs counts a config that drains the upstream, or one less.
func (d *Drain) AddConfigs(n int64) {
	if d.configs.Add(n) == 1 && n > 0 {
		d.startedAt.Store(time.Now().UnixMilli())
	}
	d.changed()
}

// Set makes s what an operator says of the upstream; nil takes the drain back.
func (d *Drain) Set(s *DrainOrder) {
	d.order.Store(s)
	d.empty.Store(0) // that was found of another drain
	if s == nil || !s.Closed {
		d.Requests.reopen()
	}
	d.changed()
}

// Doubt takes note that it is not certain any more that the upstream is empty.
func (d *Drain) Doubt() { d.empty.Store(0) }

// changed brings everything in line with configs and order.
func (d *Drain) changed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.order.Load()
	switch {
	case s != nil && s.Closed:
		d.is.Store(isClosed)
	case s != nil || d.configs.Load() > 0:
		d.is.Store(isDraining)
	default:
		d.is.Store(isReady)
		d.empty.Store(0)
		d.ended = nil
	}
}

// Remember takes note that a session has ended, or has moved away, if the upstream is draining.
func (d *Drain) Remember(k Key) {
	if !d.On() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.On() {
		return
	}
	if d.ended == nil {
		d.ended = make(map[Key]struct{})
	}
	for old := range d.ended {
		if len(d.ended) < maxEnded {
			break
		}
		delete(d.ended, old)
	}
	d.ended[k] = struct{}{}
}

// HasEnded says whether one of the keys is that of a session that has certainly ended. All have
// where the upstream is empty. Where there are other nodes, one that has ended here may live on
// through another.
func (d *Drain) HasEnded(now time.Duration, keys ...Key) bool {
	switch {
	case d.IsEmpty(now):
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
