// This file holds a way to the storage that plays tricks.

package clustertest

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// Trick is a door that plays tricks: each of its hooks is called before the door's own method, where it is not nil.
type Trick struct {
	*Door
	OnList, OnLoad func(key string) error
	OnStore        func() error
	OnStored       func() error // what the caller hears of a write that worked
}

// Call calls a hook, if there is one.
func Call[A any](hook func(A) error, arg A) error {
	if hook == nil {
		return nil
	}
	return hook(arg)
}

// List implements store.Storage.
func (d *Trick) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	if err := Call(d.OnList, prefix); err != nil {
		return nil, err
	}
	return d.Door.List(ctx, prefix, recursive)
}

// Load implements store.Storage.
func (d *Trick) Load(ctx context.Context, key string) ([]byte, error) {
	if err := Call(d.OnLoad, key); err != nil {
		return nil, err
	}
	return d.Door.Load(ctx, key)
}

// Store implements store.Storage.
func (d *Trick) Store(ctx context.Context, key string, value []byte) error {
	if d.OnStore != nil {
		if err := d.OnStore(); err != nil {
			return err
		}
	}
	if err := d.Door.Store(ctx, key, value); err != nil || d.OnStored == nil {
		return err
	}
	return d.OnStored()
}

// SlowTrick is a door through which each call takes its time, before and after.
func SlowTrick(d *Door, most time.Duration, seed uint64) *Trick {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 3)) //nolint:gosec // a test that can be repeated
	wait := func() error {
		mu.Lock()
		var takes time.Duration
		if most > 0 {
			takes = time.Duration(rnd.Int64N(int64(most)))
		}
		mu.Unlock()
		time.Sleep(takes)
		return nil
	}
	slow := func(string) error { return wait() }
	return &Trick{Door: d, OnList: slow, OnLoad: slow, OnStore: wait, OnStored: wait}
}
