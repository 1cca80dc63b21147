// This file tests that nothing waits for a storage that does not answer, and that what does not end stays little.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// quagmire holds the calls that get into it, for ever as far as a node can see.
type quagmire struct {
	on  atomic.Bool
	in  atomic.Int64
	end chan struct{}
}

func newQuagmire(t *testing.T) *quagmire {
	q := &quagmire{end: make(chan struct{})}
	t.Cleanup(func() {
		close(q.end)
		synctest.Wait()
	})
	return q
}

// cross lets a call through, or not.
func (q *quagmire) cross() error {
	if !q.on.Load() {
		return nil
	}
	q.in.Add(1)
	<-q.end
	return errors.New("it never came to that")
}

// One record that cannot be read to its end, as a FIFO in the place of a file, holds up nothing but itself.
func TestOneRecordHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, q := clustertest.NewVault(), newQuagmire(t)
		q.on.Store(true)
		stuck := record.DrainKey("elsewhere:80")
		b := startNode(t, v)
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnLoad: func(key string) error {
			if key != stuck {
				return nil
			}
			return q.cross()
		}}, 3)
		pass(time.Minute)
		if err := v.Door().Store(t.Context(), stuck, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		b.drain(u0)
		pass(store.CallTimeout + nodeInterval + time.Second)
		a.wantNoVisit(u0, "8 s after another node was told")
		a.wantDrained(u0, false, "while a mark cannot be read")
		began := time.Now()
		if err := a.setDrain(t.Context(), "u1:80", record.Request{State: api.StateDraining}); err != nil || time.Since(began) > 0 {
			t.Errorf("an operator waits %v and hears: %v", time.Since(began), err)
		}
		pass(3 * time.Hour)
		if got := q.in.Load(); got < 2 || got > 16 {
			t.Errorf("in 3 h %d calls are left behind", got)
		}
		if err := v.Door().Delete(t.Context(), stuck); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if got := a.Self().Storage; got != "" {
			t.Errorf("when the record is gone the node tells of its storage: %q", got)
		}
		pass(10 * time.Second)
		a.wantDrained(u0, true, "when the record is gone")
	})
}

// A storage that answers nothing any more leaves little behind, and is found when it is well, though no call of before ever ends.
func TestStorageNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, q := clustertest.NewVault(), newQuagmire(t)
		cross := func(string) error { return q.cross() }
		b := startNode(t, v)
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnList: cross, OnLoad: cross, OnStore: q.cross}, 100)
		pass(time.Minute)
		for _, outage := range []time.Duration{10 * time.Second, 30 * time.Second, 10 * time.Minute, 10 * time.Second} {
			before := q.in.Load()
			q.on.Store(true)
			pass(outage)
			if got := q.in.Load() - before; got == 0 || got > 20 {
				t.Errorf("in %v %d calls are left behind", outage, got)
			}
			q.on.Store(false)
			pass(min(2*outage, store.MaxBackoff) + 3*store.CallTimeout)
			b.drain(u0)
			pass(5 * time.Second)
			a.wantNoVisit(u0, "5 s after another node was told, with the storage well")
			pass(40 * time.Second)
			a.wantDrained(u0, true, "with the storage well")
			b.tell(u0, record.Request{State: api.StateReady})
			pass(10 * time.Second)
			a.wantState(u0, api.StateReady, "with the storage well")
		}
	})
}

// What a reload says while the storage does not answer is so: the drains that are known hold.
func TestReloadWhileTheStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		next := v.Door()
		release := next.Hang()
		defer release()
		end := a.load(next, a.pool)
		a.wantNoVisit(u0, "after a reload while the storage hangs")
		end()
		pass(time.Minute)
		a.wantNoVisit(u0, "a minute later")
		if got := a.logs.FilterMessageSnippet("get new sessions").Len(); got > 0 {
			t.Error("it is logged that what is marked gets new sessions")
		}
		if got := a.logs.FilterMessageSnippet("knew before the reload").Len(); got != 1 {
			t.Errorf("that the storage does not answer is logged %d times, want once", got)
		}
	})
}

// Whoever cannot write to the storage calls nothing drained: the others do not hear of its sessions.
func TestDrainedWhileWritesFail(t *testing.T) {
	for name, fail := range map[string]func() error{
		"fails": func() error { return errors.New("disk full") },
		"hangs": func() error { time.Sleep(time.Hour); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer pass(2 * time.Hour)
				var failing atomic.Bool
				v, store := clustertest.NewVault(), func() error {
					if !failing.Load() {
						return nil
					}
					return fail()
				}
				a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnStore: store}, 3)
				pass(time.Minute)
				a.drain(u0)
				pass(time.Minute)
				a.wantDrained(u0, true, "while all is well")
				failing.Store(true)
				pass(verdict.StaleTimeout + 2*nodeInterval)
				for range 10 {
					a.wantWait(u0, "cannot write to the storage", "while it cannot write")
					pass(7 * time.Second)
				}
				a.load(&clustertest.Trick{Door: v.Door(), OnStore: store}, a.pool)()
				for range 20 {
					a.wantDrained(u0, false, "after a reload, while it cannot write")
					pass(time.Second)
				}
				if got := a.Self().Storage; got == "" || strings.Contains(got, "read") {
					t.Errorf("the node tells of its storage: %q", got)
				}
				failing.Store(false)
				pass(time.Hour + 10*time.Second)
				a.wantDrained(u0, true, "when it can")
			})
		})
	}
}

// hangingLoads is a load hook under which some keys hang.
func (q *quagmire) hangingLoads(stuck map[string]bool) func(key string) error {
	return func(key string) error {
		if !stuck[key] {
			return nil
		}
		return q.cross()
	}
}

// However many records of strangers hang, and for however long, a node goes on with all that it needs, and little is left behind.
func TestManyRecordsHang(t *testing.T) {
	for _, n := range []int{4, 40} {
		for kind, keyOf := range map[string]func(i int) string{
			"reports": func(i int) string { return record.NodeKey(fmt.Sprintf("%x", i)) },
			"marks":   func(i int) string { return record.DrainKey(fmt.Sprintf("elsewhere%d:80", i)) },
		} {
			t.Run(fmt.Sprint(n, kind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					v, q, stuck := clustertest.NewVault(), newQuagmire(t), make(map[string]bool)
					q.on.Store(true)
					for i := range n {
						stuck[keyOf(i)] = true
					}
					b := startNode(t, v)
					a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnLoad: q.hangingLoads(stuck)}, 3)
					pass(time.Minute)
					for key := range stuck {
						if err := v.Door().Store(t.Context(), key, []byte(`{}`)); err != nil {
							t.Fatal(err)
						}
					}
					for i := range 6 {
						pass(20 * time.Minute)
						if err := a.setDrain(t.Context(), "u1:80", record.Request{State: []string{api.StateDraining, api.StateReady}[i%2]}); err != nil {
							t.Fatalf("after %d min an operator hears: %v", 20*(i+1), err)
						}
						b.tell(u0, record.Request{State: []string{api.StateDraining, api.StateReady}[i%2]})
					}
					if got := q.in.Load(); got > 100 {
						t.Errorf("in 2 h %d calls are left behind", got)
					}
					b.drain(u0)
					pass(nodeInterval + 2*store.CallTimeout)
					a.wantNoVisit(u0, "marked through another node while records hang")
					for key := range stuck {
						_ = v.Door().Delete(t.Context(), key)
					}
					pass(time.Minute)
					if got := a.Self().Storage; got != "" {
						t.Errorf("a minute after the records are gone the node tells of its storage: %q", got)
					}
					a.wantDrained(u0, true, "when the records are gone, though the calls for them are not")
				})
			})
		}
	}
}

// A mark that a node needs is read again when it is mended, though no call of before ever ends.
func TestRecordIsMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, q := clustertest.NewVault(), newQuagmire(t)
		q.on.Store(true)
		stuck := record.DrainKey("u2:80")
		b := startNode(t, v)
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnLoad: q.hangingLoads(map[string]bool{stuck: true})}, 3)
		if err := v.Door().Store(t.Context(), stuck, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		pass(4 * time.Hour)
		q.on.Store(false)
		b.drain("u2:80")
		pass(store.MaxBackoff + 3*store.CallTimeout)
		a.wantNoVisit("u2:80", "when its mark can be read again")
		if got := a.Self().Storage; got != "" {
			t.Errorf("when it is mended: %q", got)
		}
	})
}

// A storage that hangs for hours is found soon when it is well, though the calls of then never end.
func TestStorageHangsForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, q := clustertest.NewVault(), newQuagmire(t)
		cross := func(string) error { return q.cross() }
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnList: cross, OnLoad: cross, OnStore: q.cross}, 100)
		pass(time.Minute)
		q.on.Store(true)
		pass(8 * time.Hour)
		if got := q.in.Load(); got > 120 {
			t.Errorf("in 8 h %d calls are left behind", got)
		}
		q.on.Store(false)
		pass(store.MaxBackoff + 3*store.CallTimeout)
		if err := a.setDrain(t.Context(), "u1:80", record.Request{State: api.StateDraining}); err != nil {
			t.Error("an operator hears: ", err)
		}
		pass(time.Minute)
		if got := a.Self().Storage; got != "" {
			t.Errorf("the node tells of its storage: %q", got)
		}
	})
}

// hangingMarks returns a storage hook under which the marks of every second upstream of a pool hang, and how many do.
func (q *quagmire) hangingMarks(upstreams int, when func(i int) bool) (load func(key string) error, hang int) {
	stuck := make(map[string]bool)
	for i := range upstreams {
		if when(i) {
			stuck[record.DrainKey(fmt.Sprintf("u%d:80", i))] = true
		}
	}
	return q.hangingLoads(stuck), len(stuck)
}

// untilLate lets a call that hangs end when the storage is not waited for any longer, as with a storage that heeds the context.
func (q *quagmire) untilLate(load func(key string) error) func(key string) error {
	return func(key string) error {
		done := make(chan error, 1)
		go func() { done <- load(key) }()
		select {
		case err := <-done:
			return err
		case <-time.After(store.CallTimeout):
			return context.DeadlineExceeded
		}
	}
}

// hasDrain says whether a node knows that an upstream drains.
func (c *caddyNode) hasDrain(shared string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	md := c.drains[shared]
	return md != nil && md.Drains()
}

// laps measures how long a node takes from one look at a folder to the next.
type laps struct {
	folder  string
	last    time.Time
	longest time.Duration
}

// list is a list hook.
func (l *laps) list(prefix string) error {
	if strings.TrimSuffix(prefix, "/")+"/" == l.folder {
		if !l.last.IsZero() {
			l.longest = max(l.longest, time.Since(l.last))
		}
		l.last = time.Now()
	}
	return nil
}

// However many marks of its own pool hang, a node looks at the storage in time, and what does not hang is read, said and drained as
// before.
func TestManyMarksOfThePoolHang(t *testing.T) {
	const upstreams = 200
	for name, hangs := range map[string]func(i int) bool{
		"every second": func(i int) bool { return i%2 == 0 },
		"all but two":  func(i int) bool { return i != 1 && i != 3 },
	} {
		for _, heeds := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the storage heeds a context: %v", name, heeds), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					v, q := clustertest.NewVault(), newQuagmire(t)
					load, hang := q.hangingMarks(upstreams, hangs)
					if heeds {
						load = q.untilLate(load)
					}
					for i := range upstreams {
						m := record.Request{State: api.StateReady}.Record(nil, fmt.Sprintf("u%d:80", i), "elsewhere", 0)
						put(t, v, record.DrainKey(m.Upstream), m)
					}
					b := startNodeOn(t, "b", v.Door(), testPool(upstreams))
					b.drain("u3:80")
					q.on.Store(true)
					looks := &laps{folder: record.DrainsFolder}
					a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnLoad: load, OnList: looks.list}, upstreams)
					pass(6 * time.Minute)
					if !a.hasDrain("u3:80") {
						t.Error("6 min after the start a mark is not read that can be")
					}
					for i := range 2 {
						pass(3 * time.Minute)
						began := time.Now()
						err := askDrain(t.Context(), a.Cluster, "u1:80", record.Request{State: api.StateDraining})
						if took := time.Since(began); err != nil && !strings.Contains(err.Error(), "cannot be seen whether") || took > 3*store.CallTimeout {
							t.Errorf("after %v an operator hears: %v", took, err)
						}
						a.tell("u1:80", record.Request{State: api.StateReady})
						b.tell("u3:80", record.Request{State: []string{api.StateReady, api.StateDraining}[i%2]})
						if pass(2*nodeInterval + time.Second); a.hasDrain("u3:80") != (i%2 == 1) {
							t.Error("5 s after it was said at another node, a mark is not read")
						}
					}
					if looks.longest > nodeInterval+2*store.CallTimeout {
						t.Error("from one look to the next it takes ", looks.longest)
					}
					if got := int(q.in.Load()); !heeds && got > store.ManyLeft+hang {
						t.Errorf("%d calls are left behind", got)
					}
				})
			})
		}
	}
}

// Of many marks that hang, each is read again when it is mended, though no call of before ever ends.
func TestManyMarksAreMended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const upstreams = 100
		v, q := clustertest.NewVault(), newQuagmire(t)
		load, _ := q.hangingMarks(upstreams, func(i int) bool { return i > 1 })
		for i := range upstreams {
			m := record.Request{State: api.StateReady}.Record(nil, fmt.Sprintf("u%d:80", i), "elsewhere", 0)
			put(t, v, record.DrainKey(m.Upstream), m)
		}
		q.on.Store(true)
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnLoad: load}, upstreams)
		pass(20 * time.Minute)
		if got := q.in.Load(); got < store.ManyLeft {
			t.Errorf("only %d calls are left behind", got)
		}
		q.on.Store(false)
		pass(store.MaxStrangeBackoff + time.Minute)
		if got := a.Self().Storage; got != "" {
			t.Errorf("when all is mended the node tells of its storage: %q", got)
		}
	})
}

// stuckWrites is a door at which some writes hang.
type stuckWrites struct {
	*clustertest.Trick
	hangs func(key string) error
}

func (d *stuckWrites) Store(ctx context.Context, key string, value []byte) error {
	if err := d.hangs(key); err != nil {
		return err
	}
	return d.Trick.Store(ctx, key, value)
}

// However many marks a node has to write again that cannot be written, it looks at the storage in time.
func TestManyWritesHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const upstreams = 100
		v, q := clustertest.NewVault(), newQuagmire(t)
		write, _ := q.hangingMarks(upstreams, func(i int) bool { return i > 3 })
		looks := &laps{folder: record.DrainsFolder}
		pool := testPool(upstreams)
		d := &stuckWrites{&clustertest.Trick{Door: v.Door(), OnList: looks.list}, write}
		a, b := makeNode(t, d, newTestPolicy(pool), pool), startNodeOn(t, "b", v.Door(), pool)
		a.s.join(a.Cluster, d)
		for i := range upstreams - 1 {
			b.drain(fmt.Sprintf("u%d:80", i))
		}
		pass(time.Minute)
		b.kill()
		pass(10 * time.Second)
		q.on.Store(true)
		v.Lock()
		for i := range upstreams - 1 {
			v.Values[record.DrainKey(fmt.Sprintf("u%d:80", i))] = []byte("{bro")
		}
		v.Unlock()
		pass(10 * time.Minute)
		if looks.longest > nodeInterval+3*store.CallTimeout {
			t.Error("from one look to the next it takes ", looks.longest)
		}
		if st := a.Self(); len(st.Storage) > 2000 {
			t.Errorf("the node says %.1000q", st.Storage)
		}
		for i := range 4 {
			if got := string(v.Value(record.DrainKey(fmt.Sprintf("u%d:80", i)))); !strings.Contains(got, api.StateDraining) {
				t.Errorf("a mark that can be written is %s", got)
			}
		}
	})
}
