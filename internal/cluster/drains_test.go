// This file tests that what an operator has said last holds, whatever becomes of the storage, of nodes and of configs.

package cluster

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// wantNoVisit checks that no new session goes to addr.
func (c *caddyNode) wantNoVisit(addr, when string) {
	c.t.Helper()
	for range 50 {
		if home, _ := c.visit(); home == addr {
			c.t.Errorf("%s: a new session went to %s", when, addr)
			return
		}
	}
}

// wantState checks what is told of an upstream.
func (c *caddyNode) wantState(addr, want, when string) {
	c.t.Helper()
	if st, err := find(c.Cluster, addr); err != nil || st.State != want {
		c.t.Errorf("%s: it is %+v %v, want %s", when, st, err, want)
	}
}

// A Caddy whose config had no policy for a while waits for the marks as one that starts.
func TestMarksAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		a.drain(u0)
		pass(time.Minute)
		_ = a.s.Cleanup()
		pass(time.Minute)
		release := a.door.Hang()
		time.AfterFunc(3*time.Second, release)
		a.load(a.door, a.pool)
		a.wantNoVisit(u0, "after a config without the policy")
	})
}

// Who waits until a node is empty is answered though its storage hangs.
func TestNodeIsEmptyWhileTheStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		_, hangUp := a.socket(a.visitAt(u0))
		defer a.door.Hang()()
		pass(5 * time.Second)
		time.AfterFunc(10*time.Second, hangUp)
		begun := time.Now()
		empty, err := a.Await(t.Context(), time.Hour, func() (bool, error) {
			return a.Self().Sessions.Connected == 0, nil
		})
		if took := time.Since(begun); !empty || err != nil || took > 20*time.Second {
			t.Errorf("after %v: empty is %v, %v", took, empty, err)
		}
	})
}

// The storage that a config names is in use from when the config runs, though the one before lasts on: Caddy
// may give its visitors hours (shutdown_delay).
func TestStorageOfTheRunningConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a := startNode(t, one)
		end := a.load(two.Door(), a.pool)
		a.drain(u0)
		if one.Holds(record.DrainKey(u0)) || !two.Holds(record.DrainKey(u0)) {
			t.Error("the mark is not in the storage of the config that runs")
		}
		pass(5 * time.Second)
		if !two.Holds(record.NodeKey(a.name)) {
			t.Error("it does not report there")
		}
		a.runs(nil) // Caddy ends, which takes its time
		pass(time.Hour)
		before := string(two.Value(record.NodeKey(a.name)))
		pass(20 * time.Second)
		if string(two.Value(record.NodeKey(a.name))) == before {
			t.Error("it does not report any more while Caddy ends")
		}
		end()
	})
}

// The first visitor of a config finds the marks of its storage read.
func TestMarksOfTheNextStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a, other := startNode(t, one), startNode(t, two)
		other.drain(u0)
		slow := two.Door()
		time.AfterFunc(3*time.Second, slow.Hang())
		a.load(slow, a.pool)()
		a.wantNoVisit(u0, "right after the reload")
		pass(10 * time.Second)
		a.wantNoVisit(u0, "later")
	})
}

// A mark goes along to another storage and back again, whatever that remembers of earlier times.
func TestMarkGoesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a := startNode(t, one)
		load := func(v *clustertest.Vault, pool int) {
			a.load(v.Door(), testPool(pool))()
			pass(time.Minute)
		}
		a.drain(u0)
		pass(time.Minute)
		a.tell(u0, record.Request{State: api.StateReady})
		load(two, 3)
		a.drain(u0)
		load(one, 3)
		a.wantNoVisit(u0, "back at a storage that has an older word")
		if !strings.Contains(string(one.Value(record.DrainKey(u0))), api.StateDraining) {
			t.Error("the older word is still in the storage")
		}
		a.tell(u0, record.Request{State: api.StateReady})
		load(two, 3)
		a.visitAt(u0)
		a.drain("u2:80")
		load(two, 2) // the server is off for two minutes
		load(one, 2)
		load(one, 3)
		a.wantNoVisit("u2:80", "off the pool for two minutes, while the storage changed")
	})
}

// A look at a storage that is under way when another one is named says nothing there.
func TestNodeDoesNotLeaveAnOldStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a, b := startNode(t, one), startNode(t, one)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		pass(time.Minute)
		release := a.door.Hang()
		pass(3 * time.Second)
		a.load(two.Door(), a.pool)()
		pass(3 * time.Second)
		release()
		pass(20 * time.Second)
		b.drain(u0)
		pass(time.Minute)
		hangUp()
		_, _ = a.socket(token)
		pass(5 * time.Minute)
		b.wantDrained(u0, false, "with a session through a node that has gone to another storage")
	})
}

// What this node knows of an upstream is not forgotten with the record: a new reason changes nothing else.
func TestReasonForALostMark(t *testing.T) {
	for name, value := range map[string][]byte{"broken": []byte("{"), "lost": nil} {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a := startNode(t, v)
			pass(time.Minute)
			minute := time.Minute
			a.tell(u0, record.Request{State: api.StateDraining, Grace: &minute, Reason: "old"})
			pass(5 * time.Minute)
			set := func() {
				v.Lock()
				defer v.Unlock()
				if v.Values[record.DrainKey(u0)] = value; value == nil {
					delete(v.Values, record.DrainKey(u0))
				}
			}
			set()
			a.tell(u0, record.Request{State: api.StateDraining, Reason: "new"})
			if !a.s.get(u0).Drain.IsClosed() {
				t.Errorf("%s: a new reason has opened a closed upstream", name)
			}
			set()
			pass(5 * time.Second)
			if !strings.Contains(string(v.Value(record.DrainKey(u0))), api.StateClosed) {
				t.Errorf("%s: the mark is not written again: %s", name, v.Value(record.DrainKey(u0)))
			}
		})
	}
}

// slowDoor waits before it stores what has some text in it, once.
type slowDoor struct {
	*clustertest.Door
	text  string
	wait  chan struct{}
	waits chan struct{} // closed when it does
	once  sync.Once
}

// Store implements Storage.
func (d *slowDoor) Store(ctx context.Context, key string, value []byte) error {
	if strings.Contains(string(value), d.text) {
		d.once.Do(func() {
			close(d.waits)
			<-d.wait
		})
	}
	return d.Door.Store(ctx, key, value)
}

// fullDoor can be read, and not be written to while it is full.
type fullDoor struct {
	*clustertest.Door
	full atomic.Bool
}

// Store implements Storage.
func (d *fullDoor) Store(ctx context.Context, key string, value []byte) error {
	if d.full.Load() {
		return errors.New("disk full")
	}
	return d.Door.Store(ctx, key, value)
}

// older leaves a word in the vault that an operator said of u0 an hour ago, by a node that is gone.
func older(t *testing.T, v *clustertest.Vault) {
	t.Helper()
	m := &record.Drain{ID: store.RandomName(), Said: time.Now().Add(-time.Hour).UnixNano(), Upstream: u0, State: api.StateReady}
	if err := store.Put(t.Context(), v.Door(), record.DrainKey(u0), m); err != nil {
		t.Fatal(err)
	}
}

// An older word in the next storage wins in no way: not where that cannot be written to for a while, nor when it is named
// anew meanwhile, nor for a drain that is said just then.
func TestOlderWordInTheNextStorage(t *testing.T) {
	for name, change := range map[string]func(a *caddyNode, two *clustertest.Vault){
		"full": func(a *caddyNode, two *clustertest.Vault) {
			a.drain(u0)
			d := &fullDoor{Door: two.Door()}
			d.full.Store(true)
			a.load(d, a.pool)()
			pass(10 * time.Second)
			a.wantNoVisit(u0, "while it is full")
			d.full.Store(false)
		},
		"named anew": func(a *caddyNode, two *clustertest.Vault) {
			a.drain(u0)
			fails := two.Door()
			fails.Fail(errors.New("no route to host"))
			a.load(fails, a.pool)()
			pass(10 * time.Second)
			a.load(two.Door(), a.pool)()
		},
		"said meanwhile": func(a *caddyNode, two *clustertest.Vault) {
			d := &slowDoor{Door: a.door, text: `"state":"draining"`, wait: make(chan struct{}), waits: make(chan struct{})}
			a.load(d, a.pool)()
			said := make(chan error, 1)
			go func() { said <- a.setDrain(a.t.Context(), u0, record.Request{State: api.StateDraining}) }()
			<-d.waits
			a.load(two.Door(), a.pool)()
			pass(3 * time.Second)
			close(d.wait)
			if err := <-said; err != nil {
				a.t.Error(err)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			two := clustertest.NewVault()
			older(t, two)
			a := startNode(t, clustertest.NewVault())
			pass(time.Minute)
			change(a, two)
			pass(10 * time.Second)
			a.wantNoVisit(u0, name)
			if !strings.Contains(string(two.Value(record.DrainKey(u0))), api.StateDraining) {
				t.Errorf("%s: it still has the older word", name)
			}
		})
	}
}

// Nodes change the storage one after the other, and operators go on meanwhile: what was said last holds on all.
func TestStorageChangesNodeByNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a, b := startNode(t, one), startNode(t, one)
		a.drain(u0)
		a.drain("u1:80")
		pass(time.Minute)
		b.load(two.Door(), b.pool)()
		pass(time.Minute)
		b.tell(u0, record.Request{State: api.StateReady})
		b.drain(u0)
		b.tell(u0, record.Request{State: api.StateReady})
		minute := time.Minute
		b.tell("u1:80", record.Request{State: api.StateDraining, Grace: &minute, Reason: "its disk is broken"})
		pass(5 * time.Minute)
		a.load(two.Door(), a.pool)()
		pass(time.Minute)
		for _, n := range []*caddyNode{a, b} {
			n.wantState(u0, api.StateReady, "taken back")
			if !n.s.get("u1:80").Drain.IsClosed() {
				t.Error("it is open again, and nobody said so")
			}
		}
	})
}

// What all others have forgotten does not come back with a node that was cut off.
func TestForgottenMarkStaysForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		a.drain("u2:80")
		pass(time.Minute)
		a.load(a.door, testPool(2))()
		b.load(b.door, testPool(2))()
		pass(5 * time.Second)
		a.door.Fail(errors.New("no route to host"))
		pass(2 * time.Hour)
		if v.Holds(record.DrainKey("u2:80")) {
			t.Fatal("the mark is not forgotten")
		}
		b.load(b.door, testPool(3))()
		pass(time.Minute)
		a.door.Fail(nil)
		pass(time.Minute)
		b.wantState("u2:80", api.StateReady, "the next server at that address")
	})
}

// A config that fails to load leaves no trace in its storage, though the one that runs has no policy.
func TestFailedLoadLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a, b := startNode(t, one), startNode(t, one)
		pass(time.Minute)
		_, _ = a.socket(a.visitAt(u0))
		a.drain("u1:80")
		_ = a.s.Cleanup()
		pass(time.Minute)
		failed := newTestPolicyWith(a.s.table, a.pool)
		failed.join(a.Cluster, two.Door())
		pass(100 * time.Millisecond)
		_ = failed.Cleanup()
		pass(time.Minute)
		if two.Holds(record.DrainKey("u1:80")) || two.Holds(record.NodeKey(a.name)) {
			t.Error("there is a trace")
		}
		b.drain(u0)
		pass(time.Minute)
		b.wantWait(u0, "it has 1 session", "with a session through the node whose config failed")
	})
}

// A node that ends while it says farewell to a storage ends when that is said.
func TestExitWhileItRetires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		d := &slowDoor{Door: v.Door(), text: `"left":true`, wait: make(chan struct{}), waits: make(chan struct{})}
		a.load(d, a.pool)()
		pass(time.Minute)
		_ = a.s.Cleanup()
		<-d.waits
		time.AfterFunc(time.Second, func() { close(d.wait) })
		a.Close()
		if !strings.Contains(string(v.Value(record.NodeKey(a.name))), `"left":true`) {
			t.Error("the others do not know")
		}
		pass(10 * time.Second)
	})
}

// A storage that fails for a moment is tried again before the first visitor is let in.
func TestFirstReadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		startNode(t, v).drain(u0)
		d := v.Door()
		d.Fail(errors.New("connection reset"))
		time.AfterFunc(150*time.Millisecond, func() { d.Fail(nil) })
		b := startNodeOn(t, "b", d, testPool(3))
		b.wantNoVisit(u0, "when the config runs")
		other := clustertest.NewVault()
		startNode(t, other).drain("u1:80")
		d = other.Door()
		d.Fail(errors.New("connection reset"))
		time.AfterFunc(150*time.Millisecond, func() { d.Fail(nil) })
		b.load(d, b.pool)()
		b.wantNoVisit("u1:80", "when the next config runs")
		pass(time.Second)
	})
}

// A node that is about to end, and was empty for a moment, may be cut off and well as any other: nobody asked to kill it.
func TestNodeThatEndsIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		a.drain(u0)
		pass(time.Minute)
		b.ends()
		hangUp()
		pass(5 * time.Second)
		b.door.Fail(errors.New("no route to host"))
		_, _ = b.socket(token)
		for range 30 {
			pass(10 * time.Second)
			a.wantDrained(u0, false, "with a socket through a node that is about to end")
		}
	})
}

// Whoever looks while a verdict is passed sees the one before or after it.
func TestVerdictIsSteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		a.drain(u0)
		pass(time.Hour)
		dr := &a.s.get(u0).Drain
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 20_000 {
				a.mu.Lock()
				a.judgeAll(a.conf.Table.Now())
				a.mu.Unlock()
			}
		}()
		for {
			select {
			case <-done:
				return
			default:
				if !dr.IsEmpty(a.conf.Table.Now()) {
					t.Fatal("for a moment it was not called empty")
				}
			}
		}
	})
}

// A node that is about to end says so as soon as nobody is there, so that it can be killed; and takes it back if
// somebody comes after all.
func TestNodeMayBeKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		b.ends()
		a.drain(u0)
		pass(time.Hour)
		a.wantWait(u0, "it has 1 session", "while somebody is connected")
		hangUp()
		empty := func() (bool, error) { return b.MayBeKilled(), nil }
		if ok, _ := b.Await(t.Context(), 10*time.Second, empty); !ok {
			t.Fatal("it does not say that it may be killed")
		}
		_, hangUp = b.socket(token)
		pass(5 * time.Minute)
		a.wantWait(u0, "it has 1 session", "when somebody has come back")
		hangUp()
		if ok, _ := b.Await(t.Context(), 10*time.Second, empty); !ok {
			t.Fatal("it does not say again that it may be killed")
		}
		b.kill()
		pass(time.Minute)
		a.wantDrained(u0, true, "a minute after it was killed")
	})
}

// That another node's report cannot be read does not keep a node from saying that it may be killed, and that
// its own cannot be written keeps nobody from killing it.
func TestNodeMayBeKilledThoughTheStorageFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.door.Vault.Lock()
		v.Values[record.NodeKey("other")] = []byte("{")
		a.door.Vault.Unlock()
		pass(time.Minute)
		a.ends()
		told := func() bool { return strings.Contains(string(v.Value(record.NodeKey(a.name))), `"left":true`) }
		awaits := func(c *caddyNode) bool {
			ok, _ := c.Await(t.Context(), 10*time.Second, func() (bool, error) { return c.MayBeKilled(), nil })
			return ok
		}
		if ok := awaits(a); !ok || !told() {
			t.Errorf("it may be killed: %v; the others know: %v", ok, told())
		}
		b := startNode(t, v)
		pass(time.Minute)
		b.door.Fail(errors.New("disk full"))
		b.ends()
		if !awaits(b) {
			t.Error("it waits for a storage that fails")
		}
	})
}

// A drain that began before the process did is not told of as one that begins.
func TestOldDrainDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		startNode(t, v).drain(u0)
		s := newTestPolicy(testPool(3))
		var mu sync.Mutex
		var raised []string
		s.raise = func(name string, data map[string]any) {
			mu.Lock()
			defer mu.Unlock()
			raised = append(raised, name+" "+data["upstream"].(string))
		}
		d := v.Door()
		b := makeNode(t, d, s, testPool(3))
		s.join(b.Cluster, d)
		pass(5 * time.Second)
		b.drain("u1:80")
		pass(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if len(raised) != 1 || raised[0] != eventStarted+" u1:80" {
			t.Errorf("raised: %v", raised)
		}
	})
}

// A node is said to be dead while it reports.
func TestGiveUpWhileItReports(t *testing.T) {
	v := clustertest.NewVault()
	a, b := startNode(t, v), startNode(t, v)
	soon(t, "read of", func() bool { return !errors.Is(a.RemoveNode(t.Context(), b.name, false), ErrUnknownNode) })
	for range 100 {
		if err := a.RemoveNode(t.Context(), b.name, false); err != nil {
			t.Fatal(err)
		}
		a.exchange(t.Context(), a.used)
	}
}

// A drain that is taken back just when its time is up stays so, though another node writes a moment later that the
// upstream is closed.
func TestTakenBackWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		d := &slowDoor{Door: v.Door(), text: `"state":"closed"`, wait: make(chan struct{}), waits: make(chan struct{})}
		a := makeNode(t, d, newTestPolicy(testPool(3)), testPool(3))
		a.s.join(a.Cluster, d)
		b := startNode(t, v)
		pass(time.Minute)
		minute := time.Minute
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &minute})
		pass(10 * time.Second)
		release := b.door.Hang() // or it may be the first to write that
		<-d.waits
		release()
		synctest.Wait()
		b.tell(u0, record.Request{State: api.StateReady})
		b.tell(u0, record.Request{State: api.StateReady, Reason: "the new version is bad"})
		close(d.wait)
		pass(10 * time.Second)
		a.wantState(u0, api.StateReady, "on the node that closed it")
		b.wantState(u0, api.StateReady, "on the node that was told")
	})
}

// Another server can be drained as soon as a drain was taken back, also where that one goes on for a moment for the others' sake: it is
// about to take new sessions.
func TestDrainTheOtherOneAfterAnUndrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNodeOn(t, "a", v.Door(), testPool(2)), startNodeOn(t, "b", v.Door(), testPool(2))
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		a.wantDrained(u0, true, "nobody is there")
		if err := a.SetDrain(t.Context(), u0, record.Request{State: api.StateReady}); err != nil {
			t.Fatal(err)
		}
		if !a.s.get(u0).Drain.On() {
			t.Fatal("it takes new sessions at once, though another node may take it for empty")
		}
		if err := a.SetDrain(t.Context(), "u1:80", record.Request{State: api.StateDraining}); err != nil {
			t.Errorf("the other one cannot be drained: %v", err)
		}
		pass(undrainQuarantine + time.Second)
		for _, c := range []*caddyNode{a, b} {
			if c.s.get(u0).Drain.On() {
				t.Errorf("%s still drains the first one", c.conf.Host)
			}
		}
	})
}

// A server that was closed is not closed any more as soon as that is taken back: what comes to it from then on is let be.
func TestClosedIsOpenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNodeOn(t, "a", v.Door(), testPool(2))
		startNodeOn(t, "b", v.Door(), testPool(2))
		pass(time.Minute)
		soon := time.Second
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &soon})
		pass(time.Minute)
		d := &a.s.get(u0).Drain
		if !d.IsClosed() {
			t.Fatal("it is not closed")
		}
		a.tell(u0, record.Request{State: api.StateReady})
		if d.IsClosed() || !d.On() {
			t.Errorf("closed is %v, draining %v; want that it drains for a moment yet", d.IsClosed(), d.On())
		}
		pass(undrainQuarantine + time.Second)
		if d.On() {
			t.Error("it still drains")
		}
	})
}

// What sessions live for is known after the last policy has gone, whichever that was.
func TestLongestTTLIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		long := newTestPolicyWith(a.s.table, a.pool)
		long.lifetime = time.Hour
		long.join(a.Cluster, a.door)
		_ = long.Cleanup()
		_ = a.s.Cleanup()
		a.mu.Lock()
		defer a.mu.Unlock()
		if got := a.sessionTTL(); got != time.Hour {
			t.Errorf("sessions are taken to live for %v, want an hour", got)
		}
	})
}
