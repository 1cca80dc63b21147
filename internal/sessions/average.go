// This file holds the moving average by which the latest pages tell how slow an upstream is.

package sessions

import (
	"cmp"
	"sync/atomic"
)

// The slowness of an upstream is in parts of the usual one. A page that is out of all proportion says little.
const (
	AsUsual    = 1 << 16
	muchSlower = 8
)

// average is a moving average, roughly of the last averageOf. It is 0 where there is none yet.
type average struct{ of atomic.Int64 }

const averageOf = 16

func (a *average) add(x int64) {
	for {
		old := a.of.Load()
		next := old + (x-old)/averageOf
		if old == 0 {
			next = x
		}
		if a.of.CompareAndSwap(old, max(next, 1)) {
			return
		}
	}
}

// or returns the average, or x if there is none.
func (a *average) or(x int64) int64 { return cmp.Or(a.of.Load(), x) }
