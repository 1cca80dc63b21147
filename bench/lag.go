// This file holds how late this program wakes up: on a machine that is busy with other things no number is worth much.

package main

import (
	"context"
	"slices"
	"time"
)

const (
	lagEvery = 2 * time.Millisecond
	// lagLimit is what p99 of the lag may be in a run that counts.
	lagLimit = meanPage / 2
)

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
