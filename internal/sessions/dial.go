// This file holds whether connections to an upstream come about.

package sessions

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// dials are how the last dials of an upstream ended.
type dials struct {
	failedAt  Failure      // of a dial, but for those that took too long
	lateSince atomic.Int64 // since when dials take too long, on the table's clock; 0 if one has succeeded since
	lateAt    Failure      // the last of those
	coldSince atomic.Int64 // when a dial failed last, whatever happened since, on the table's clock; 0 for never
}

// Dialed tells how a dial of u ended, for a request that was begun at a time, and how long u then is to
// have a pause from new sessions at first.
func (u *Upstream) Dialed(begun, now, pause time.Duration, err error) {
	switch {
	case err == nil:
		u.failedAt.Clear()
		if u.lateSince.Load() != 0 {
			u.lateSince.Store(0)
		}
		u.Breaker.Connected()
	case !isUpstreamsFault(err):
	case IsTimeout(err):
		if last := u.lateAt.when(); now-last > 2*UnhealthyGrace {
			u.lateSince.Store(0) // that was another time
		}
		u.lateSince.CompareAndSwap(0, int64(now))
		u.lateAt.Note(now)
		u.Breaker.Failure(begun, now, pause)
	default:
		u.failedAt.Note(now)
		u.coldSince.Store(int64(now))
		u.Breaker.Failure(begun, now, pause)
	}
}

// IsTimeout says whether an error is that nothing has come in time.
func IsTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// isUpstreamsFault says whether a failed dial tells of the upstream. A client that went away and
// our own want of ports, files or memory tell nothing, and neither does a resolver that fails.
func isUpstreamsFault(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	for _, own := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM,
	} {
		if errors.Is(err, own) {
			return false
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsNotFound
	}
	return true
}

// IsSilent says whether no connection to u has come about in time for so long that it is no busy server any more. A server that is
// busy takes none either, as soon as so many wait that its system drops those that come.
func (u *Upstream) IsSilent(now time.Duration) bool {
	since := time.Duration(u.lateSince.Load())
	return since != 0 && now-since > UnhealthyGrace && u.lateAt.JustNow(now)
}

// IsFailing says whether the last dial of u failed, not long ago.
func (u *Upstream) IsFailing(now time.Duration) bool { return u.failedAt.JustNow(now) }

// IsUnreachable says whether the last connection to u could not be made, however long ago.
func (u *Upstream) IsUnreachable() bool { return u.failedAt.Was() || u.lateSince.Load() != 0 }

// Failure is when something failed last, on the table's clock in nanoseconds; 0 if it has succeeded since.
type Failure struct{ at atomic.Int64 }

// Note takes note of one.
func (f *Failure) Note(now time.Duration) { f.at.Store(int64(now)) }

// Clear takes note of a success. It is called for every connection, and most find nothing to clear.
func (f *Failure) Clear() {
	if f.Was() {
		f.at.Store(0)
	}
}

// Was says whether the last try failed, however long ago.
func (f *Failure) Was() bool { return f.at.Load() != 0 }

// JustNow says whether it did, not long ago.
func (f *Failure) JustNow(now time.Duration) bool {
	at := f.when()
	return at != 0 && now-at < DialBackoff
}

// when returns the time of the last one, or 0.
func (f *Failure) when() time.Duration { return time.Duration(f.at.Load()) }
