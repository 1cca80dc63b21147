// This file holds what an operator asks for, and the drain record that comes of it.

package record

import (
	"cmp"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// Request is what an operator says of an upstream. What is left out stays as it was.
type Request struct {
	State  string         // api.StateDraining, or api.StateReady to take that back
	By     string         // who says so, for people
	Reason string         // at most MaxReason bytes in one line
	Grace  *time.Duration // after which the upstream is closed; 0 for never
	Span   *time.Duration // over which its sockets are closed then

	Force bool // also where no other upstream takes new sessions

	// UnlessLast is set where it is not certain yet that another upstream takes new sessions: the drain may be taken back.
	UnlessLast bool
}

// Record returns the drain record by which r holds after another one, which may be nil. It is that one if
// nothing changes. Of its grace period so much is left.
func (r Request) Record(before *Drain, shared, clock string, left time.Duration) *Drain {
	now := time.Now()
	d := &Drain{ID: store.RandomName(), Said: now.UnixNano(), Upstream: shared, State: r.State, Since: now, By: r.By, Reason: r.Reason, Written: now, Clock: clock}
	if before != nil {
		d.comeAfter(before)
	}
	if before != nil && before.Drains() == d.Drains() {
		if (r.Reason == "" || r.Reason == before.Reason) && r.Grace == nil && r.Span == nil && (r.UnlessLast || !before.Unsettled) {
			return before
		}
		d.State, d.Since, d.Reason, d.Left, d.Span = before.State, before.Since, cmp.Or(r.Reason, before.Reason), left, before.Span
	}
	d.Unsettled = r.UnlessLast && (!before.Drains() || before.Unsettled)
	if r.Grace != nil {
		d.State, d.Left = r.State, *r.Grace
	}
	if d.Closes() {
		d.Written = before.Written // so that it shows when that was to be
	}
	if r.Span != nil {
		d.Span = *r.Span
	}
	return d
}
