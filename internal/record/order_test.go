// This file tests which drain record comes after which.

package record

import (
	"math"
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

func TestLaterID(t *testing.T) {
	for _, id := range []string{"", "zz", "~", "~~~~", "0~0000000000000000", "a~0000000Fzzzzzzzz", "a~ffffffffzzzzzzzz", strings.Repeat("~", 40), "é~x"} {
		for i := range 100 {
			later := laterID(id)
			if i%2 > 0 {
				later += withdrawnSuffix
			}
			if later <= id || !isID(later) {
				t.Fatalf("%q comes after %q", later, id)
			}
			id = later
		}
		if len(id) > 70 {
			t.Errorf("it has grown to %q", id)
		}
	}
}

// A drain that comes after a mark with an id as long as may be can be taken back, and closed, and all nodes read that.
func TestLongestID(t *testing.T) {
	for size := maxName; size > 200; size-- {
		id := strings.Repeat("~", size-1) + "0"
		m := &Drain{ID: id, Said: math.MaxInt64, Upstream: "u0:80", State: api.StateReady}
		if m.Check() != nil {
			continue
		}
		next := Request{State: api.StateDraining}.Record(m, "u0:80", "c", 0)
		for _, m := range []*Drain{next, next.Closed(), next.Withdrawn(m), next.Withdrawn(m).Closed()} {
			if err := m.Check(); err != nil {
				t.Fatalf("after an id of %d bytes one of %d: %v", size, len(m.ID), err)
			}
		}
	}
}
