// This file holds how a file is fetched once for all that ask for it at the same time.

package contentcache

import (
	"bytes"
	"context"
	"crypto/sha512"
	"net/http"
	"time"
)

// patience is how long those who ask wait for the one who fetches, before another of them begins to fetch as well.
const patience = time.Second

// flight is a file that is asked for and not there yet.
type flight struct {
	key    key
	turns  chan struct{} // holds a token while somebody may begin to fetch
	over   chan struct{} // closed when nobody has to wait any more
	kept   context.Context
	land   context.CancelFunc // ends kept, when there is the file
	askers int                // guarded by Cache.mu
	isOver bool               // guarded by Cache.mu
	file   *File              // that somebody has fetched, kept for good or not; guarded by Cache.mu
}

// Turn is the right to fetch a file.
type Turn struct {
	cache *Cache
	ctx   context.Context
	end   context.CancelFunc
	fl    *flight
	next  *time.Timer // gives another one a turn
	stop  func() bool // keeps ctx from ending when another one has fetched the file
	held  int64       // bytes of what is being fetched
	given int64       // bytes of what is being handed on
	done  bool        // nobody waits for this turn
}

// Join returns the file that is kept for an address, or a turn to fetch it. Where others fetch it already it waits:
// until it is kept, until they have given up, until they have taken a second, or until ctx is done. A turn must be
// ended, by the goroutine that got it.
func (s *Site) Join(ctx context.Context, url string, sum Sum) (*File, *Turn) {
	c, k := s.cache, key{s, url, sum}
	f, fl := c.join(k)
	if f != nil {
		return f, nil
	}
	alone := true // nobody waits for what this one fetches
	select {
	case <-fl.turns:
		alone = false
	case <-fl.over:
	case <-ctx.Done():
	}
	t := &Turn{cache: c, fl: fl, done: alone, stop: func() bool { return true }}
	if f := t.File(); f != nil {
		if !alone {
			fl.offer() // the token is not used
		}
		c.leave(fl)
		return f, nil
	}
	t.ctx, t.end = context.WithCancel(ctx)
	if !alone {
		t.next = time.AfterFunc(patience, fl.offer)
		t.stop = context.AfterFunc(fl.kept, t.end)
	}
	return nil, t
}

// join returns the file of a key, or its flight.
func (c *Cache) join(k key) (*File, *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.get(k); f != nil {
		return f, nil
	}
	fl := c.flights[k]
	if fl == nil {
		fl = &flight{key: k, turns: make(chan struct{}, 1), over: make(chan struct{})}
		fl.kept, fl.land = context.WithCancel(context.Background())
		fl.offer()
		c.flights[k] = fl
	}
	fl.askers++
	return nil, fl
}

// leave forgets a flight that nobody is on any more.
func (c *Cache) leave(fl *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fl.askers--; fl.askers == 0 {
		c.finish(fl)
		fl.land() // only to free it
	}
}

// finish ends the waiting; who asks from now on begins anew. c.mu is locked.
func (c *Cache) finish(fl *flight) {
	if fl.isOver {
		return
	}
	fl.isOver = true
	close(fl.over)
	delete(c.flights, fl.key)
}

// offer lets one more begin to fetch.
func (fl *flight) offer() {
	select {
	case fl.turns <- struct{}{}:
	default:
	}
}

// Context is the asker's, and ends as well when another one has fetched the file.
func (t *Turn) Context() context.Context { return t.ctx }

// File returns the file if anybody has fetched it meanwhile, or nil. It is there for those who have asked at the same time also where it
// is not kept: the site may have been closed, or the room been needed for others.
func (t *Turn) File() *File {
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.fl.file != nil {
		return t.fl.file
	}
	return c.get(t.fl.key)
}

// Reserve asks for room for n bytes more of an answer for which so many are held. Who gets none has to do without keeping it.
func (t *Turn) Reserve(held, n int64) bool {
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if held+n > c.maxFile() || c.fetching+n > c.limit/fetchingShare {
		return false
	}
	t.held += n
	c.fetching += n
	return true
}

// Release gives back n bytes, of an answer that is not needed any more.
func (t *Turn) Release(n int64) {
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	t.held -= n
	c.fetching -= n
}

// HandOn frees the room for fetching: what is held is all fetched, and goes to somebody who may be slow to read it. It returns false
// where too much is being handed on already.
func (t *Turn) HandOn() bool {
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.held > 0 && c.handedOn+t.held > c.limit/handedOnShare {
		return false
	}
	c.handedOn += t.held
	c.fetching -= t.held
	t.given, t.held = t.given+t.held, 0
	return true
}

// ReleaseAll gives back all that was reserved.
func (t *Turn) ReleaseAll() {
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fetching -= t.held
	c.handedOn -= t.given
	t.held, t.given = 0, 0
}

// Matches says whether data is what the address names.
func (t *Turn) Matches(data []byte) bool { return sha512.Sum512(data) == t.fl.key.sum }

// Keep keeps data, which matches, and the header that it is to be served with. It hands the file to those who wait.
func (t *Turn) Keep(data []byte, h http.Header) *File {
	if cap(data) > len(data)+len(data)/16 {
		data = bytes.Clone(data) // it has grown into more than is counted
	}
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.put(t.fl.key, data, h)
	t.fl.file = f
	t.done = true
	c.finish(t.fl)
	t.fl.land()
	return f
}

// GiveUp lets those who wait fetch for themselves: the file cannot be kept. From then on the turn's context is that of the
// asker alone. It returns false where that is too late, because another one has fetched the file.
func (t *Turn) GiveUp() bool {
	c := t.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.done {
		return true
	}
	if !t.stop() {
		return false
	}
	t.done = true
	c.finish(t.fl)
	return true
}

// End gives back what was reserved. Where the file was neither kept nor given up, another one of those who wait gets a turn.
func (t *Turn) End() {
	if t.next != nil {
		t.next.Stop()
	}
	if !t.done {
		t.fl.offer()
	}
	t.stop() // or the flight would remember all turns there were
	t.end()
	t.ReleaseAll()
	t.cache.leave(t.fl)
}
