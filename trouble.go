// This file holds what an upstream has failed at lately, and when it is tried again.

package caddybokeh

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// firstPause is how long no new session is sent to an upstream that has failed. It doubles with
	// each failure that follows, up to longestPause: one that is gone costs ever fewer visits. Where the
	// reverse proxy retries a failed dial, trying costs nobody a visit, and a server that restarts is
	// back in a few seconds.
	firstPause   = 10 * time.Second
	quickPause   = time.Second
	longestPause = time.Minute

	// pagesInARow is how many page requests in a row must fail, after a connection, before that is
	// taken for the server's fault, where they fail nowhere else. One app, or one visitor's request, may always fail.
	pagesInARow = 3
)

// trouble keeps new sessions off an upstream that fails, as long as there is another one. Without it a
// dead server looks idle, and draws all visits. What a client can cause, as by going away or asking for
// what is not there, does not count.
type trouble struct {
	until   atomic.Int64 // when it is tried again, on the table's clock; 0 if all is well
	trial   atomic.Int64 // since when a visit is trying it, on the table's clock: one at a time; 0 if none is
	pages   atomic.Int64 // that failed in a row, each of another client
	byPages atomic.Bool  // for these it is in trouble
	told    atomic.Bool  // it was last logged that the upstream fails

	mu       sync.Mutex // guards all below, and the change of until
	failures int        // in a row
}

// on says whether the upstream has failed since it was last well.
func (tr *trouble) on() bool { return tr.until.Load() != 0 }

// keepsOff says whether new sessions should go elsewhere.
func (tr *trouble) keepsOff(now time.Duration) bool {
	until := tr.until.Load()
	return until != 0 && (now < time.Duration(until) || tr.isTried(now))
}

// isTried says whether a visit is trying the upstream. One that takes for ever, as its client or a server that hangs
// may have it, holds up the others no longer than a pause.
func (tr *trouble) isTried(now time.Duration) bool {
	since := tr.trial.Load()
	return since != 0 && now-time.Duration(since) < longestPause
}

// beginTrial says whether the caller's visit is the one that tries, which then must endTrial.
func (tr *trouble) beginTrial(now time.Duration) bool {
	since := tr.trial.Load()
	return (since == 0 || now-time.Duration(since) >= longestPause) && tr.trial.CompareAndSwap(since, int64(now))
}

// endTrial ends a trial that was begun at a time, unless another one has taken its place.
func (tr *trouble) endTrial(begun time.Duration) { tr.trial.CompareAndSwap(int64(begun), 0) }

// failed takes note of a failure of a request that was begun at a time. One that was on its way when the one
// before failed tells nothing new, nor does one that came in a pause because no other upstream is well. The first pause is given.
func (tr *trouble) failed(begun, now, first time.Duration) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if begun < time.Duration(tr.until.Load()) {
		return
	}
	tr.failures++
	pause := longestPause
	if shift := tr.failures - 1; shift < 6 {
		pause = min(first<<shift, longestPause)
	}
	tr.until.Store(int64(now + pause))
}

// connected takes note of a connection. Where pages fail it says nothing.
func (tr *trouble) connected() {
	if tr.until.Load() != 0 && !tr.byPages.Load() {
		tr.end()
	}
}

// pageFailed takes note of a page request, begun at a time, that was answered with an error, or not at all, and of how many in a
// row mean trouble. With fewer it is no worse than others by now, if it was.
func (tr *trouble) pageFailed(begun, now time.Duration, row int64) {
	switch {
	case tr.pages.Add(1) >= row:
		tr.byPages.Store(true)
		tr.failed(begun, now, quickPause)
	case tr.byPages.Load():
		tr.end()
	}
}

// pageCame takes note of a page that was answered.
func (tr *trouble) pageCame() {
	if tr.pages.Load() != 0 {
		tr.pages.Store(0)
	}
	if tr.until.Load() != 0 {
		tr.end()
	}
}

// tryNow ends the pause, not the trouble.
func (tr *trouble) tryNow(now time.Duration) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if int64(now) < tr.until.Load() {
		tr.until.Store(int64(now))
	}
}

func (tr *trouble) end() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.failures = 0
	tr.byPages.Store(false)
	tr.until.Store(0)
}
