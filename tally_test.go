// This file counts sessions for tests.

package caddybokeh

import (
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

const testLifetime = 32 * time.Second

// tally is the sessions of an upstream by state, as in {building, waiting, connected, unused}.
type tally [4]int64

func tallyOf(u *sessions.Upstream) (n tally) {
	for i := range n {
		n[i] = u.Count(sessions.Building + sessions.State(i))
	}
	return n
}

func wantTally(t *testing.T, when string, u *sessions.Upstream, want tally) {
	t.Helper()
	if got := tallyOf(u); got != want {
		t.Errorf("%s: building, waiting, connected, unused = %v, want %v", when, got, want)
	}
}

// wantEmpty checks that nothing is left in the table but the upstreams that somebody holds.
func wantEmpty(t *testing.T, tb *ledger, upstreams int) {
	t.Helper()
	sessions, known := tb.Size()
	if sessions > 0 {
		t.Errorf("%d sessions are left behind", sessions)
	}
	if known != upstreams {
		t.Errorf("%d upstreams are known, want %d", known, upstreams)
	}
}

// upstreamAt returns the upstream of a name, or nil if nobody holds one.
func upstreamAt(tb *ledger, name string) (found *sessions.Upstream) {
	tb.Each(func(u *sessions.Upstream) {
		if u.Name == name {
			found = u
		}
	})
	return found
}
