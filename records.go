// This file holds how records are kept in Caddy's storage: JSON, one key for each, under a folder of ours.

package caddybokeh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
)

// folder is where Caddy's storage keeps all that is ours.
const folder = "caddy-bokeh/"

// recordSuffix ends the key of every record.
const recordSuffix = ".json"

// recordStorage is the part of Caddy's storage that records need. None of it is locked: each record
// is written whole, and the last one to write it has the say.
type recordStorage interface {
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context, prefix string, recursive bool) ([]string, error)
}

// operations are what can fail of a storage.
var operations = []string{"load", "list", "store", "delete"}

// countingStorage counts the failures of a storage, by operation.
type countingStorage struct {
	recordStorage
	errors counters
}

func (c countingStorage) count(ctx context.Context, operation string, err error) {
	// What nobody waits for any more may be asked of a storage that a reload has closed.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(ctx.Err(), context.Canceled) {
		c.errors.add(operation)
	}
}

// Store implements recordStorage.
func (c countingStorage) Store(ctx context.Context, key string, value []byte) error {
	err := c.recordStorage.Store(ctx, key, value)
	c.count(ctx, "store", err)
	return err
}

// Load implements recordStorage.
func (c countingStorage) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := c.recordStorage.Load(ctx, key)
	c.count(ctx, "load", err)
	return value, err
}

// Delete implements recordStorage.
func (c countingStorage) Delete(ctx context.Context, key string) error {
	err := c.recordStorage.Delete(ctx, key)
	c.count(ctx, "delete", err)
	return err
}

// List implements recordStorage.
func (c countingStorage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	keys, err := c.recordStorage.List(ctx, prefix, recursive)
	c.count(ctx, "list", err)
	return keys, err
}

func storeRecord(ctx context.Context, st recordStorage, key string, record any) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := st.Store(ctx, key, value); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// errBroken is a record that cannot be read.
var errBroken = errors.New("the record is broken")

// loadRecord returns the record at key, or nil if there is none.
func loadRecord[T any](ctx context.Context, st recordStorage, key string) (*T, error) {
	value, err := st.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("loading %s: %w", key, err)
	}
	record := new(T)
	if err := json.Unmarshal(value, record); err != nil {
		if c, ok := st.(countingStorage); ok { // the storage has done its part, and is of no use all the same
			c.errors.add("load")
		}
		return nil, fmt.Errorf("reading %s: %w: %w", key, errBroken, err)
	}
	return record, nil
}

// loadRecords returns all records in a folder by their keys. With an error come those that could be
// had; one that is broken is nil.
func loadRecords[T any](ctx context.Context, l *lister, folder string) (map[string]*T, error) {
	keys, failed := l.keys(ctx, folder)
	loaded, errs := make([]*T, len(keys)), make([]error, len(keys))
	severally(len(keys), func(i int) { loaded[i], errs[i] = loadRecord[T](ctx, l.st, keys[i]) })
	records := make(map[string]*T)
	for i, key := range keys {
		failed = errors.Join(failed, errs[i])
		if loaded[i] != nil || errors.Is(errs[i], errBroken) {
			records[key] = loaded[i]
		}
	}
	return records, failed
}

// loadsAtOnce is how many records are loaded at the same time. One after the other they would take too long where the
// storage is far away and a hundred upstreams were drained once.
const loadsAtOnce = 8

// severally calls f with each number below n, several at the same time, and returns when all is done.
func severally(n int, f func(i int)) {
	var all sync.WaitGroup
	turns := make(chan struct{}, loadsAtOnce)
	for i := range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			f(i)
		})
	}
	all.Wait()
}

// deleteRecord deletes the record at key. Another node may have been first, which some storages call an error.
func deleteRecord(ctx context.Context, st recordStorage, key string) error {
	if err := st.Delete(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	return nil
}
