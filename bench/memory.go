// This file holds the measuring of memory: sessions that are open and do nothing.

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

const (
	fewSessions  = 100 // open before, so that what a proxy makes once is made
	manySessions = 1000
	openAtOnce   = 10
	settleTime   = 2 * time.Second
)

// memory runs a peer once with sessions that do nothing.
func (b *bench) memory(ctx context.Context, w *work, p peer) (n numbers, err error) {
	r := &run{bench: *b, work: w, runs: &runs{of: map[string]int{}}, leave: make(chan struct{})}
	end, err := r.start(ctx, p)
	defer end()
	if err != nil {
		return n, err
	}
	var all sync.WaitGroup
	defer all.Wait()
	defer close(r.leave)
	before, err := r.open(ctx, &all, 0, fewSessions)
	if err != nil {
		return n, err
	}
	after, err := r.open(ctx, &all, fewSessions, manySessions)
	if err != nil {
		return n, err
	}
	n.Visits = manySessions
	n.Memory = (after - before) / manySessions
	return n, nil
}

// open opens sessions that stay, and returns what memory the peer then has.
func (r *run) open(ctx context.Context, all *sync.WaitGroup, first, count int) (float64, error) {
	arrivals := make([]arrival, first+count)
	for i := range arrivals {
		arrivals[i] = arrival{app: "/app", cost: time.Millisecond, who: i}
	}
	visitors := r.work.visitors(arrivals, 1)
	seats := make(chan struct{}, openAtOnce)
	failed := make(chan error, count)
	for i := first; i < first+count; i++ {
		select {
		case seats <- struct{}{}:
		case err := <-failed:
			return 0, err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		all.Go(func() {
			stand := sync.OnceFunc(func() { <-seats })
			v := visit{
				visitor: visitors[i], to: r.front, app: "/app", query: arrivals[i].query(strconv.Itoa(i)),
				stay: time.Hour, leave: r.leave, ready: stand,
			}
			if o := v.begin(ctx, time.Now()); o.failed != "" {
				failed <- errors.New("a session did not stay: " + o.failed)
				stand()
			}
		})
	}
	if err := sleep(ctx, settleTime); err != nil {
		return 0, err
	}
	if g, ok := r.front.(interface{ collect() error }); ok {
		if err := g.collect(); err != nil {
			return 0, err
		}
	}
	u, err := used(r.front.pid())
	if err == nil && len(failed) > 0 {
		err = <-failed
	}
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	return u.memory, nil
}
