// Package breaker keeps new sessions off an upstream that fails, as long as there is another one, and lets single visits try
// whether it is well again. Without it a dead server looks idle, and draws all visits.
//
// This file holds all of it.
package breaker

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Backoff is the first pause after a connection that failed, where trying costs a visit. A pause doubles with each failure that
	// follows, up to MaxBackoff: a server that is gone costs ever fewer visits.
	Backoff    = 10 * time.Second
	MaxBackoff = time.Minute

	// QuickBackoff is the same where trying costs nobody a visit, as where the reverse proxy retries a failed dial: a server that
	// restarts is back in a few seconds. It is the first pause after failed pages as well, for those may tell of the app.
	QuickBackoff = time.Second

	// PagesInARow is how many page requests in a row must fail, after a connection, before that is
	// taken for the server's fault, where they fail nowhere else. One app, or one visitor's request, may always fail.
	PagesInARow = 3
)

// State is what a breaker says of its upstream.
//
//	state      since                    new sessions          what comes next
//	closed     it was last well         go there              open, with a failure
//	open       a failure, for a pause   go elsewhere          half-open, when the pause is over; closed, with a success
//	half-open  the pause is over        one may probe it      probing, when one does; closed, with a success
//	probing    a visit probes it        go elsewhere          half-open, when the probe ends or has taken MaxBackoff;
//	                                                          closed, with a success; open, with a failure, for twice as long
//
// A success is a page, or, unless pages have failed, a connection. Where no upstream is closed or half-open, sessions go to
// those that are open as well; what they meet changes a pause only if it is a success.
type State uint8

// The states.
const (
	Closed State = iota
	Open
	HalfOpen
	Probing
)

// Breaker is the breaker of one upstream. What a client can cause, as by going away or asking for what is not there, must not be
// told to it. Times are on one clock, which begins above 0. All methods may be called by any goroutine; the zero Breaker is closed.
type Breaker struct {
	until   atomic.Int64 // when the pause is over; 0 if closed
	probe   atomic.Int64 // since when a visit probes the upstream; 0 if none does
	pages   atomic.Int64 // that failed in a row, each of another client
	byPages atomic.Bool  // for these it has tripped
	told    atomic.Bool  // it was last told that it has tripped

	mu       sync.Mutex // guards all below, and the change of until
	failures int        // in a row
}

// State returns the state at a time.
func (b *Breaker) State(now time.Duration) State {
	until := b.until.Load()
	switch {
	case until == 0:
		return Closed
	case now < time.Duration(until):
		return Open
	case b.isProbed(now):
		return Probing
	}
	return HalfOpen
}

// Tripped says whether the upstream has failed since it was last well: whether the breaker is anything but closed.
func (b *Breaker) Tripped() bool { return b.until.Load() != 0 }

// Blocks says whether new sessions should go elsewhere.
func (b *Breaker) Blocks(now time.Duration) bool {
	s := b.State(now)
	return s == Open || s == Probing
}

// Until returns when the pause is over, or was; 0 if the breaker is closed.
func (b *Breaker) Until() time.Duration { return time.Duration(b.until.Load()) }

// Changed says whether the breaker has tripped, and whether that is another answer than it gave last: so each change can be told once.
func (b *Breaker) Changed() (tripped, changed bool) {
	tripped = b.Tripped()
	return tripped, b.told.Load() != tripped && b.told.CompareAndSwap(!tripped, tripped)
}

// isProbed says whether a visit probes the upstream. One that takes for ever, as its client or a server that hangs
// may have it, holds up the others no longer than MaxBackoff.
func (b *Breaker) isProbed(now time.Duration) bool {
	since := b.probe.Load()
	return since != 0 && now-time.Duration(since) < MaxBackoff
}

// BeginProbe says whether the caller's visit is the one that probes the upstream, which then must call EndProbe.
func (b *Breaker) BeginProbe(now time.Duration) bool {
	since := b.probe.Load()
	return (since == 0 || now-time.Duration(since) >= MaxBackoff) && b.probe.CompareAndSwap(since, int64(now))
}

// EndProbe ends a probe that was begun at a time, unless another one has taken its place.
func (b *Breaker) EndProbe(begun time.Duration) { b.probe.CompareAndSwap(int64(begun), 0) }

// Failure takes note of a connection that failed, of a request that was begun at a time. One that was on its way when the one
// before failed tells nothing new, nor does one that came in a pause because no other upstream is well. The first pause is given.
func (b *Breaker) Failure(begun, now, first time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if begun < time.Duration(b.until.Load()) {
		return
	}
	b.failures++
	pause := MaxBackoff
	if shift := b.failures - 1; shift < 6 {
		pause = min(first<<shift, MaxBackoff)
	}
	b.until.Store(int64(now + pause))
}

// Connected takes note of a connection. Where pages fail it says nothing.
func (b *Breaker) Connected() {
	if b.until.Load() != 0 && !b.byPages.Load() {
		b.reset()
	}
}

// PageFailure takes note of a page request, begun at a time, that was answered with an error, or not at all, and of how many in a
// row trip the breaker. With fewer the upstream is no worse than others by now, if it was.
func (b *Breaker) PageFailure(begun, now time.Duration, row int64) {
	switch {
	case b.pages.Add(1) >= row:
		b.byPages.Store(true)
		b.Failure(begun, now, QuickBackoff)
	case b.byPages.Load():
		b.reset()
	}
}

// Success takes note of a page that was answered.
func (b *Breaker) Success() {
	if b.pages.Load() != 0 {
		b.pages.Store(0)
	}
	if b.until.Load() != 0 {
		b.reset()
	}
}

// ProbeNow ends the pause: an open breaker is half-open.
func (b *Breaker) ProbeNow(now time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if int64(now) < b.until.Load() {
		b.until.Store(int64(now))
	}
}

// reset closes the breaker.
func (b *Breaker) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = 0
	b.byPages.Store(false)
	b.until.Store(0)
}
