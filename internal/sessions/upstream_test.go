// This file tests what an upstream tells of itself to those who ask.

package sessions

import (
	"context"
	"math"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
)

// Nothing of an upstream was tried yet, it refuses, it does not take a connection in time, and it is well again.
func TestIsUnreachable(t *testing.T) {
	for name, tc := range map[string]struct {
		dials []error
		want  bool
	}{
		"never dialed":         {nil, false},
		"reached":              {[]error{nil}, false},
		"refused":              {[]error{syscall.ECONNREFUSED}, true},
		"late":                 {[]error{os.ErrDeadlineExceeded}, true},
		"late, then refused":   {[]error{os.ErrDeadlineExceeded, syscall.ECONNREFUSED}, true},
		"refused, then well":   {[]error{syscall.ECONNREFUSED, nil}, false},
		"late, then well":      {[]error{os.ErrDeadlineExceeded, nil}, false},
		"nobody waited for it": {[]error{context.Canceled}, false},
		"our own want of them": {[]error{syscall.EMFILE}, false},
	} {
		var u Upstream
		for i, err := range tc.dials {
			u.Dialed(0, time.Duration(i+1)*time.Minute, breaker.Backoff, err)
		}
		if got := u.IsUnreachable(); got != tc.want {
			t.Errorf("%s: unreachable is %v", name, got)
		}
	}
}

// What configs and operators say is told apart.
func TestWhoDrains(t *testing.T) {
	var d Drain
	want := func(when string, config, operator, on bool) {
		t.Helper()
		if d.ByConfig() != config || d.ByOperator() != operator || d.On() != on {
			t.Errorf("%s: by a config %v, by an operator %v, draining %v", when, d.ByConfig(), d.ByOperator(), d.On())
		}
	}
	want("nobody", false, false, false)
	d.AddConfigs(1)
	want("a config", true, false, true)
	d.Set(&DrainOrder{})
	want("both", true, true, true)
	d.AddConfigs(-1)
	want("an operator", false, true, true)
	d.Set(nil)
	want("nobody any more", false, false, false)
}

// What is certain of an upstream is so until a time, and a doubt or another order ends it.
func TestWhatIsCertainOfADrain(t *testing.T) {
	var d Drain
	d.Set(&DrainOrder{})
	k := Key{1}
	d.Remember(k)
	if d.IsEmpty(1) || d.HasEnded(1, k) {
		t.Error("it is certain from the beginning")
	}
	d.SetAlone(10)
	if !d.HasEnded(10, k) || d.HasEnded(11, k) || d.HasEnded(10, Key{2}) {
		t.Error("what has ended is not known for as long as there is no other node")
	}
	d.SetEmpty(20)
	if !d.IsEmpty(20) || d.IsEmpty(21) || !d.HasEnded(20, Key{2}) {
		t.Error("it is not empty for as long as was said")
	}
	d.Doubt()
	if d.IsEmpty(20) {
		t.Error("it is empty in spite of a doubt")
	}
	if d.ReopenedAt() != 0 {
		t.Error("it was opened again")
	}
	d.SetReopened(30)
	if got := d.ReopenedAt(); got != 30 {
		t.Errorf("it was opened again at %d", got)
	}
}

// By how the app fails elsewhere, so much may fail here by chance.
func TestShareBeyondChance(t *testing.T) {
	for share, want := range map[float64]float64{0: 0.1304, 0.01: 0.1404, 1.0 / 16: 0.1929, 0.25: 0.4833, 0.5: 0.7694, 1: 1} {
		if got := ShareBeyondChance(share); !(math.Abs(got-want) <= 0.0001) { // or it is no number
			t.Errorf("of %.3f: %.4f, want %.4f", share, got, want)
		}
	}
}

// A table tells how much it holds, and a request whether it weighs anything.
func TestSize(t *testing.T) {
	tb := newTestTable()
	a, b := tb.Hold("a:80"), tb.Hold("b:80")
	if new(Load).IsCounted() {
		t.Error("nothing is counted")
	}
	for _, u := range []*Upstream{a, b} {
		if l := tb.BeginPage(tb.Key("one id"), u, testTerms); !l.IsCounted() || l.At() != u || l.Key() != tb.Key("one id") {
			t.Errorf("a page at %s is not counted there", u.Name)
		}
	}
	tb.BeginPage(tb.Key("another"), a, testTerms)
	if sessions, upstreams := tb.Size(); sessions != 3 || upstreams != 2 {
		t.Errorf("%d sessions and %d upstreams, want 3 and 2", sessions, upstreams)
	}
}

// The first config that names an upstream is told apart from all that follow.
func TestFirstConfig(t *testing.T) {
	var u Upstream
	if !u.EnterConfig() || u.EnterConfig() {
		t.Error("the first config is not the first")
	}
	u.LeaveConfig()
	u.LeaveConfig()
	if !u.EnterConfig() {
		t.Error("after all have gone, the next one is not the first")
	}
}

// Whether a server takes ids is known for each key by itself.
func TestTakesIDs(t *testing.T) {
	var u Upstream
	if takes, known := u.TakesIDs("a"); takes || known {
		t.Error("it is known from the beginning")
	}
	u.SetTakesIDs("a", true)
	u.SetTakesIDs("b", false)
	for key, want := range map[string]bool{"a": true, "b": false} {
		if takes, known := u.TakesIDs(key); takes != want || !known {
			t.Errorf("ids by %s are taken: %v, %v", key, takes, known)
		}
	}
}

// The pool that took an upstream up last is known, and when.
func TestLastPool(t *testing.T) {
	var u Upstream
	if of, at := u.LastPool(); of != nil || at != 0 {
		t.Errorf("%v has it since %v", of, at)
	}
	u.Joined("one", 5)
	u.Joined("another", 7)
	if of, at := u.LastPool(); of != "another" || at != 7 {
		t.Errorf("%v has it since %v", of, at)
	}
}

// What was learned of an upstream can be forgotten.
func TestForgetSlowness(t *testing.T) {
	tb := newTestTable()
	u := tb.Hold("a:80")
	tb.PageBuilt(u, testTerms, time.Second) // the first one of a process tells nothing
	for range 5 {
		tb.PageBuilt(u, testTerms, time.Second)
	}
	tb.PageBuilt(u, testTerms, 5*time.Second)
	if u.Slowness() <= AsUsual {
		t.Fatalf("it is not slow: %d", u.Slowness())
	}
	u.ForgetSlowness()
	if got := u.Slowness(); got != AsUsual {
		t.Errorf("it is still slow: %d", got)
	}
}
