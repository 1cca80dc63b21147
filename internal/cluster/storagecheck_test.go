// This file tests that the check of a storage finds what it cannot do, and leaves nothing there.

package cluster

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// lockable is a storage with locks, of which each thing can be another's.
type lockable struct {
	store.Storage
	lock, unlock func(name string) error
	load         func(key string) ([]byte, error)
	delete       func(key string) error
}

func (l *lockable) Lock(_ context.Context, name string) error { return clustertest.Call(l.lock, name) }

func (l *lockable) Unlock(_ context.Context, name string) error {
	return clustertest.Call(l.unlock, name)
}

func (l *lockable) Load(ctx context.Context, key string) ([]byte, error) {
	if l.load != nil {
		return l.load(key)
	}
	return l.Storage.Load(ctx, key)
}

func (l *lockable) Delete(ctx context.Context, key string) error {
	if l.delete != nil {
		return l.delete(key)
	}
	return l.Storage.Delete(ctx, key)
}

// failedSteps returns the names of the steps that failed.
func failedSteps(c *api.StorageCheck) string {
	var names []string
	for _, s := range c.Steps {
		if !s.OK {
			names = append(names, s.Name)
		}
	}
	return strings.Join(names, ", ")
}

func TestCheckFinds(t *testing.T) {
	refuses := errors.New("access denied")
	for name, is := range map[string]struct {
		change func(*lockable, *clustertest.Door)
		failed string
	}{
		"nothing where all is well": {func(*lockable, *clustertest.Door) {}, ""},
		"another error for what is not there": {func(l *lockable, d *clustertest.Door) {
			l.load = func(key string) ([]byte, error) {
				value, err := d.Load(t.Context(), key)
				if err != nil {
					err = errors.New("404")
				}
				return value, err
			}
		}, "load what is not there"},
		"something where nothing is": {func(l *lockable, d *clustertest.Door) {
			l.load = func(key string) ([]byte, error) { return d.Value(key), nil }
		}, "load what is not there, delete"},
		"what is old": {func(l *lockable, d *clustertest.Door) {
			first := make(map[string][]byte)
			l.load = func(key string) ([]byte, error) {
				if first[key] == nil {
					first[key] = d.Value(key)
				}
				if first[key] == nil {
					return nil, fs.ErrNotExist
				}
				return first[key], nil
			}
		}, "overwrite, delete"},
		"that nothing is listed": {func(l *lockable, d *clustertest.Door) {
			l.Storage = &lists{d, func([]string, string, bool) ([]string, error) { return nil, nil }}
		}, "list"},
		"that half is listed": {func(l *lockable, d *clustertest.Door) {
			l.Storage = &lists{d, func(keys []string, prefix string, recursive bool) ([]string, error) {
				found, err := byPrefix(keys, prefix, recursive)
				return found[:min(len(found), 1)], err
			}}
		}, "list"},
		"that a listing is refused": {func(l *lockable, d *clustertest.Door) {
			l.Storage = &lists{d, func([]string, string, bool) ([]string, error) { return nil, refuses }}
		}, "list"},
		"that an empty folder is refused": {func(l *lockable, d *clustertest.Door) {
			l.Storage = &lists{d, func(keys []string, prefix string, recursive bool) ([]string, error) {
				found, err := byPrefix(keys, prefix+"/", recursive)
				if len(found) == 0 {
					err = errors.New("no such folder")
				}
				return found, err
			}}
		}, "list what is not there"},
		"that a lock is refused":  {func(l *lockable, _ *clustertest.Door) { l.lock = func(string) error { return refuses } }, "lock"},
		"that nothing is deleted": {func(l *lockable, _ *clustertest.Door) { l.delete = func(string) error { return nil } }, "delete"},
		"that nothing is stored":  {func(_ *lockable, d *clustertest.Door) { d.Fail(refuses) }, "store"}, // the rest would be the same
	} {
		t.Run(name, func(t *testing.T) {
			d := clustertest.NewVault().Door()
			l := &lockable{Storage: d}
			is.change(l, d)
			c := store.Check(t.Context(), l, "")
			if got := failedSteps(c); got != is.failed || c.OK != (got == "") {
				t.Errorf("it finds %q, want %q: %+v", got, is.failed, c)
			}
			for _, s := range c.Steps {
				if !s.OK && (s.Error == "" || s.Means == "") {
					t.Errorf("nobody is told what %q means: %+v", s.Name, s)
				}
			}
			if l.delete == nil && len(d.Values) > 0 {
				t.Errorf("it leaves %v", d.Values)
			}
		})
	}
}

// A storage that is of use passes, however it lists.
func TestCheckOfHabits(t *testing.T) {
	for name, habit := range listingHabits {
		if c := store.Check(t.Context(), &lockable{Storage: &lists{clustertest.NewVault().Door(), habit}}, ""); !c.OK {
			t.Errorf("%s: %+v", name, c.Steps)
		}
	}
}

func TestCheckOfFiles(t *testing.T) {
	st := &certmagic.FileStorage{Path: t.TempDir()}
	if c := store.Check(t.Context(), st, ""); !c.OK || c.Storage != "*certmagic.FileStorage" {
		t.Errorf("%+v", c)
	}
	if left, err := st.List(t.Context(), strings.TrimSuffix(store.CheckFolder, "/"), true); len(left) > 0 {
		t.Error("it leaves ", left, err)
	}
}

// A lock that lies at the key of its name is said, and does no harm: no lock of ours has the name of a record. Consul refuses
// such a lock where a record is.
func TestCheckOfLocksThatAreRecords(t *testing.T) {
	d := clustertest.NewVault().Door()
	c := store.Check(t.Context(), &lockable{Storage: d, lock: func(name string) error {
		if d.Holds(name) {
			return errors.New("existing key does not match lock use")
		}
		return d.Store(t.Context(), name, []byte{})
	}, unlock: func(name string) error { return d.Store(t.Context(), name, []byte{}) }}, "")
	if !c.OK || !strings.Contains(c.Steps[len(c.Steps)-2].Note, "a lock is kept as the record of its name") {
		t.Errorf("%+v", c)
	}
	if len(d.Values) > 0 {
		t.Errorf("it leaves %v", d.Values)
	}
}

// A storage that hangs does not hold up who asks.
func TestCheckOfAStorageThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := clustertest.NewVault().Door()
		defer d.Hang()()
		began := time.Now()
		c := store.Check(t.Context(), &lockable{Storage: d}, "")
		if took := time.Since(began); failedSteps(c) != "store" || !strings.Contains(c.Steps[0].Error, "has not answered") || took > api.AnswerTimeout {
			t.Errorf("after %v: %+v", took, c)
		}
	})
}

// What comes too late leaves nothing behind, neither a record nor a lock.
func TestCheckOfWhatComesLate(t *testing.T) {
	for _, late := range []string{"store", "lock"} {
		synctest.Test(t, func(t *testing.T) {
			d := &clustertest.Trick{Door: clustertest.NewVault().Door()}
			locked := 0
			l := &lockable{Storage: d, unlock: func(string) error { locked--; return nil }}
			l.lock = func(string) error {
				if late == "lock" {
					time.Sleep(time.Minute)
				}
				locked++
				return nil
			}
			if late == "store" {
				d.OnStore = func() error {
					time.Sleep(time.Minute)
					return nil
				}
			}
			if c := store.Check(t.Context(), l, ""); failedSteps(c) != late {
				t.Errorf("of what is late it finds %q: %+v", failedSteps(c), c)
			}
			pass(5 * time.Minute)
			if len(d.Values) > 0 || locked != 0 {
				t.Errorf("a late %s leaves %v and %d locks", late, d.Values, locked)
			}
		})
	}
}
