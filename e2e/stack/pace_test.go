// This file tests the machine's pace.

package stack

import (
	"context"
	"testing"
	"time"
)

func TestSharing(t *testing.T) {
	for stat, want := range map[string]float64{
		"cpu 1 2 3\nctxt 7\nprocs_running 9\nprocs_blocked 0\n": 4,
		"procs_running 1\n": 1,
		"procs_running 3\n": 1,
		"":                  1,
	} {
		if got := sharing([]byte(stat), 2); got != want {
			t.Errorf("%q: %v share a core, want %v", stat, got, want)
		}
	}
}

// Patience is measured in the time of a quiet machine, and ends.
func TestPatience(t *testing.T) {
	watchPace()
	before := spent()
	look(10, 10*time.Second)
	if got := spent() - before; got > time.Second+lookEvery {
		t.Errorf("10 s of a machine with ten on each core count for %v", got)
	}
	if got := Stretch(time.Second); got < time.Second {
		t.Errorf("a second is stretched to %v", got)
	}
	ctx, end := Patience(t.Context(), time.Millisecond)
	defer end()
	<-ctx.Done()
	if cause := context.Cause(ctx); cause == context.Canceled {
		t.Error("it does not say why it ends")
	}
}
