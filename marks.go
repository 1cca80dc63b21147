// This file holds what operators say of upstreams: written to the storage, read from it, made to hold.

package caddybokeh

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
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

const (
	// lonelyFor is how long an upstream is in no pool until what was said of it is forgotten, so that
	// the next server at its address is ready.
	lonelyFor = 10 * time.Minute
)

// marked is an upstream that an operator has said something of.
type marked struct {
	*mark
	u      *upstream     // held while it drains; nil where it is another machine's
	lonely time.Duration // since when it is in no pool, on the table's clock; 0 if it is in one
}

// say writes what an operator says of an upstream, and makes it hold here. Nothing changes if the
// storage has that already, or fails. What the operator does not say again stays: an empty reason
// is that of the mark before.
func (n *node) say(ctx context.Context, shared, state, by, reason string) (*mark, error) {
	st, err := n.storage()
	if err != nil {
		return nil, err
	}
	var m *mark
	err = within(ctx, func(ctx context.Context) error {
		before, err := loadRecord[mark](ctx, st, markKey(shared))
		if err != nil {
			return err
		}
		if before != nil && before.State == state && (reason == "" || reason == before.Reason) {
			m = before
			return nil
		}
		m = newMark(shared, state, by, reason)
		if before != nil && before.State == state {
			m.Since = before.Since
		}
		return storeRecord(ctx, st, markKey(shared), m)
	})
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	n.set(m)
	n.tell()
	return m, nil
}

// within lets f use the storage for as long as an operator waits. Not every storage heeds a context.
func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, operatorWait)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the storage has not answered: %w", ctx.Err())
	}
}

// take makes the marks in the storage what holds here. Missing ones change nothing, unless their
// upstream is in no pool: then another node has deleted them. n.mu is locked.
func (n *node) take(marks map[string]*mark, all bool) {
	for key, m := range marks {
		if markKey(m.Upstream) == key {
			n.set(m)
		}
	}
	for shared, md := range n.marked {
		if all && md.lonely != 0 && marks[markKey(shared)] == nil {
			n.unset(shared)
		}
	}
}

// set makes m what an operator has said last of its upstream. n.mu is locked.
func (n *node) set(m *mark) {
	md := n.marked[m.Upstream]
	if md == nil {
		md = new(marked)
		n.marked[m.Upstream] = md
	}
	if md.mark != nil && md.ID == m.ID {
		return
	}
	before := md.drains()
	md.mark = m
	name := n.here(m.Upstream)
	switch {
	case name == "":
		return
	case m.drains():
		if md.u == nil {
			md.u = n.t.hold(name)
		}
		md.u.draining.shared.Store(len(n.concerned(md.u)) > 0)
		md.u.draining.set(m)
	case md.u != nil:
		n.let(md)
	}
	if before != m.drains() {
		n.logger.Info("upstream is marked "+m.State, zap.String("upstream", name), zap.String("by", m.By), zap.String("reason", m.Reason))
	}
}

// let takes a drain off its upstream. n.mu is locked.
func (n *node) let(md *marked) {
	md.u.draining.set(nil)
	n.t.release(md.u)
	md.u = nil
}

// unset forgets what was said of an upstream. n.mu is locked.
func (n *node) unset(shared string) {
	if md := n.marked[shared]; md.u != nil {
		n.let(md)
	}
	delete(n.marked, shared)
}

// here returns the name in this process of an upstream that nodes call by its shared name, or
// nothing if it is another machine's.
func (n *node) here(shared string) string {
	// Only what belongs to a machine has the machine's name with it.
	i := strings.LastIndex(shared, "@")
	switch {
	case i < 0:
		return shared
	case shared[i+1:] == n.host:
		return shared[:i]
	}
	return ""
}
