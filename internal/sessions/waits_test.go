// This file tests what is told of the latest answers on websockets.

package sessions

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The quantiles are those of the answers themselves, but for 2 %.
func TestWaits(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		w, now := new(Waits), time.Hour
		took := make([]time.Duration, 1+rnd.IntN(500))
		for i := range took {
			took[i] = time.Duration(float64(time.Millisecond) * (1 + rnd.ExpFloat64()*float64(rnd.IntN(5000))))
			w.Add(took[i], now)
			now += time.Duration(rnd.IntN(400)) * time.Millisecond
		}
		slices.Sort(took)
		for _, share := range []float64{.01, .5, .95, 1} {
			want := took[max(int(share*float64(len(took))+.999999)-1, 0)]
			if got := w.Quantiles(now, share)[0]; got < want*98/100 || got > want*102/100 {
				t.Errorf("seed %d: %v of %d answers took %v, want %v", seed, share, len(took), got, want)
			}
		}
	}
}

func TestWaitsAreOver(t *testing.T) {
	w := new(Waits)
	if got := w.Quantiles(time.Hour, .5, .95); !slices.Equal(got, []time.Duration{0, 0}) {
		t.Errorf("without an answer they are %v", got)
	}
	w.Add(time.Second, time.Hour)
	w.Add(10*time.Second, time.Hour+2*time.Minute)
	for _, tc := range []struct{ after, want time.Duration }{
		{2 * time.Minute, time.Second},
		{4 * time.Minute, time.Second},
		{5 * time.Minute, 10 * time.Second},
		{6 * time.Minute, 10 * time.Second},
		{7 * time.Minute, 0},
		{100 * time.Minute, 0},
	} {
		if got := w.Quantiles(time.Hour+tc.after, .5)[0].Round(200 * time.Millisecond); got != tc.want {
			t.Errorf("after %v half of the answers took %v, want %v", tc.after, got, tc.want)
		}
	}
	for _, took := range []time.Duration{-1, 0, 1, 1000 * time.Hour} {
		w.Add(took, 10*time.Hour)
	}
	if got := w.Quantiles(10*time.Hour, 0, 1); got[0] > leastWait || got[1] < time.Minute {
		t.Errorf("what is shortest and longest took %v", got)
	}
}
