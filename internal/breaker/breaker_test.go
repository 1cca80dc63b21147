// This file tests each line of the breaker's table, and its pauses.

package breaker

import (
	"slices"
	"testing"
	"time"
)

const s = time.Second

// tripped returns a breaker that a connection has tripped at 1 s, so that its pause is over at 11 s.
func tripped() *Breaker {
	b := new(Breaker)
	b.Failure(s, s, Backoff)
	return b
}

// probed returns the same, with a probe that has begun at 20 s.
func probed() *Breaker {
	b := tripped()
	b.BeginProbe(20 * s)
	return b
}

// failedPages returns a breaker that pages have tripped at 1 s.
func failedPages() *Breaker {
	b := new(Breaker)
	for range PagesInARow {
		b.PageFailure(s, s, PagesInARow)
	}
	return b
}

func TestTable(t *testing.T) {
	for name, tc := range map[string]struct {
		of     *Breaker
		event  func(b *Breaker)
		at     time.Duration
		want   State
		blocks bool
	}{
		"closed":                                 {new(Breaker), nil, s, Closed, false},
		"closed, a success":                      {new(Breaker), (*Breaker).Success, s, Closed, false},
		"closed, a connection":                   {new(Breaker), (*Breaker).Connected, s, Closed, false},
		"closed, a failure":                      {tripped(), nil, 2 * s, Open, true},
		"closed, two failed pages":               {new(Breaker), func(b *Breaker) { b.PageFailure(s, s, 3); b.PageFailure(s, s, 3) }, s, Closed, false},
		"closed, three failed pages":             {failedPages(), nil, s, Open, true},
		"closed, a page between the failed":      {new(Breaker), func(b *Breaker) { b.PageFailure(s, s, 2); b.Success(); b.PageFailure(s, s, 2) }, s, Closed, false},
		"closed, to be probed":                   {new(Breaker), func(b *Breaker) { b.ProbeNow(s) }, s, Closed, false},
		"open, just before the end":              {tripped(), nil, 11*s - 1, Open, true},
		"open, the pause is over":                {tripped(), nil, 11 * s, HalfOpen, false},
		"open, a page":                           {tripped(), (*Breaker).Success, 2 * s, Closed, false},
		"open, a connection":                     {tripped(), (*Breaker).Connected, 2 * s, Closed, false},
		"open for pages, a connection":           {failedPages(), (*Breaker).Connected, s, Open, true},
		"open for pages, a page":                 {failedPages(), (*Breaker).Success, s, Closed, false},
		"open for pages, one more of a row":      {failedPages(), func(b *Breaker) { b.PageFailure(3*s, 3*s, 3) }, 4 * s, Open, true},
		"open for pages, one of a longer row":    {failedPages(), func(b *Breaker) { b.PageFailure(3*s, 3*s, 10) }, 3 * s, Closed, false},
		"open again after pages, a connection":   {failedPages(), func(b *Breaker) { b.Success(); b.Failure(2*s, 2*s, Backoff); b.Connected() }, 3 * s, Closed, false},
		"open, a failure of before":              {tripped(), func(b *Breaker) { b.Failure(s/2, 9*s, Backoff) }, 11 * s, HalfOpen, false},
		"open, a failure in the pause":           {tripped(), func(b *Breaker) { b.Failure(2*s, 9*s, Backoff) }, 11 * s, HalfOpen, false},
		"open, to be probed":                     {tripped(), func(b *Breaker) { b.ProbeNow(2 * s) }, 2 * s, HalfOpen, false},
		"half-open, to be probed":                {tripped(), func(b *Breaker) { b.ProbeNow(20 * s) }, 20 * s, HalfOpen, false},
		"half-open, a failure":                   {tripped(), func(b *Breaker) { b.Failure(20*s, 20*s, Backoff) }, 40*s - 1, Open, true},
		"half-open, a probe":                     {probed(), nil, 20 * s, Probing, true},
		"probing, for long":                      {probed(), nil, 20*s + MaxBackoff - 1, Probing, true},
		"probing, for too long":                  {probed(), nil, 20*s + MaxBackoff, HalfOpen, false},
		"probing, its end":                       {probed(), func(b *Breaker) { b.EndProbe(20 * s) }, 21 * s, HalfOpen, false},
		"probing, the end of another":            {probed(), func(b *Breaker) { b.EndProbe(15 * s) }, 21 * s, Probing, true},
		"probing, a success":                     {probed(), (*Breaker).Success, 21 * s, Closed, false},
		"probing, a failure":                     {probed(), func(b *Breaker) { b.Failure(20*s, 21*s, Backoff); b.EndProbe(20 * s) }, 41*s - 1, Open, true},
		"probing, a failure, and then the pause": {probed(), func(b *Breaker) { b.Failure(20*s, 21*s, Backoff); b.EndProbe(20 * s) }, 41 * s, HalfOpen, false},
	} {
		if tc.event != nil {
			tc.event(tc.of)
		}
		if got, blocks := tc.of.State(tc.at), tc.of.Blocks(tc.at); got != tc.want || blocks != tc.blocks {
			t.Errorf("%s: state %d, blocks %v; want %d, %v", name, got, blocks, tc.want, tc.blocks)
		}
		if got, want := tc.of.Tripped(), tc.want != Closed; got != want {
			t.Errorf("%s: tripped is %v", name, got)
		}
	}
}

// One visit probes at a time, and another one when it has taken a minute.
func TestOneProbe(t *testing.T) {
	b := tripped()
	var got []bool
	for _, at := range []time.Duration{20 * s, 21 * s, 20*s + MaxBackoff - 1, 20*s + MaxBackoff, 21*s + MaxBackoff} {
		got = append(got, b.BeginProbe(at))
	}
	if want := []bool{true, false, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("may probe: %v, want %v", got, want)
	}
}

// Pauses double up to a minute, and begin anew after a success.
func TestPauses(t *testing.T) {
	for first, want := range map[time.Duration][]time.Duration{
		Backoff:      {10 * s, 20 * s, 40 * s, 60 * s, 60 * s, 60 * s, 60 * s, 60 * s},
		QuickBackoff: {s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s},
	} {
		b := new(Breaker)
		for range 2 {
			now := s
			var got []time.Duration
			for range want {
				b.Failure(now, now, first)
				got = append(got, b.Until()-now)
				now = b.Until()
			}
			if !slices.Equal(got, want) {
				t.Errorf("pauses %v, want %v", got, want)
			}
			b.Success()
		}
	}
	b := failedPages()
	if got := b.Until() - s; got != QuickBackoff {
		t.Errorf("the first pause after pages is %v", got)
	}
}

// Each change is told once.
func TestChanged(t *testing.T) {
	b := new(Breaker)
	var got []string
	look := func() {
		for range 2 {
			if tripped, changed := b.Changed(); changed {
				got = append(got, map[bool]string{true: "fails", false: "well"}[tripped])
			}
		}
	}
	look()
	b.Failure(s, s, Backoff)
	look()
	b.Failure(20*s, 20*s, Backoff)
	look()
	b.Success()
	look()
	if want := []string{"fails", "well"}; !slices.Equal(got, want) {
		t.Errorf("told %q", got)
	}
}
