// This file holds how late this program wakes up: on a machine that is busy with other things no number is worth much.

package main

import (
	"cmp"
	"context"
	"slices"
	"time"
)

const (
	lagEvery = 2 * time.Millisecond
	// lagLimit is what p99 of the lag may be in a run that counts.
	lagLimit = meanPage / 2
)

// calmest runs until the lag is below a limit, at most so many times, and returns what the run with the least lag gave.
func calmest(times int, limit time.Duration, run func() ([]numbers, error)) (all []numbers, lag time.Duration, err error) {
	for i := range times {
		got, err := run()
		if err != nil {
			return nil, 0, err
		}
		most := slices.MaxFunc(got, func(a, b numbers) int { return cmp.Compare(a.Lag, b.Lag) }).Lag
		if late := time.Duration(most * float64(time.Second)); i == 0 || late < lag {
			all, lag = got, late
		}
		if lag <= limit {
			break
		}
	}
	return all, lag, nil
}

// lag sleeps until the context ends, and returns by how much it slept too long: of 99 in 100 less than this.
func lag(ctx context.Context) time.Duration {
	var late []float64
	for {
		due := time.Now().Add(lagEvery)
		if sleep(ctx, lagEvery) != nil {
			break
		}
		late = append(late, time.Since(due).Seconds())
	}
	if len(late) == 0 {
		return 0
	}
	slices.Sort(late)
	return time.Duration(quantile(late, 0.99) * float64(time.Second))
}
