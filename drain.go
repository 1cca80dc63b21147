// This file holds which upstreams are draining: they get no new session and keep their own.

package caddybokeh

import (
	"sync"
	"sync/atomic"
)

// maxEnded bounds what is remembered of the sessions of a draining upstream. Only a client that
// makes up ids for a stamp of its own gets there.
const maxEnded = 1 << 16

// draining says whether an upstream is draining, and what must be remembered for as long.
type draining struct {
	configs atomic.Int64         // policies whose config drains the upstream
	mark    atomic.Pointer[mark] // by which an operator drains it, or nil
	empty   atomic.Bool          // it is certain that no session is left, on any node
	shared  atomic.Bool          // other nodes may have sessions there

	mu sync.Mutex // guards ended
	// ended are the sessions that have ended since it drains. Their stamps still name the
	// upstream, but what comes with one of them would begin anew there.
	ended map[sessionKey]struct{}
}

// on says whether the upstream is draining.
func (d *draining) on() bool { return d.configs.Load() > 0 || d.mark.Load().drains() }

// add counts a config that drains the upstream, or one less.
func (d *draining) add(n int64) {
	d.configs.Add(n)
	d.changed()
}

// set makes m the mark by which an operator drains the upstream; nil takes that back.
func (d *draining) set(m *mark) {
	d.mark.Store(m)
	d.changed()
}

// changed forgets what need not be remembered any more.
func (d *draining) changed() {
	if d.on() {
		return
	}
	d.empty.Store(false)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on() {
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
func (d *draining) hasEnded(keys ...sessionKey) bool {
	switch {
	case d.empty.Load():
		return true
	case d.shared.Load():
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
