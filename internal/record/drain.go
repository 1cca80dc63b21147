// Package record holds what the nodes of a cluster write to the storage that they share: what operators say of upstreams, and what each
// node reports of itself. Caddys of other versions read and write the same, so no field changes its name or its meaning. All here are values
// and may be read by any goroutine; what follows from them is the business of internal/cluster.
//
// This file holds the record of a drain.
package record

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// DrainsFolder is where Caddy's storage keeps the drain records.
const DrainsFolder = store.Folder + "marks/"

// Drain is what an operator has last said of an upstream. Caddy's storage keeps it, one record for
// each upstream, so that it outlives Caddy and holds on every node. Taking a drain back writes
// another record: a record that is missing, or cannot be read, changes nothing.
type Drain struct {
	ID       string    `json:"id"`       // of this record, by which nodes say that they have read it
	Said     int64     `json:"said"`     // when, in nanoseconds of Unix time; by whatever clock, later than the drain record before
	Upstream string    `json:"upstream"` // its name between nodes: with the host where it belongs to one machine
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

// Drains says whether d, which may be nil, drains its upstream.
func (d *Drain) Drains() bool { return d != nil && d.State != api.StateReady }

// IDOrNone returns the id of d, or nothing if d is nil.
func (d *Drain) IDOrNone() string {
	if d == nil {
		return ""
	}
	return d.ID
}

// Closes says whether d, which may be nil, lets nothing go to its upstream.
func (d *Drain) Closes() bool { return d != nil && d.State == api.StateClosed }

// Closed returns what becomes of d when its time is up. Nodes that find so at once write the same.
func (d *Drain) Closed() *Drain {
	c := *d
	c.ID, c.State, c.Unsettled = d.ID+closedSuffix, api.StateClosed, false
	return &c
}

// Deadline returns when the upstream is closed, by the clock of the node that wrote d.
func (d *Drain) Deadline() *time.Time {
	if d.Left == 0 || d.Written.IsZero() {
		return nil
	}
	at := d.Written.Add(d.Left)
	return &at
}

// DrainKey is where the storage keeps the drain record of an upstream. A name may hold anything.
func DrainKey(shared string) string {
	sum := sha256.Sum256([]byte(shared))
	return DrainsFolder + hex.EncodeToString(sum[:16]) + store.Suffix
}

// LoadDrain returns the drain record of an upstream in the storage, or nil if there is none that can be read.
func LoadDrain(ctx context.Context, st store.Storage, shared string) (*Drain, error) {
	d, err := store.Load[Drain](ctx, st, DrainKey(shared))
	switch {
	case errors.Is(err, store.ErrBroken):
		return nil, nil
	case err != nil:
		return nil, err
	case d != nil && d.Upstream != shared: // broken in another way
		return nil, nil
	}
	return d, nil
}

// Restore writes a drain record that the storage lacks, unless an operator has said something of its
// upstream since.
func Restore(ctx context.Context, st store.Storage, d *Drain) error {
	stored, err := LoadDrain(ctx, st, d.Upstream)
	if err != nil || stored != nil && !d.Newer(stored) {
		return err
	}
	return store.Put(ctx, st, DrainKey(d.Upstream), d)
}

// Size is how many bytes a stored record may have. Older versions took reasons of 64 KiB, of each byte of which JSON may make six.
func (*Drain) Size() int { return maxDrain }

// Memory is how many bytes d takes, about.
func (d *Drain) Memory() int {
	return 512 + len(d.ID) + len(d.Upstream) + len(d.State) + len(d.By) + len(d.Reason) + len(d.Clock)
}

// Check brings what d says within what can be meant, and returns an error if nothing can.
func (d *Drain) Check() error {
	switch {
	case !isID(d.ID):
		return errors.New("malformed id")
	case len(d.Upstream) > maxShared:
		return fmt.Errorf("the name of its upstream has %d bytes", len(d.Upstream))
	case printable.Text(d.Upstream) != d.Upstream:
		return errors.New("the name of its upstream would steer a terminal")
	case len(d.Clock) > maxName:
		return fmt.Errorf("the name of its clock has %d bytes", len(d.Clock))
	}
	if d.State != api.StateReady && d.State != api.StateClosed {
		d.State = api.StateDraining
	}
	d.By, d.Reason = printable.Cut(d.By, MaxReason), printable.Cut(d.Reason, MaxReason)
	d.Left, d.Span = min(max(d.Left, 0), MaxLifetime), min(max(d.Span, 0), MaxLifetime)
	d.Since, d.Written = plausible(d.Since), plausible(d.Written)
	return nil
}

// plausible returns a time of another clock, or the zero time if nobody's shows that: some cannot be written as JSON, and the
// answers of the admin API with them.
func plausible(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return time.Time{}
	}
	return t
}

// Confirmed returns a drain that is not taken back any more.
func (d *Drain) Confirmed() *Drain {
	s := *d
	s.Unsettled = false
	return &s
}

// Withdrawn returns the drain record by which it is again as it was before d.
func (d *Drain) Withdrawn(before *Drain) *Drain {
	back := &Drain{State: api.StateReady, Since: d.Since, By: d.By}
	if before != nil {
		*back = *before
	}
	back.ID, back.Said, back.Upstream = d.ID+withdrawnSuffix, d.Said, d.Upstream
	back.Written, back.Clock = d.Written, d.Clock
	return back
}

// IsWithdrawn says whether d takes a drain back because it could not stand.
func (d *Drain) IsWithdrawn() bool { return strings.HasSuffix(d.ID, withdrawnSuffix) }
