// This file counts sessions for tests.

package sessions

import (
	"testing"
	"time"
)

const testLifetime = 32 * time.Second

var testTerms = Terms{Lifetime: testLifetime}

// tally is the sessions of an upstream by state, as in {building, waiting, connected, unused}.
type tally [4]int64

func tallyOf(u *Upstream) (n tally) {
	for i := range n {
		n[i] = u.Count(Building + State(i))
	}
	return n
}

func wantTally(t *testing.T, when string, u *Upstream, want tally) {
	t.Helper()
	if got := tallyOf(u); got != want {
		t.Errorf("%s: building, waiting, connected, unused = %v, want %v", when, got, want)
	}
}

// wantEmpty checks that nothing is left in the table but the upstreams that somebody holds.
func wantEmpty(t *testing.T, tb *Table, upstreams int) {
	t.Helper()
	sessions, known := tb.Size()
	if sessions > 0 {
		t.Errorf("%d sessions are left behind", sessions)
	}
	if known != upstreams {
		t.Errorf("%d upstreams are known, want %d", known, upstreams)
	}
}
