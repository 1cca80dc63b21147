// This file holds the record of a drain, as the storage keeps it, and the request that it is made of.

package cluster

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// drainsFolder is where Caddy's storage keeps the drain records.
const drainsFolder = store.Folder + "marks/"

// What a drain record can say: what the admin API tells of an upstream as well.
const (
	stateReady    = api.StateReady
	stateDraining = api.StateDraining
	stateClosed   = api.StateClosed
)

// drainRecord is what an operator has last said of an upstream. Caddy's storage keeps it, one record for
// each upstream, so that it outlives Caddy and holds on every node. Taking a drain back writes
// another record: a record that is missing, or cannot be read, changes nothing.
type drainRecord struct {
	ID       string    `json:"id"`       // of this record, by which nodes say that they have read it
	Said     int64     `json:"said"`     // when, in nanoseconds of Unix time; by whatever clock, later than the drain record before
	Upstream string    `json:"upstream"` // its name between nodes, see sharedName
	State    string    `json:"state"`
	Since    time.Time `json:"since"` // by the clock of the node that wrote it
	By       string    `json:"by"`
	Reason   string    `json:"reason,omitempty"`

	// Left is how long after it was written the upstream is closed; 0 if never. Each node counts from
	// when it reads that. By the same clock, times can be compared.
	Left    time.Duration `json:"left,omitempty"`
	Written time.Time     `json:"written"`
	Clock   string        `json:"clock"`          // of the machine
	Span    time.Duration `json:"span,omitempty"` // over which the sockets are closed then

	// Unsettled is a drain that may be taken back yet, because another one leaves nobody. Versions before this one ignore it.
	Unsettled bool `json:"unsettled,omitempty"`
}

// drains says whether m, which may be nil, drains its upstream.
func (m *drainRecord) drains() bool { return m != nil && m.State != stateReady }

// id returns the id of m, or nothing if m is nil.
func (m *drainRecord) id() string {
	if m == nil {
		return ""
	}
	return m.ID
}

// closes says whether m, which may be nil, lets nothing go to its upstream.
func (m *drainRecord) closes() bool { return m != nil && m.State == stateClosed }

// closed returns what becomes of m when its time is up. Nodes that find so at once write the same.
func (m *drainRecord) closed() *drainRecord {
	c := *m
	c.ID, c.State, c.Unsettled = m.ID+closedSuffix, stateClosed, false
	return &c
}

// closedSuffix is what the id of a drain record gets when its time is up.
const closedSuffix = "-closed"

// newer says whether m was said after another record of the upstream, so that every node finds the same
// one to be the last, in whatever order and storage it meets them. (A hybrid logical clock: Kulkarni et
// al., "Logical Physical Clocks", 2014.)
func (m *drainRecord) newer(than *drainRecord) bool {
	return cmp.Or(
		cmp.Compare(m.Said, than.Said),
		cmp.Compare(strings.TrimSuffix(m.ID, closedSuffix), strings.TrimSuffix(than.ID, closedSuffix)),
		cmp.Compare(len(m.ID), len(than.ID)), // closed comes after what it was before
	) > 0
}

// deadline returns when the upstream is closed, by the clock of the node that wrote m.
func (m *drainRecord) deadline() *time.Time {
	if m.Left == 0 || m.Written.IsZero() {
		return nil
	}
	at := m.Written.Add(m.Left)
	return &at
}

// lonelyFor is how long an upstream is in no pool until m is forgotten.
func (m *drainRecord) lonelyFor() time.Duration {
	if m.State == stateReady {
		return readyTimeout
	}
	return lonelyTimeout
}

// drainKey is where the storage keeps the drain record of an upstream. A name may hold anything.
func drainKey(shared string) string {
	sum := sha256.Sum256([]byte(shared))
	return drainsFolder + hex.EncodeToString(sum[:16]) + store.Suffix
}

// DrainRequest is what an operator says of an upstream. What is left out stays as it was.
type DrainRequest struct {
	State  string         // api.StateDraining, or api.StateReady to take that back
	By     string         // who says so, for people
	Reason string         // at most MaxReason bytes in one line
	Grace  *time.Duration // after which the upstream is closed; 0 for never
	Span   *time.Duration // over which its sockets are closed then

	Force bool // also where no other upstream takes new sessions

	unlessLast bool // it may be taken back
}

// record returns the drain record by which w holds after another one, which may be nil. It is that one if
// nothing changes. Of its grace period so much is left.
func (w DrainRequest) record(before *drainRecord, shared, clock string, left time.Duration) *drainRecord {
	now := time.Now()
	m := &drainRecord{ID: store.RandomName(), Said: now.UnixNano(), Upstream: shared, State: w.State, Since: now, By: w.By, Reason: w.Reason, Written: now, Clock: clock}
	if before != nil {
		m.comeAfter(before)
	}
	if before != nil && before.drains() == m.drains() {
		if (w.Reason == "" || w.Reason == before.Reason) && w.Grace == nil && w.Span == nil && (w.unlessLast || !before.Unsettled) {
			return before
		}
		m.State, m.Since, m.Reason, m.Left, m.Span = before.State, before.Since, cmp.Or(w.Reason, before.Reason), left, before.Span
	}
	m.Unsettled = w.unlessLast && (!before.drains() || before.Unsettled)
	if w.Grace != nil {
		m.State, m.Left = w.State, *w.Grace
	}
	if m.closes() {
		m.Written = before.Written // so that it shows when that was to be
	}
	if w.Span != nil {
		m.Span = *w.Span
	}
	return m
}

// loadDrainRecord returns the drain record of an upstream in the storage, or nil if there is none that can be read.
func loadDrainRecord(ctx context.Context, st store.Storage, shared string) (*drainRecord, error) {
	m, err := store.Load[drainRecord](ctx, st, drainKey(shared))
	switch {
	case errors.Is(err, store.ErrBroken):
		return nil, nil
	case err != nil:
		return nil, err
	case m != nil && m.Upstream != shared: // broken in another way
		return nil, nil
	}
	return m, nil
}

// storeAgain writes a drain record that the storage lacks, unless an operator has said something of its
// upstream since.
func storeAgain(ctx context.Context, st store.Storage, m *drainRecord) error {
	stored, err := loadDrainRecord(ctx, st, m.Upstream)
	if err != nil || stored != nil && !m.newer(stored) {
		return err
	}
	return store.Put(ctx, st, drainKey(m.Upstream), m)
}
