// This file tests what is kept of pages that failed.

package sessions

import (
	"math"
	"testing"
	"time"
)

// What is kept of apps that fail is bounded, and goes when they do not fail any more.
func TestFailingAppsAreBounded(t *testing.T) {
	var f FailingApps
	for i := range App(10 * maxFailingApps) {
		f.Failed(i)
	}
	if n := len(f.share); n != maxFailingApps {
		t.Errorf("%d apps are kept", n)
	}
	for a := range f.share {
		for range 10 * averageOf {
			f.Came(a)
		}
	}
	if n := f.n.Load(); n != 0 || len(f.share) != 0 {
		t.Errorf("%d apps are kept that do not fail", n)
	}
}

// Each client has a turn once in a while, and asking whether it rests takes no turn.
func TestSeldom(t *testing.T) {
	var s Seldom
	const every = 10 * time.Second
	for _, step := range []struct {
		client uint64
		now    time.Duration
		want   bool
	}{
		{3, time.Second, true},
		{3, time.Second, false},
		{3, 11*time.Second - 1, false},
		{4, 11*time.Second - 1, true},
		{3, 11 * time.Second, true},
		{3, 12 * time.Second, false},
		{3 + 256, 12 * time.Second, false}, // shares the place of 3
		{3 + 256, 21 * time.Second, true},
		{3, 22 * time.Second, false},
	} {
		for range 2 {
			if _, rests := s.Rests(step.client, every, step.now); rests == step.want {
				t.Errorf("client %d rests at %v: %v", step.client, step.now, rests)
			}
		}
		if got := s.Allow(step.client, every, step.now); got != step.want {
			t.Errorf("it is the turn of client %d at %v: %v", step.client, step.now, got)
		}
	}
	if at, rests := s.Rests(3, every, 22*time.Second); at != int64(21*time.Second) || !rests {
		t.Errorf("the last turn was at %v, rests %v", time.Duration(at), rests)
	}
}

// The share of an app's pages that fail moves with each, by a sixteenth of the way, and is none at all when it is small.
func TestFailingApps(t *testing.T) {
	var f FailingApps
	want := func(when string, of App, share float64) {
		t.Helper()
		if got := f.Share(of); math.Abs(got-share) > 1e-9 {
			t.Errorf("%s: a share of %v fails, want %v", when, got, share)
		}
	}
	f.Came(1)
	want("nothing has failed", 1, 0)
	f.Failed(1)
	want("one has failed", 1, 1.0/16)
	want("of another app", 2, 0)
	f.Failed(1)
	want("two have failed", 1, 1.0/16+15.0/256)
	share := f.Share(1)
	f.Came(1)
	want("one has come", 1, share*15/16)
	f.Came(2)
	want("one of another app has come", 1, share*15/16)
	if n := f.n.Load(); n != 1 {
		t.Errorf("%d apps are kept, want 1", n)
	}
	for range 100 {
		f.Failed(1)
	}
	if got := f.Share(1); got < 0.99 || got > 1 {
		t.Errorf("where all fail the share is %v", got)
	}
	for share = f.Share(1); share*15/16 >= 1.0/64; share = f.Share(1) {
		f.Came(1)
		want("one more has come", 1, share*15/16)
	}
	f.Came(1)
	want("few fail", 1, 0)
	if n := f.n.Load(); n != 0 || len(f.share) != 0 {
		t.Errorf("%d apps are kept, %d are counted, want none", len(f.share), n)
	}
}

// A share that is just what is forgiven is none yet.
func TestFailingAppsAreForgiven(t *testing.T) {
	f := FailingApps{share: map[App]float64{1: 1.0 / 60}}
	f.n.Store(1)
	if f.Came(1); f.Share(1) != 1.0/64 {
		t.Errorf("the share is %v, want what is forgiven below that", f.Share(1))
	}
}

// What is kept is bounded: a new app takes the place of another one, and one that is known of none.
func TestNewFailingAppTakesAPlace(t *testing.T) {
	var f FailingApps
	for of := range App(maxFailingApps) {
		f.Failed(of)
	}
	for of := range App(maxFailingApps) {
		if f.Share(of) == 0 {
			t.Errorf("app %d is not kept, though there is room", of)
		}
	}
	f.Failed(5)
	if n := f.n.Load(); n != maxFailingApps || len(f.share) != maxFailingApps {
		t.Errorf("%d apps are kept, %d are counted, after one more page of a known one", len(f.share), n)
	}
	f.Failed(1000)
	if n := f.n.Load(); n != maxFailingApps || len(f.share) != maxFailingApps || f.Share(1000) == 0 {
		t.Errorf("%d apps are kept, %d are counted, with the new one: %v", len(f.share), n, f.Share(1000) != 0)
	}
}
