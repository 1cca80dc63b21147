// This file tests that all Caddys with a common storage sign with the key in it, whatever becomes of that key, of the
// storage and of them.

package caddybokeh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// memory is a storage for keys, with the habits of those in use.
type memory struct {
	store.Storage // what no key needs

	lockIsRecord bool // a lock is the record of its name, and giving it back empties that
	lockRefuses  bool // Lock fails while somebody has the lock, in place of waiting
	lockFails    bool // Lock always fails
	lockHangs    bool // Lock waits for long: who had it has died
	lockIsDeaf   bool // Lock does not come back before that, whatever becomes of its context, and never if that ends

	turn  chan struct{} // holds one while the lock is taken
	spins atomic.Bool   // a Lock tries again and again without a pause

	mu      sync.Mutex // guards all below
	records map[string][]byte
	fails   error
	loads   int
}

func newMemory() *memory {
	return &memory{turn: make(chan struct{}, 1), records: make(map[string][]byte)}
}

var errLock = errors.New("somebody has the lock")

func (m *memory) Lock(ctx context.Context, name string) error {
	if m.lockFails {
		return errLock
	}
	if m.lockHangs || m.lockIsDeaf {
		deaf := ctx.Done()
		if m.lockIsDeaf {
			deaf = nil
		}
		select {
		case <-deaf:
			return ctx.Err()
		case <-time.After(20 * time.Second):
		}
		if ctx.Err() != nil {
			m.spins.Store(true)
		}
		if m.lockHangs {
			return errLock
		}
	}
	select {
	case m.turn <- struct{}{}:
	default:
		if m.lockRefuses {
			return errLock
		}
		select {
		case m.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if m.lockIsRecord {
		m.put(name, nil)
	}
	return nil
}

func (m *memory) Unlock(_ context.Context, name string) error {
	if m.lockIsRecord {
		m.put(name, nil)
	}
	<-m.turn
	return nil
}

func (m *memory) Store(ctx context.Context, key string, value []byte) error {
	rest(ctx, 10*time.Millisecond) // so that others come between
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails == nil {
		m.records[key] = value
	}
	return m.fails
}

func (m *memory) Load(ctx context.Context, key string) ([]byte, error) {
	rest(ctx, 10*time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	value, ok := m.records[key]
	switch {
	case m.fails != nil:
		return nil, m.fails
	case !ok:
		return nil, fs.ErrNotExist
	}
	return value, nil
}

func (m *memory) put(key string, value []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records[key] = value
}

func (m *memory) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.records)
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = err
}

// key returns what is stored as the key.
func (m *memory) key() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.records[storedKey])
}

func (m *memory) countLoads() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loads
}

// keyDoor is a storage of its own for each config, as some modules make it.
type keyDoor struct{ *memory }

// keyNode is the part of a Caddy that has to do with keys.
type keyNode struct {
	*keeper
	keys   *heldKeys
	unload context.CancelFunc
	logs   *observer.ObservedLogs
}

// startKeyNode begins a process whose config has the storage.
func startKeyNode(t *testing.T, m *memory) *keyNode {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	n := &keyNode{keys: newHeldKeys(), logs: logs, unload: func() {}}
	n.keys.logger = func() *zap.Logger { return zap.New(core) }
	n.load(t, m)
	return n
}

// load loads a config, and unloads the one before.
func (n *keyNode) load(t *testing.T, m *memory) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n.keeper = n.keys.keeper(ctx, &keyDoor{m}, keyGrace)
	n.unload()
	n.unload = cancel
}

// stop ends the process.
func (n *keyNode) stop() { n.unload() }

func (n *keyNode) signs() string { return string(n.secret()) }

func (n *keyNode) verifies(stamp string) bool {
	_, _, ok := n.ring.Load().Verify(stamp)
	return ok
}

func (n *keyNode) stamp() string { return (*n.ring.Load())[0].Stamp(stamp.Tag{1}) }

// wantOneKey fails unless all sign with what is stored, and that is want, if that is given.
func wantOneKey(t *testing.T, m *memory, want, when string, nodes ...*keyNode) {
	t.Helper()
	for i, n := range nodes {
		if got := n.signs(); got != m.key() || want != "" && got != want {
			t.Errorf("%s: node %d signs with %.4s…, %q is stored, want %.4s…", when, i, got, m.key(), want)
		}
	}
}

// keyHabits are storages that all have to be good enough.
var keyHabits = map[string]func(*memory){
	"plain":                    func(*memory) {},
	"a lock is a record":       func(m *memory) { m.lockIsRecord = true },
	"a lock that is refused":   func(m *memory) { m.lockRefuses = true },
	"no lock is ever given":    func(m *memory) { m.lockFails = true },
	"the lock of a dead":       func(m *memory) { m.lockHangs = true },
	"a lock that comes late":   func(m *memory) { m.lockIsDeaf = true },
	"an empty key of a lock":   func(m *memory) { m.lockIsRecord = true; m.put(storedKey, nil) },
	"a key of nothing but NUL": func(m *memory) { m.put(storedKey, make([]byte, 44)) },
}

func TestNodesAgreeOnTheStoredKey(t *testing.T) {
	for name, habit := range keyHabits {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				habit(m)
				nodes := make([]*keyNode, 5)
				for i := range nodes {
					nodes[i] = startKeyNode(t, m)
				}
				for _, n := range nodes {
					defer n.stop()
					<-n.answered
				}
				if len(m.key()) != 44 {
					t.Errorf("the stored key is %q", m.key())
				}
				wantOneKey(t, m, "", "before the first visitor", nodes...)
				before := m.key()
				nodes[0].load(t, m)
				late := startKeyNode(t, m)
				defer late.stop()
				time.Sleep(time.Minute)
				wantOneKey(t, m, before, "after a minute", append(nodes, late)...)
				if m.spins.Load() {
					t.Error("a lock is waited for whose context has ended")
				}
				if len(m.turn) > 0 {
					t.Error("a lock is not given back")
				}
				for i, n := range nodes {
					if n.logs.FilterLevelExact(zapcore.InfoLevel).Len() != n.logs.Len() {
						t.Errorf("node %d logs %v", i, n.logs.All())
					}
				}
			})
		})
	}
}

// A key that the storage has lost is written back by those who hold it, before anybody can put another one in its place.
func TestStoredKeyIsLost(t *testing.T) {
	for name, lose := range map[string]func(m *memory, key string){
		"missing":   func(m *memory, _ string) { m.lose() },
		"empty":     func(m *memory, _ string) { m.put(storedKey, nil) },
		"a space":   func(m *memory, _ string) { m.put(storedKey, []byte("\n")) },
		"zeros":     func(m *memory, key string) { m.put(storedKey, make([]byte, len(key))) },
		"cut short": func(m *memory, key string) { m.put(storedKey, []byte(key[:20])) },
	} {
		for habitName, habit := range keyHabits {
			t.Run(name+", "+habitName, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					defer time.Sleep(time.Minute) // a lock may come late
					m := newMemory()
					habit(m)
					a, b := startKeyNode(t, m), startKeyNode(t, m)
					defer a.stop()
					defer func() { b.stop() }()
					time.Sleep(time.Minute)
					key, before := m.key(), a.stamp()
					for round, then := range []func(){
						func() {},
						func() { b.load(t, m) },
						func() { b.stop(); b = startKeyNode(t, m) },
						func() { time.Sleep(keyInterval / 2); b.stop(); b = startKeyNode(t, m) },
					} {
						lose(m, key)
						then()
						time.Sleep(5 * time.Second)
						when := fmt.Sprint("5 s after loss ", round)
						wantOneKey(t, m, key, when, a, b)
						if !a.verifies(before) || !b.verifies(before) {
							t.Error(when, " what was stamped before does not count")
						}
						time.Sleep(time.Minute)
					}
					if got := a.logs.FilterMessageSnippet("has lost the stored key").Len() + b.logs.FilterMessageSnippet("has lost the stored key").Len(); got == 0 {
						t.Error("nobody says that the key was lost")
					}
					a.stop()
					b.stop()
					m.lose()
					a, b = startKeyNode(t, m), startKeyNode(t, m)
					time.Sleep(5 * time.Second)
					wantOneKey(t, m, "", "when nobody has held it", a, b)
				})
			})
		}
	}
}

// What an operator puts there is a key, whatever it looks like, and all follow; what was stamped before still counts.
func TestKeyOfAnOperator(t *testing.T) {
	for name, key := range map[string]string{
		"text":         "open sesame",
		"a line":       "a-key-of-bokeh-secret\n",
		"one byte":     "!", // with which none of ours begins: that would be one that was not written to its end
		"raw":          "\x00\x01\xff" + strings.Repeat("\x00", 29),
		"longer":       strings.Repeat("0123456789", 100),
		"as ours":      string(randomSecret()),
		"not as ours,": string(randomSecret()[:30]),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				nodes := []*keyNode{startKeyNode(t, m), startKeyNode(t, m)}
				time.Sleep(time.Minute)
				before := nodes[0].stamp()
				m.put(storedKey, []byte(key))
				time.Sleep(2 * keyInterval)
				nodes = append(nodes, startKeyNode(t, m))
				time.Sleep(time.Minute)
				wantOneKey(t, m, key, "a minute later", nodes...)
				if !nodes[0].verifies(before) || !nodes[1].verifies(before) {
					t.Error("what was stamped before does not count any more")
				}
				if got := nodes[0].logs.FilterMessageSnippet("is another one").Len(); got != 1 {
					t.Errorf("it is logged %d times that the key was replaced", got)
				}
				for _, n := range nodes {
					n.stop()
				}
			})
		})
	}
}

// Where the storage fails when a process starts, that signs with a key of its own and says so. When it answers again all
// sign with what is stored; if nothing is, that is the key by which sessions live already.
func TestStorageFails(t *testing.T) {
	for name, stored := range map[string]string{"with a key": "the stored key", "with none": ""} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				if stored != "" {
					m.put(storedKey, []byte(stored))
				}
				m.fail(fs.ErrPermission)
				n := startKeyNode(t, m)
				<-n.answered
				own, before := n.signs(), n.stamp()
				if got := n.logs.FilterLevelExact(zapcore.ErrorLevel).Len(); got != 1 {
					t.Errorf("%d errors are logged, want 1", got)
				}
				time.Sleep(time.Hour)
				if n.logs.Len() != 1 || m.key() != stored {
					t.Errorf("after an hour %d lines are logged, want 1, and %q is stored", n.logs.Len(), m.key())
				}
				m.fail(nil)
				time.Sleep(keyInterval + keyGrace + time.Second)
				if want := cmp.Or(stored, own); n.signs() != want || m.key() != want {
					t.Errorf("it signs with %q, and %q is stored, want %q", n.signs(), m.key(), want)
				}
				if !n.verifies(before) {
					t.Error("what was stamped before does not count any more")
				}
				if got := n.logs.FilterMessageSnippet("answers again").Len(); got != 1 {
					t.Errorf("it is said %d times that the storage answers again", got)
				}
				for range 120 { // it comes and goes
					m.fail(errors.New("no route"))
					time.Sleep(3 * keyInterval)
					m.fail(nil)
					time.Sleep(3 * keyInterval)
				}
				if got := n.logs.FilterLevelExact(zapcore.WarnLevel).Len(); got < 6 || got > 13 {
					t.Errorf("in 12 minutes it is said %d times that it fails", got)
				}
				n.stop()
			})
		})
	}
}

// hung is a storage that does not answer.
type hung struct {
	store.Storage
	release chan struct{}
}

func (h *hung) Load(context.Context, string) ([]byte, error) {
	<-h.release
	return nil, errors.New("too late")
}

// However many policies a config has, it waits once for a storage that hangs, and looks there once in a while.
func TestPoliciesShareAKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		keys := newHeldKeys()
		keys.logger = func() *zap.Logger { return zap.New(core) }
		one, endOne := context.WithCancel(t.Context())
		two, endTwo := context.WithCancel(t.Context())

		st := &hung{release: make(chan struct{})}
		began := time.Now()
		for range 100 {
			<-keys.keeper(one, st, keyGrace).answered
		}
		if took := time.Since(began); took != storageTimeout {
			t.Errorf("100 policies wait %v", took)
		}
		if logs.Len() != 1 {
			t.Errorf("logged: %v", logs.All())
		}

		m := newMemory()
		for range 100 {
			keys.keeper(one, m, keyGrace)
			keys.keeper(two, m, keyGrace)
		}
		time.Sleep(time.Minute)
		if loads := m.countLoads(); loads > 70 {
			t.Errorf("%d loads in a minute", loads)
		}
		endOne()
		close(st.release)
		m.lose()
		time.Sleep(time.Minute)
		if m.key() == "" {
			t.Error("it ends before the last config")
		}
		<-keys.keeper(one, newMemory(), keyGrace).answered // of a config that has ended
		endTwo()
		time.Sleep(time.Second)
		loads := m.countLoads()
		time.Sleep(time.Minute)
		keys.mu.Lock()
		defer keys.mu.Unlock()
		if m.countLoads() != loads || len(keys.keepers) != 0 {
			t.Error("it goes on after the last config")
		}
	})
}

// A reload to another storage takes the key along, and a config with the one before, which may be loaded still, keeps to its own.
func TestKeyOfTheNextStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, empty, other := newMemory(), newMemory(), newMemory()
		other.put(storedKey, []byte("another fleet's"))
		n := startKeyNode(t, one)
		time.Sleep(time.Minute)
		key := one.key()
		before := n.keeper
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		next := n.keys.keeper(ctx, empty, keyGrace)
		<-next.answered
		if empty.key() != key {
			t.Error("the key does not go along")
		}
		third := n.keys.keeper(ctx, other, keyGrace)
		time.Sleep(time.Minute)
		if got := string(third.secret()); got != "another fleet's" || other.key() != got {
			t.Errorf("there it signs with %q", got)
		}
		one.lose()
		time.Sleep(time.Minute)
		if one.key() != key || string(before.secret()) != key {
			t.Error("the first storage has another key now")
		}
		n.stop()
	})
}

// However processes start, end and reload, and whatever the storage loses meanwhile: all sign with what is stored, and as long as
// somebody is there who has held the key, no other one takes its place.
func TestStoredKeyAnyOrder(t *testing.T) {
	names := slices.Sorted(maps.Keys(keyHabits))
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			m := newMemory()
			keyHabits[names[seed%uint64(len(names))]](m)
			nodes := []*keyNode{startKeyNode(t, m), startKeyNode(t, m)}
			time.Sleep(time.Minute)
			key := m.key()
			var lost time.Time
			for range 100 { // the first one, which holds it, stays
				do := rnd.IntN(6)
				if do < 2 && time.Since(lost) < 10*time.Second {
					continue // there is no help against losses that come faster than they can be made good
				}
				switch i := 1 + rnd.IntN(max(len(nodes)-1, 1)); do {
				case 0:
					lost = time.Now()
					m.lose()
				case 1:
					lost = time.Now()
					m.put(storedKey, []byte(key[:rnd.IntN(len(key))]))
				case 2:
					if len(nodes) < 6 {
						nodes = append(nodes, startKeyNode(t, m))
					}
				case 3:
					if i < len(nodes) {
						nodes[i].stop()
						nodes = slices.Delete(nodes, i, i+1)
					}
				case 4:
					nodes[rnd.IntN(len(nodes))].load(t, m)
				case 5:
					time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
				}
			}
			time.Sleep(10 * time.Second)
			wantOneKey(t, m, key, fmt.Sprint("seed ", seed), nodes...)
			for _, n := range nodes {
				n.stop()
			}
			time.Sleep(time.Minute) // a lock may come late
		})
	}
}

// A stored key is no gigabyte.
func TestStoredKeyIsTooLarge(t *testing.T) {
	v := clustertest.NewVault()
	v.Values[storedKey] = make([]byte, maxKey+1)
	d := &keyCounter{Door: v.Door()}
	k := newKeeper(newHeldKeys(), d)
	for range 5 {
		if _, err := k.load(t.Context()); err == nil || errors.Is(err, errNoKey) || !strings.Contains(err.Error(), "delete it") {
			t.Error(err)
		}
	}
	if d.loads != 1 {
		t.Errorf("it is loaded %d times at once", d.loads)
	}
}

// keyCounter counts how often a value is loaded.
type keyCounter struct {
	*clustertest.Door
	loads int
}

func (d *keyCounter) Load(ctx context.Context, key string) ([]byte, error) {
	d.loads++
	return d.Door.Load(ctx, key)
}

// A file that seems to be larger than the memory, and takes no room on the disk, is not read for a key.
func TestStoredKeyIsASparseFile(t *testing.T) {
	st := &certmagic.FileStorage{Path: t.TempDir()}
	if err := st.Store(t.Context(), storedKey, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(st.Filename(storedKey), 128<<20); err != nil {
		t.Skip(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 2 {
		k := newKeeper(newHeldKeys(), st)
		if _, err := k.load(t.Context()); err == nil || !strings.Contains(err.Error(), "134217728 bytes") {
			t.Error(err)
		}
	}
	runtime.ReadMemStats(&after)
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 64 {
		t.Errorf("%d MiB are read", mib)
	}
}
