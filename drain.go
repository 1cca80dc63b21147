// This file holds which upstreams are draining: they get no new session and keep their own.

package caddybokeh

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"
)

// marksFolder is where Caddy's storage keeps the marks.
const marksFolder = folder + "marks/"

// What a mark can say.
const (
	stateReady    = "ready"
	stateDraining = "draining"
)

// mark is what an operator has last said of an upstream. Caddy's storage keeps it, one record for
// each upstream, so that it outlives Caddy and holds on every node. Taking a drain back writes
// another mark: a record that is missing, or cannot be read, changes nothing.
type mark struct {
	ID       string    `json:"id"`       // of this mark, by which nodes say that they have read it
	Upstream string    `json:"upstream"` // its name between nodes, see sharedName
	State    string    `json:"state"`
	Since    time.Time `json:"since"` // by the clock of the node that wrote it
	By       string    `json:"by"`
	Reason   string    `json:"reason,omitempty"`
}

// newMark returns a mark with an id of its own.
func newMark(shared, state, by, reason string) *mark {
	return &mark{ID: randomName(), Upstream: shared, State: state, Since: time.Now(), By: by, Reason: reason}
}

// randomName is unlikely to be that of anything else.
func randomName() string {
	var raw [8]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

// drains says whether m, which may be nil, drains its upstream.
func (m *mark) drains() bool { return m != nil && m.State == stateDraining }

// markKey is where the storage keeps the mark of an upstream. A name may hold anything.
func markKey(shared string) string {
	sum := sha256.Sum256([]byte(shared))
	return marksFolder + hex.EncodeToString(sum[:16]) + recordSuffix
}

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
