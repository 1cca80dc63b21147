// This file tests the moving average, and how slow upstreams are.

package sessions

import (
	"sync"
	"testing"
)

// An average begins with the first value, and each that follows moves it by a sixteenth of the way.
func TestAverage(t *testing.T) {
	var a average
	if got := a.or(7); got != 7 {
		t.Errorf("where there is none yet it is %d, want what was given for that", got)
	}
	for _, step := range []struct{ x, want int64 }{{1600, 1600}, {0, 1500}, {3100, 1600}, {1600, 1600}, {1585, 1600}, {1584, 1599}} {
		if a.add(step.x); a.or(7) != step.want {
			t.Errorf("after %d it is %d, want %d", step.x, a.or(7), step.want)
		}
	}
	for range 1000 {
		a.add(10)
	}
	if got := a.or(7); got < 10 || got >= 10+averageOf {
		t.Errorf("after many times 10 it is %d", got)
	}
}

// What takes no time leaves an average all the same: 0 would be none.
func TestAverageOfNothing(t *testing.T) {
	var a average
	for range 2 {
		if a.add(0); a.or(7) != 1 {
			t.Errorf("after 0 it is %d, want 1", a.or(7))
		}
	}
}

// Values that come at once all count.
func TestAverageAtOnce(t *testing.T) {
	var a, want average
	a.add(1 << 40)
	want.add(1 << 40)
	var adding sync.WaitGroup
	for range 8 {
		adding.Go(func() {
			for range 100 {
				a.add(1 << 20)
			}
		})
	}
	adding.Wait()
	for range 800 {
		want.add(1 << 20)
	}
	if a.or(0) != want.or(0) {
		t.Errorf("it is %d, want %d", a.or(0), want.or(0))
	}
}
