// This file holds what an upstream keeps of pages that failed: of which apps, and for which clients.

package sessions

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxFailingApps bounds the apps of an upstream of which failures are kept.
	maxFailingApps = 64

	// forgiven is the share of failures that is none any more.
	forgiven = 1.0 / 64
)

// Seldom lets each client have its turn once in a while. Clients that share a place share the turn.
type Seldom struct{ last [256]atomic.Int64 } // by client, on the table's clock

// Rests says whether the client has had its turn so lately that it is not to have the next; at is when that was.
func (s *Seldom) Rests(client uint64, every, now time.Duration) (at int64, rests bool) {
	at = s.of(client).Load()
	return at, at != 0 && now-time.Duration(at) < every
}

// Allow says whether it is the client's turn.
func (s *Seldom) Allow(client uint64, every, now time.Duration) bool {
	at, rests := s.Rests(client, every, now)
	return !rests && s.of(client).CompareAndSwap(at, int64(now))
}

func (s *Seldom) of(client uint64) *atomic.Int64 { return &s.last[client%uint64(len(s.last))] }

// FailingApps is how often the pages of apps fail at an upstream.
type FailingApps struct {
	n atomic.Int64 // how many there are, so that where nothing fails no lock is taken

	mu    sync.Mutex      // guards share, and the change of n
	share map[App]float64 // of the last pages, roughly averageOf, that failed
}

// Failed takes note of a page that failed.
func (f *FailingApps) Failed(of App) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.share == nil {
		f.share = make(map[App]float64)
	}
	for old := range f.share {
		if _, known := f.share[of]; known || len(f.share) < maxFailingApps {
			break
		}
		delete(f.share, old)
	}
	f.share[of] += (1 - f.share[of]) / averageOf
	f.n.Store(int64(len(f.share)))
}

// Came takes note of a page that came.
func (f *FailingApps) Came(of App) {
	if f.n.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.share[of] -= f.share[of] / averageOf; f.share[of] < forgiven {
		delete(f.share, of)
	}
	f.n.Store(int64(len(f.share)))
}

// Share returns the share of an app's pages that failed lately.
func (f *FailingApps) Share(a App) float64 {
	if f.n.Load() == 0 {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.share[a]
}

// ShareBeyondChance returns how large the share of an app's pages that fail at one upstream may be by chance, where such a share of
// them fails elsewhere: three standard deviations of the moving average more. Where nothing fails elsewhere, one failure says as little
// as one success does; with the third in a row it is beyond that.
func ShareBeyondChance(share float64) float64 {
	p := max(share, 1.0/averageOf)
	return share + 3*math.Sqrt(p*(1-p)/(2*averageOf-1))
}
