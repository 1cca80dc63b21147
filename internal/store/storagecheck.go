// This file holds the check of a storage: whether it can do all that this module needs of it.

package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

const (
	// CheckFolder is where the storage keeps what it is tried with, for that moment.
	CheckFolder = Folder + "check/"
)

// Check tries a storage with two records and a lock of its own, which it deletes. The storage goes by a name, or by its type
// if that is empty.
func Check(ctx context.Context, st Storage, name string) *api.StorageCheck {
	c := &checker{st: st, a: checkKey(), b: checkKey()}
	c.Storage = cmp.Or(name, fmt.Sprintf("%T", st))
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	defer c.cleanUp(ctx)
	c.OK = true
	for _, s := range []struct {
		name, means string
		try         func(context.Context) (note string, err error)
	}{
		{"store", "nothing can be drained, and Caddys do not know of each other", c.store},
		{"load", "drains are lost when Caddy restarts, and do not hold on other Caddys", c.load},
		{"overwrite", "Caddys read what others have said too late, or never: do not trust drained", c.overwrite},
		{"two writers", "when two Caddys write at once, neither can be read", c.writeTwice},
		{"list", "Caddys do not find each other: nothing is ever called drained", c.list},
		{"list what is not there", "until a server is drained for the first time, Caddy takes this for a storage that fails", c.listMissing},
		{"load what is not there", "draining a server for the first time fails", c.loadMissing},
		{"lock", "each Caddy stamps with a key of its own, unless all have the same secret_key", c.lock},
		{"delete", "Caddys that have ended, and drains of servers that are gone, are never forgotten", c.delete},
	} {
		if !c.step(ctx, s.name, s.means, s.try) && (s.name == "store" || ctx.Err() != nil) {
			break // the rest would say the same
		}
	}
	return &c.StorageCheck
}

// checkKey returns the key of a record that nobody else has.
func checkKey() string { return CheckFolder + RandomName() + Suffix }

// checker tries a storage with two records.
type checker struct {
	api.StorageCheck
	st   Storage
	a, b string        // their keys
	way  *wayOfListing // that shows them; nil if none does

	saysMissing bool // what is not there can be told from what cannot be loaded
}

// lockName is that of the lock. No record has it, as no record has the name of any lock of this module.
func (c *checker) lockName() string { return c.b + ".lock" }

// step tries one thing, and says whether that worked.
func (c *checker) step(ctx context.Context, name, means string, try func(context.Context) (string, error)) bool {
	type outcome struct {
		note string
		err  error
	}
	began, done := time.Now(), make(chan outcome, 1)
	go func() { // not every storage heeds a context
		note, err := try(ctx)
		done <- outcome{note, err}
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		o.err = fmt.Errorf("the storage has not answered within %v", checkTimeout)
		go func() { // what comes late leaves nothing behind either
			<-done
			c.cleanUp(ctx)
		}()
	}
	s := api.CheckStep{Name: name, OK: o.err == nil, Seconds: time.Since(began).Seconds(), Note: o.note}
	if o.err != nil {
		s.Error, s.Means, c.OK = o.err.Error(), means, false
	}
	c.Steps = append(c.Steps, s)
	return s.OK
}

func (c *checker) store(ctx context.Context) (string, error) {
	if err := c.st.Store(ctx, c.a, []byte("1")); err != nil {
		return "", err
	}
	return "", c.st.Store(ctx, c.b, []byte("1"))
}

func (c *checker) load(ctx context.Context) (string, error) { return "", c.expect(ctx, c.a, "1") }

// expect returns an error unless the record at a key has one of some values.
func (c *checker) expect(ctx context.Context, key string, values ...string) error {
	got, err := c.st.Load(ctx, key)
	if err == nil && !slices.Contains(values, string(got)) {
		return fmt.Errorf("what was loaded is not what was stored: it has %d bytes", len(got))
	}
	return err
}

func (c *checker) overwrite(ctx context.Context) (string, error) {
	if err := c.st.Store(ctx, c.a, []byte("22")); err != nil {
		return "", err
	}
	return "", c.expect(ctx, c.a, "22")
}

// writeTwice lets two write at once: one of them is the last.
func (c *checker) writeTwice(ctx context.Context) (string, error) {
	one, other := bytes.Repeat([]byte("1"), 8<<10), bytes.Repeat([]byte("2"), 16<<10)
	var wg sync.WaitGroup
	var failed [2]error
	for i, value := range [][]byte{one, other} {
		wg.Go(func() { failed[i] = c.st.Store(ctx, c.b, value) })
	}
	wg.Wait()
	if err := errors.Join(failed[:]...); err != nil {
		return "", err
	}
	return "", c.expect(ctx, c.b, string(one), string(other))
}

func (c *checker) list(ctx context.Context) (string, error) {
	l := NewLister(c.st, c.a)
	keys, err := l.keys(ctx, CheckFolder)
	way := l.way.Load()
	switch {
	case err != nil:
		return "", err
	case way == nil:
		return "", fmt.Errorf("a record that is there is not listed under %s, with or without a slash, recursively or not", CheckFolder)
	case !slices.Contains(keys, c.b):
		return "", fmt.Errorf("of two records one is listed under %s", CheckFolder)
	}
	c.way = way
	return "asked " + way.String(), nil
}

// listMissing lists a folder that is not there, as that of the drain records is until something is drained.
func (c *checker) listMissing(ctx context.Context) (string, error) {
	if c.way == nil {
		return "not tried, for what is there is not listed", nil
	}
	_, err := c.way.list(ctx, c.st, CheckFolder+RandomName()+"/")
	return "", err
}

func (c *checker) loadMissing(ctx context.Context) (string, error) {
	switch _, err := c.st.Load(ctx, checkKey()); {
	case err == nil:
		return "", errors.New("there is a record that nobody has stored")
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the error is not fs.ErrNotExist, as it must be for what is not there: %w", err)
	}
	c.saysMissing = true
	return "", nil
}

// lock takes a lock and gives it back. Its context does not end: some storages wait for ever then, see keeper.lock.
func (c *checker) lock(ctx context.Context) (string, error) {
	before, err := c.st.Load(ctx, c.b)
	if err != nil {
		return "", err
	}
	endless := context.WithoutCancel(ctx)
	if err := c.st.Lock(endless, c.lockName()); err != nil {
		return "", err
	}
	if err := c.st.Unlock(endless, c.lockName()); err != nil {
		return "", err
	}
	if err := c.expect(ctx, c.b, string(before)); err != nil {
		return "", fmt.Errorf("the lock has changed the record beside it: %w", err)
	}
	if _, err := c.st.Load(ctx, c.lockName()); c.saysMissing && !errors.Is(err, fs.ErrNotExist) {
		return "a lock is kept as the record of its name; no lock of this module has the name of a record", nil
	}
	return "", nil
}

func (c *checker) delete(ctx context.Context) (string, error) {
	if err := c.st.Delete(ctx, c.a); err != nil {
		return "", err
	}
	if _, err := c.st.Load(ctx, c.a); err == nil {
		return "", errors.New("what was deleted can still be loaded")
	}
	return "", nil
}

// cleanUp deletes what is left of the records and of the lock.
func (c *checker) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), CallTimeout)
	defer cancel()
	done := make(chan struct{})
	go func() { // not every storage heeds a context
		defer close(done)
		for _, key := range []string{c.a, c.b, c.lockName()} {
			_ = Delete(ctx, c.st, key)
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
