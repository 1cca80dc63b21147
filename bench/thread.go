// This file holds the one thread of a simulated server, and a gauge that knows its average over time.

package main

import (
	"context"
	"sync"
	"time"
)

// thread does one thing after the other, as the event loop of a Bokeh server does.
type thread struct {
	mu   sync.Mutex
	free time.Time // when all that was asked for is done
}

// work returns when what was asked for before is done and then d has gone by. A sleep that ends late
// delays nothing else: what follows was reckoned from the time it should have ended.
func (t *thread) work(ctx context.Context, d time.Duration) error {
	t.mu.Lock()
	now := time.Now()
	if t.free.Before(now) {
		t.free = now
	}
	t.free = t.free.Add(d)
	end := t.free
	t.mu.Unlock()
	return sleep(ctx, time.Until(end))
}

func (t *thread) busyUntil() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.free
}

// sleep sleeps, unless the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gauge is a number that changes.
type gauge struct {
	mu    sync.Mutex // guards all below
	value int
	area  float64 // the value times the seconds that it was held
	since time.Time
}

func (g *gauge) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settle()
	g.value += n
}

// sum returns the area so far: the difference of two, by the seconds between them, is the average.
func (g *gauge) sum() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settle()
	return g.area
}

// settle needs the lock.
func (g *gauge) settle() {
	now := time.Now()
	if !g.since.IsZero() {
		g.area += float64(g.value) * now.Sub(g.since).Seconds()
	}
	g.since = now
}
