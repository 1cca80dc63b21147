// This file tests that nodes find each other in storages with every habit of listing that is out there, and that
// nothing is called drained where they do not.

package cluster

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// lists is a door that lists as another storage does, given all keys there are.
type lists struct {
	*clustertest.Door
	habit func(keys []string, prefix string, recursive bool) ([]string, error)
}

func (d *lists) List(_ context.Context, prefix string, recursive bool) ([]string, error) {
	if err := d.Open(); err != nil {
		return nil, err
	}
	d.Vault.Lock()
	defer d.Vault.Unlock()
	keys := append(slices.Collect(maps.Keys(d.Values)), "caddy-bokeh/secret_key", "certificates/acme/example.com/example.com.json")
	slices.Sort(keys)
	return d.habit(keys, prefix, recursive)
}

// byPrefix returns what begins with a prefix, up to the next slash unless it is recursive: as S3 does with a delimiter.
func byPrefix(keys []string, prefix string, recursive bool) (found []string, _ error) {
	for _, key := range keys {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		if i := strings.Index(rest, "/"); i >= 0 && !recursive {
			key = prefix + rest[:i+1]
		}
		found = append(found, key)
	}
	return slices.Compact(found), nil
}

// listingHabits are those of storage modules in use, and some that are close to them.
var listingHabits = map[string]func(keys []string, prefix string, recursive bool) ([]string, error){
	"file system": func(keys []string, prefix string, _ bool) ([]string, error) {
		found, _ := byPrefix(keys, strings.TrimSuffix(prefix, "/")+"/", true)
		if found == nil {
			return nil, fs.ErrNotExist
		}
		return append(found, prefix+"/3991498540"), nil
	},
	"object store": byPrefix,
	"object store that shows no folders": func(keys []string, prefix string, recursive bool) ([]string, error) {
		found, _ := byPrefix(keys, prefix, recursive)
		return slices.DeleteFunc(found, func(key string) bool { return strings.HasSuffix(key, "/") }), nil
	},
	"joins prefixes, so that a slash at the end is lost": func(keys []string, prefix string, recursive bool) ([]string, error) {
		found, _ := byPrefix(keys, path.Join(prefix), recursive)
		for i := range found {
			found[i] = "/" + found[i]
		}
		return append([]string{""}, found...), nil
	},
	"adds a slash, so that one too many finds nothing": func(keys []string, prefix string, _ bool) ([]string, error) {
		return byPrefix(keys, prefix+"/", true)
	},
	"full names, which cannot be loaded": func(keys []string, prefix string, _ bool) ([]string, error) {
		found, _ := byPrefix(keys, prefix, true)
		for i := range found {
			found[i] = "acme/caddy/" + found[i]
		}
		return found, nil
	},
	"everything, whatever the prefix": func(keys []string, _ string, _ bool) ([]string, error) { return keys, nil },
	"another fleet's folder as well": func(keys []string, prefix string, recursive bool) ([]string, error) {
		found, _ := byPrefix(keys, prefix+"/", recursive)
		return append(found, "other/"+prefix+"/0123456789abcdef.json"), nil
	},
	"names relative to the folder": func(keys []string, prefix string, _ bool) ([]string, error) {
		prefix = strings.TrimSuffix(prefix, "/") + "/"
		found, _ := byPrefix(keys, prefix, true)
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], prefix)
		}
		return found, nil
	},
	"names relative to the folder above": func(keys []string, prefix string, recursive bool) ([]string, error) {
		found, _ := byPrefix(keys, prefix, recursive)
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], store.Folder)
		}
		return found, nil
	},
	"recursive listings alone": func(keys []string, prefix string, recursive bool) ([]string, error) {
		if !recursive {
			return nil, errors.New("not implemented")
		}
		return byPrefix(keys, prefix, true)
	},
	"refuses a slash at the end": func(keys []string, prefix string, _ bool) ([]string, error) {
		if strings.HasSuffix(prefix, "/") {
			return nil, errors.New("invalid key")
		}
		return byPrefix(keys, prefix, true)
	},
}

// startListed starts a node whose storage lists so.
func startListed(t *testing.T, v *clustertest.Vault, habit func([]string, string, bool) ([]string, error)) *caddyNode {
	t.Helper()
	d := &lists{v.Door(), habit}
	pool := testPool(3)
	c := makeNode(t, d, newTestPolicy(pool), pool)
	c.door = d.Door
	c.s.join(c.Cluster, d)
	return c
}

func TestHabitsOfListing(t *testing.T) {
	for name, habit := range listingHabits {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				a, b := startListed(t, v, habit), startListed(t, v, habit)
				pass(time.Minute)
				if len(a.Nodes()) != 2 || len(b.Nodes()) != 2 {
					t.Errorf("nodes that they see: %d and %d, want 2", len(a.Nodes()), len(b.Nodes()))
				}
				_, hangUp := b.socket(b.visitAt(u0))
				a.drain(u0)
				pass(6 * time.Second)
				b.wantNoVisit(u0, "6 s after another node was told")
				pass(time.Minute)
				a.wantWait(u0, b.name+" "+b.conf.Host+" it has 1 session", "with a session on the other node")
				c := startListed(t, v, habit)
				c.wantNoVisit(u0, "the first visitor of a node that has just started")
				pass(time.Minute)
				hangUp()
				pass(time.Minute)
				a.wantDrained(u0, true, "when the session has ended")
				c.wantDrained(u0, true, "on the node that has started")
				for _, n := range []*caddyNode{a, b, c} {
					if logged := n.logs.FilterMessageSnippet("storage").All(); len(logged) > 0 {
						t.Error("logged: ", logged)
					}
				}
			})
		})
	}
}

// Storages that show a node nothing of what others have written. Marks hold all the same, for their keys are known.
func TestListsNothing(t *testing.T) {
	for name, habit := range map[string]func([]string, string, bool) ([]string, error){
		"nothing":           func([]string, string, bool) ([]string, error) { return nil, nil },
		"no such file":      func([]string, string, bool) ([]string, error) { return nil, fs.ErrNotExist },
		"everything but us": func([]string, string, bool) ([]string, error) { return []string{"certificates/a.json"}, nil },
		"the folder itself": func(_ []string, prefix string, _ bool) ([]string, error) { return []string{prefix + "/"}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				a, b := startListed(t, v, habit), startListed(t, v, habit)
				pass(time.Minute)
				_, hangUp := b.socket(b.visitAt(u0))
				a.drain(u0)
				pass(6 * time.Second)
				b.wantNoVisit(u0, "6 s after another node was told")
				for range 6 {
					pass(10 * time.Second)
					a.wantWait(u0, "storage-check", "with a session on the other node")
					b.wantWait(u0, "storage-check", "where the session is")
				}
				c := startListed(t, v, habit)
				c.wantNoVisit(u0, "the first visitor of a node that has just started")
				hangUp()
				pass(time.Minute)
				a.wantWait(u0, "storage-check", "for nobody knows that it is empty")
				if got := a.logs.FilterMessageSnippet("the storage fails").Len(); got != 1 {
					t.Errorf("it is logged %d times, want once", got)
				}
				if st := a.Self(); !strings.Contains(st.Storage, "storage-check") {
					t.Errorf("the status says %q of the storage", st.Storage)
				}
				if a.storageErrors["list"].Load() <= 3 { // what the alert in examples/ asks for
					t.Error("no metric tells of it")
				}
				b.tell(u0, record.Request{State: api.StateReady})
				pass(6 * time.Second)
				a.visitAt(u0)
			})
		})
	}
}

// A listing that was right, and then shows nothing without an error: a client that swallows its errors does so while the
// storage cannot be reached, and one that was flushed.
func TestListsNothingAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		var blind atomic.Bool
		habit := func(keys []string, prefix string, recursive bool) ([]string, error) {
			if blind.Load() {
				return nil, nil
			}
			return byPrefix(keys, prefix, recursive)
		}
		a, b := startListed(t, v, habit), startListed(t, v, habit)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		a.wantDrained(u0, true, "with an empty server")
		blind.Store(true)
		pass(10 * time.Second)
		a.wantWait(u0, "does not find its own report", "10 s after the storage has shown something")
		c := startListed(t, v, habit)
		pass(time.Minute)
		c.wantWait(u0, "does not find its own report", "on a node that has started since")
		if got := a.logs.FilterMessageSnippet("the storage fails").Len(); got != 1 {
			t.Errorf("it is logged %d times, want once", got)
		}
		pass(20 * time.Minute)
		blind.Store(false)
		pass(time.Minute)
		if got := a.logs.FilterMessageSnippet("well again").Len(); got != 1 {
			t.Errorf("that it is over is logged %d times, want once", got)
		}
		a.wantDrained(u0, true, "when the storage lists again")
		b.wantNoVisit(u0, "after all that")
		c.wantNoVisit(u0, "on the node that has started meanwhile")
	})
}

// What was found in the storage of the config before says nothing of that of the next one.
func TestListsNothingSinceAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		nothing := func([]string, string, bool) ([]string, error) { return nil, nil }
		b := startListed(t, two, nothing)
		_, hangUp := b.socket(b.visitAt(u0))
		defer hangUp()
		a := startNode(t, one)
		pass(time.Minute)
		for range 20 { // as the exchanges fall
			a.load(&lists{two.Door(), nothing}, a.pool)()
			a.s.drain(u0)
			for range 40 {
				pass(250 * time.Millisecond)
				if st, err := find(a.Cluster, u0); err != nil || st.State == api.StateDrained {
					t.Fatalf("with a session on a node of the new storage: %+v %v", st, err)
				}
			}
			a.load(one.Door(), a.pool)()
			pass(time.Minute + 300*time.Millisecond)
		}
	})
}

// Drains go along to a storage that lists nothing, and are written again where it loses them.
func TestDrainsGoAlongUnlisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a := startNode(t, one)
		a.drain(u0)
		pass(time.Minute)
		nothing := func([]string, string, bool) ([]string, error) { return nil, nil }
		a.load(&lists{two.Door(), nothing}, a.pool)()
		pass(10 * time.Second)
		if !two.Holds(record.DrainKey(u0)) {
			t.Error("the drain is not in the next storage")
		}
		two.Lock()
		clear(two.Values)
		two.Unlock()
		pass(10 * time.Second)
		if !two.Holds(record.DrainKey(u0)) {
			t.Error("the drain is not written again")
		}
		b := startListed(t, two, nothing)
		b.wantNoVisit(u0, "on a node that has started since")
		a.tell(u0, record.Request{State: api.StateReady})
		pass(10 * time.Second)
		b.visitAt(u0)
	})
}

// hiding is a door that hides its errors where it reads, and seems to be empty.
type hiding struct{ *clustertest.Door }

func (d *hiding) List(context.Context, string, bool) ([]string, error) {
	return []string{""}, nil
}

func (d *hiding) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := d.Door.Load(ctx, key)
	if err != nil {
		err = fs.ErrNotExist
	}
	return value, err
}

// While a storage cannot be reached that hides its errors, nobody is told that a server is ready, or that somebody has
// taken a drain back.
func TestHiddenErrorsAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		startNode(t, v).drain(u0)
		pass(time.Minute)
		d := &hiding{v.Door()}
		d.Fail(errors.New("no route to host"))
		pool := testPool(3)
		a := makeNode(t, d, newTestPolicy(pool), pool)
		a.s.join(a.Cluster, d)
		for range 20 {
			pass(500 * time.Millisecond)
			a.wantState(u0, api.StateUnknown, "while the storage cannot be reached")
		}
		d.Fail(nil)
		pass(3 * time.Second)
		a.wantState(u0, api.StateDraining, "when it can")
		a.wantState("u1:80", api.StateReady, "when it can")
	})
}

// A storage that was flushed has everything again a moment later, and nobody is told of trouble.
func TestStorageIsFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := b.socket(b.visitAt(u0))
		defer hangUp()
		a.drain(u0)
		pass(time.Minute)
		v.Lock()
		clear(v.Values)
		v.Unlock()
		pass(6 * time.Second)
		for _, n := range []*caddyNode{a, b} {
			if !v.Holds(record.NodeKey(n.name)) {
				t.Error("a report is missing")
			}
			n.wantWait(u0, "it has 1 session", "after the storage was flushed")
			if logged := n.logs.FilterMessageSnippet("storage").All(); len(logged) > 0 {
				t.Error("logged: ", logged)
			}
		}
		if !v.Holds(record.DrainKey(u0)) {
			t.Error("the mark is missing")
		}
	})
}

// A storage that shows a node an old report of its own shows it old ones of the others too.
func TestListsWhatIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, old := clustertest.NewVault(), clustertest.NewVault() // a replica that is behind
		a := makeNode(t, nil, newTestPolicy(testPool(3)), testPool(3))
		d := &behind{Door: v.Door(), old: old.Door()}
		a.runs(d)
		a.s.join(a.Cluster, d)
		pass(time.Minute)
		v.Lock()
		old.Values = maps.Clone(v.Values)
		v.Unlock()
		d.on.Store(true)
		b := startNode(t, v)
		pass(time.Minute)
		_, hangUp := b.socket(b.visitAt(u0))
		defer hangUp()
		a.drain(u0)
		pass(time.Minute)
		a.wantWait(u0, "does not find its own report", "with a session at a node that is not to be seen")
	})
}

// behind is a door that reads from another vault when it is on.
type behind struct {
	*clustertest.Door
	old *clustertest.Door
	on  atomic.Bool
}

func (d *behind) reads() *clustertest.Door {
	if d.on.Load() {
		return d.old
	}
	return d.Door
}

func (d *behind) Load(ctx context.Context, key string) ([]byte, error) {
	return d.reads().Load(ctx, key)
}

func (d *behind) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	return d.reads().List(ctx, prefix, recursive)
}

// Two nodes delete the same records. A storage may call it an error to be the second.
func TestDeletedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startTricked(t, &clustertest.Trick{Door: clustertest.NewVault().Door()}, 3)
		if err := store.Delete(t.Context(), deletes{a.door}, "caddy-bokeh/nodes/gone.json"); err != nil {
			t.Error(err)
		}
	})
}

type deletes struct{ *clustertest.Door }

func (deletes) Delete(context.Context, string) error { return fs.ErrNotExist }
