// This file tests what a drain record may say.

package record

import (
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

// A reason of an operator, who may give one as long as that, is read as it is.
func TestLongReasonIsRead(t *testing.T) {
	fits := strings.Repeat("x", MaxReason)
	m := &Drain{ID: "x", Upstream: "u0:80", State: api.StateDraining}
	if m.Reason = fits; m.Check() != nil || m.Reason != fits {
		t.Errorf("it has become %q", m.Reason)
	}
}

// A mark of an upstream whose name would steer a terminal is of no use.
func TestMarkOfAnEscapeSequence(t *testing.T) {
	m := &Drain{ID: "x", Upstream: "u0:80", State: api.StateDraining}
	m.Upstream = "\x1b]0;owned\a\u009b2J"
	if err := m.Check(); err == nil {
		t.Error("it is read")
	}
}
