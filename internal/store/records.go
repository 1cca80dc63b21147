// Package store keeps records in Caddy's storage: JSON, one key for each, under a folder of ours. A storage may be slow, hang, fail, list in
// a way of its own, or hold what somebody else has written; so calls end in time, failures are counted, listings are tried in several ways,
// and what is read is bounded. Everything exported is safe for concurrent use.
//
// This file holds how records are written and read.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/certmagic"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// Folder is where Caddy's storage keeps all that is ours.
const Folder = "caddy-bokeh/"

// Suffix ends the key of every record.
const Suffix = ".json"

// Storage is the part of Caddy's storage that this module needs, as certmagic.Storage says it. All may be called from any goroutine.
//
// A call may fail, hang whatever its context says, or do later what it was asked for: whoever uses a storage counts on none of it. What
// is counted on is that a value is written whole, and that a load shows what was stored before it began. Records are written without
// locks, so the last one to write has the say.
type Storage interface {
	// Store writes a value, over what was there.
	Store(ctx context.Context, key string, value []byte) error

	// Load returns a value. The error of one that is not there is fs.ErrNotExist.
	Load(ctx context.Context, key string) ([]byte, error)

	// Delete deletes a value. Where there is none, that may be an error.
	Delete(ctx context.Context, key string) error

	// List returns names below a prefix. Storages do not agree on more than that, see lister.
	List(ctx context.Context, prefix string, recursive bool) ([]string, error)

	// Stat says how large a value is. Some storages load it for that, and some do not know.
	Stat(ctx context.Context, key string) (certmagic.KeyInfo, error)

	// Lock waits for a lock and takes it, and Unlock gives it back. Some storages keep a lock as a record of its name.
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
}

// Operations are what can fail of a storage.
var Operations = []string{"load", "list", "store", "delete"}

// countingStorage counts the failures of a storage, by operation.
type countingStorage struct {
	Storage
	failed func(operation string)
	large  *sync.Map // keys (string) of records that were too large
}

// Counting returns a storage of which each failure is told, by what was tried: one of Operations.
func Counting(st Storage, failed func(operation string)) Storage {
	return countingStorage{st, failed, new(sync.Map)}
}

func (c countingStorage) count(ctx context.Context, operation string, err error) {
	// What nobody waits for any more may be asked of a storage that a reload has closed.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(ctx.Err(), context.Canceled) {
		c.failed(operation)
	}
}

// Store implements Storage.
func (c countingStorage) Store(ctx context.Context, key string, value []byte) error {
	err := c.Storage.Store(ctx, key, value)
	c.count(ctx, "store", err)
	return err
}

// Load implements Storage.
func (c countingStorage) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := c.Storage.Load(ctx, key)
	c.count(ctx, "load", err)
	return value, err
}

// Delete implements Storage.
func (c countingStorage) Delete(ctx context.Context, key string) error {
	err := c.Storage.Delete(ctx, key)
	c.count(ctx, "delete", err)
	return err
}

// List implements Storage.
func (c countingStorage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	keys, err := c.Storage.List(ctx, prefix, recursive)
	c.count(ctx, "list", err)
	return keys, err
}

// Put writes a record over what was at key. With an error it may have been written all the same, now or later.
func Put(ctx context.Context, st Storage, key string, record any) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	if err := st.Store(ctx, key, value); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// Record is one of a kind T that the storage keeps.
type Record[T any] interface {
	*T
	Size() int    // how many bytes it may have
	Memory() int  // how many bytes it takes in memory, about
	Check() error // whether it says what a Caddy may have written
}

// Load returns the record at key, or nil if there is none.
func Load[T any, R Record[T]](ctx context.Context, st Storage, key string) (*T, error) {
	r, _, err := loadSized[T, R](ctx, st, key)
	return r, err
}

// loadSized returns how many bytes were loaded beside.
func loadSized[T any, R Record[T]](ctx context.Context, st Storage, key string) (_ *T, size int, _ error) {
	r := R(new(T))
	if size, is := isTooLarge(ctx, st, key, r.Size()); is {
		return nil, 0, broken(st, key, tooLarge(size, r.Size()))
	}
	value, err := st.Load(ctx, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, nil
	case err != nil:
		return nil, 0, fmt.Errorf("loading %s: %w", key, err)
	case len(value) > r.Size():
		noteTooLarge(st, key)
		return nil, len(value), broken(st, key, tooLarge(int64(len(value)), r.Size()))
	}
	if err = json.Unmarshal(value, r); err == nil {
		err = r.Check()
	}
	if err != nil {
		return nil, len(value), broken(st, key, err)
	}
	return r, len(value), nil
}

// broken is the error of a record that is of no use, though the storage has done its part. What is told of it may be as long as it is.
func broken(st Storage, key string, err error) error {
	countError(st, "load")
	mend := "delete it"
	if node, ok := strings.CutPrefix(strings.TrimSuffix(key, Suffix), NodesFolder); ok {
		mend = fmt.Sprintf("if its node is gone, DELETE %s/%s", api.NodesPath, node)
	}
	return fmt.Errorf("reading %s: %w (%s): %s", key, ErrBroken, mend, printable.Cut(err.Error(), maxReason))
}

// countError counts what a storage could not know to be a failure.
func countError(st Storage, operation string) {
	if c, ok := st.(countingStorage); ok {
		c.failed(operation)
	}
}

func tooLarge(size int64, most int) error {
	return fmt.Errorf("it has %d bytes, of which at most %d are read", size, most)
}

// KnowsSizes says whether a storage tells how large a value is without reading that: the one that Caddy has if none is configured. There
// a file may seem to be larger than the memory and take no room on the disk.
func KnowsSizes(st Storage) bool {
	if p, ok := st.(patient); ok {
		st = p.Storage
	}
	_, ok := st.(*certmagic.FileStorage)
	return ok
}

// isTooLarge says whether it is known that a record is too large, and how large it is. Where that is not cheap, it is asked only about
// what was too large before: storages that are far away would be asked twice for each record, and many that know no size load the value
// for it.
func isTooLarge(ctx context.Context, st Storage, key string, most int) (size int64, is bool) {
	c, ok := st.(countingStorage)
	if !ok {
		return 0, false
	}
	if _, was := c.large.LoadAndDelete(key); !was && !KnowsSizes(c.Storage) {
		return 0, false
	}
	if info, err := c.Stat(ctx, key); err == nil && info.Size > int64(most) {
		noteTooLarge(c, key)
		return info.Size, true
	}
	return 0, false
}

// noteTooLarge takes note that a record is too large.
func noteTooLarge(st Storage, key string) {
	if c, ok := st.(countingStorage); ok {
		c.large.Store(key, true)
	}
}

// forgetTooLarge forgets what is not in a folder any more.
func forgetTooLarge(st Storage, folder string, keys []string) {
	c, ok := st.(countingStorage)
	if !ok {
		return
	}
	listed := sync.OnceValue(func() map[string]bool {
		all := make(map[string]bool)
		for _, key := range keys {
			all[key] = true
		}
		return all
	})
	c.large.Range(func(key, _ any) bool {
		if name, _ := key.(string); strings.HasPrefix(name, folder) && !listed()[name] {
			c.large.Delete(key)
		}
		return true
	})
}

// ErrTooMuch is what is said of a folder that holds more than is read of it.
var ErrTooMuch = fmt.Errorf("it holds more than %d records, or more than %d MiB, and the rest is passed over (delete those of nodes and servers that are gone)",
	MaxRecords, MaxFolder>>20)

// LoadAll returns all records in a folder by their keys, as far as there are not too many. With an error come those that could be
// had; one that is broken is nil.
func LoadAll[T any, R Record[T]](ctx context.Context, l *Lister, folder string) (map[string]*T, error) {
	keys, failed := l.keys(ctx, folder)
	tooMany := len(keys) > MaxRecords
	keys = keys[:min(len(keys), MaxRecords)]
	if failed == nil {
		forgetTooLarge(l.st, folder, keys)
	}
	loaded, errs := make([]*T, len(keys)), make([]error, len(keys))
	ctx = OneLook(ctx)
	var bytes, memory atomic.Int64
	full := func() bool { return bytes.Load() > MaxFolder || memory.Load() > MaxMemory }
	Severally(len(keys), func(i int) {
		if full() {
			return
		}
		var size int
		loaded[i], size, errs[i] = loadSized[T, R](ctx, l.st, keys[i])
		bytes.Add(int64(size))
		if loaded[i] != nil {
			memory.Add(int64(R(loaded[i]).Memory()))
		}
	})
	if tooMany || full() {
		countError(l.st, "list")
		failed = errors.Join(failed, fmt.Errorf("reading %s: %w", folder, ErrTooMuch))
	}
	records := make(map[string]*T)
	for i, key := range keys {
		if loaded[i] != nil || errors.Is(errs[i], ErrBroken) {
			records[key] = loaded[i]
		}
	}
	return records, errors.Join(failed, Few(errs))
}

// Few returns the first of some errors, which may be many, and says how many more there are. One that says that the storage does not
// answer is among them, for that is asked about.
func Few(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	const most = 3
	if len(errs) <= most {
		return errors.Join(errs...)
	}
	if i := slices.IndexFunc(errs, func(err error) bool { return errors.Is(err, ErrUnanswered) }); i >= most {
		errs[0], errs[i] = errs[i], errs[0]
	}
	return errors.Join(errors.Join(errs[:most]...), fmt.Errorf("and %d others", len(errs)-most))
}

// LoadsAtOnce is how many records are loaded at the same time. One after the other they would take too long where the
// storage is far away and a hundred upstreams were drained once.
const LoadsAtOnce = 8

// Severally calls f with each number below n, several at the same time, and returns when all is done.
func Severally(n int, f func(i int)) {
	var all sync.WaitGroup
	turns := make(chan struct{}, LoadsAtOnce)
	for i := range n {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			f(i)
		})
	}
	all.Wait()
}

// Delete deletes the record at key. Another node may have been first, which some storages call an error.
func Delete(ctx context.Context, st Storage, key string) error {
	if err := st.Delete(ctx, key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	return nil
}
