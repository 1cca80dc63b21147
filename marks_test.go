// This file tests that what an operator has said last holds, whatever becomes of the storage, of nodes and of configs.

package caddybokeh

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
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
	if st, err := c.upstream(addr); err != nil || st.State != want {
		c.t.Errorf("%s: it is %+v %v, want %s", when, st, err, want)
	}
}

// A Caddy whose config had no policy for a while waits for the marks as one that starts.
func TestMarksAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		a.drain(u0)
		pass(time.Minute)
		_ = a.s.Cleanup()
		pass(time.Minute)
		release := a.door.hang()
		time.AfterFunc(3*time.Second, release)
		a.load(a.door, a.pool)
		a.wantNoVisit(u0, "after a config without the policy")
	})
}

// A storage that hangs holds up nothing that is due by the clock.
func TestStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		hour := time.Hour
		a.tell(u0, word{state: stateDraining, grace: &hour})
		b.drain("u1:80")
		pass(30 * time.Minute)
		a.wantDrained("u1:80", true, "before")
		defer a.door.hang()()
		pass(10 * time.Second)
		a.wantDrained("u1:80", false, "when the storage has not been read for long")
		b.tell("u1:80", word{state: stateReady})
		pass(10 * time.Second)
		other := b.visitAt("u1:80")
		_, hangUpOther := b.socket(other)
		hangUpOther()
		if home, _ := a.socket(other); home != "u1:80" {
			t.Error("a live session that another node has begun since went to ", home)
		}

		pass(time.Hour)
		if home, _ := a.socket(token); home == u0 {
			t.Error("when its grace period is over a socket goes there still")
		}
		hangUp()
	})
}

// Who waits until a node is empty is answered though its storage hangs.
func TestNodeIsEmptyWhileTheStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		_, hangUp := a.socket(a.visitAt(u0))
		defer a.door.hang()()
		pass(5 * time.Second)
		time.AfterFunc(10*time.Second, hangUp)
		begun := time.Now()
		empty, err := a.await(t.Context(), time.Hour, func() (bool, error) {
			return a.node.status().Sessions.Connected == 0, nil
		})
		if took := time.Since(begun); !empty || err != nil || took > 20*time.Second {
			t.Errorf("after %v: empty is %v, %v", took, empty, err)
		}
	})
}

// A closed upstream that is opened again has its sessions as before: those that were just unused, and those whose
// websocket was not closed yet.
func TestClosedAndOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		pass(time.Minute)
		unused := a.visitAt(u0)
		_, hangUp := a.socket(unused)
		open := map[string]func(){} // of these one is closed at once, the other a while later
		for range 2 {
			token := a.visitAt(u0)
			_, open[token] = a.socket(token)
		}
		minute, never, span := time.Minute, time.Duration(0), time.Hour
		a.tell(u0, word{state: stateDraining, grace: &minute, span: &span})
		pass(time.Minute - 4*time.Second)
		hangUp()
		pass(5 * time.Second)
		a.wantState(u0, stateClosed, "when the grace period is over")
		a.tell(u0, word{state: stateDraining, grace: &never})
		pass(7 * time.Second)
		a.wantState(u0, stateDraining, "opened again, while a browser may come back")
		if home, hangUp := a.socket(unused); home != u0 {
			t.Error("a browser that comes back is sent to ", home)
		} else {
			hangUp()
		}
		pass(time.Hour)
		for _, hangUp := range open {
			hangUp()
		}
		pass(10 * time.Second)
		a.wantState(u0, stateDraining, "10 s after a socket that was not closed has ended")
		back := 0
		for token := range open {
			if home, _ := a.socket(token); home == u0 {
				back++
			}
		}
		if back == 0 {
			t.Error("its browser is sent elsewhere")
		}
	})
}

// The storage that a config names is in use from when the config runs, though the one before lasts on: Caddy
// may give its visitors hours (shutdown_delay).
func TestStorageOfTheRunningConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		a := startNode(t, one)
		end := a.load(two.door(), a.pool)
		a.drain(u0)
		if one.holds(markKey(u0)) || !two.holds(markKey(u0)) {
			t.Error("the mark is not in the storage of the config that runs")
		}
		pass(5 * time.Second)
		if !two.holds(nodeKey(a.name)) {
			t.Error("it does not report there")
		}
		a.runs(nil) // Caddy ends, which takes its time
		pass(time.Hour)
		before := string(two.value(nodeKey(a.name)))
		pass(20 * time.Second)
		if string(two.value(nodeKey(a.name))) == before {
			t.Error("it does not report any more while Caddy ends")
		}
		end()
	})
}

// The first visitor of a config finds the marks of its storage read.
func TestMarksOfTheNextStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		a, other := startNode(t, one), startNode(t, two)
		other.drain(u0)
		slow := two.door()
		time.AfterFunc(3*time.Second, slow.hang())
		a.load(slow, a.pool)()
		a.wantNoVisit(u0, "right after the reload")
		pass(10 * time.Second)
		a.wantNoVisit(u0, "later")
	})
}

// A mark goes along to another storage and back again, whatever that remembers of earlier times.
func TestMarkGoesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		a := startNode(t, one)
		load := func(v *vault, pool int) {
			a.load(v.door(), testPool(pool))()
			pass(time.Minute)
		}
		a.drain(u0)
		pass(time.Minute)
		a.tell(u0, word{state: stateReady})
		load(two, 3)
		a.drain(u0)
		load(one, 3)
		a.wantNoVisit(u0, "back at a storage that has an older word")
		if !strings.Contains(string(one.value(markKey(u0))), stateDraining) {
			t.Error("the older word is still in the storage")
		}
		a.tell(u0, word{state: stateReady})
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
		one, two := newVault(), newVault()
		a, b := startNode(t, one), startNode(t, one)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		pass(time.Minute)
		release := a.door.hang()
		pass(3 * time.Second)
		a.load(two.door(), a.pool)()
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
			v := newVault()
			a := startNode(t, v)
			pass(time.Minute)
			minute := time.Minute
			a.tell(u0, word{state: stateDraining, grace: &minute, reason: "old"})
			pass(5 * time.Minute)
			set := func() {
				v.mu.Lock()
				defer v.mu.Unlock()
				if v.values[markKey(u0)] = value; value == nil {
					delete(v.values, markKey(u0))
				}
			}
			set()
			a.tell(u0, word{state: stateDraining, reason: "new"})
			if !a.s.members.get(u0).Drain.IsClosed() {
				t.Errorf("%s: a new reason has opened a closed upstream", name)
			}
			set()
			pass(5 * time.Second)
			if !strings.Contains(string(v.value(markKey(u0))), stateClosed) {
				t.Errorf("%s: the mark is not written again: %s", name, v.value(markKey(u0)))
			}
		})
	}
}

// slowDoor waits before it stores what has some text in it, once.
type slowDoor struct {
	*door
	text  string
	wait  chan struct{}
	waits chan struct{} // closed when it does
	once  sync.Once
}

// Store implements recordStorage.
func (d *slowDoor) Store(ctx context.Context, key string, value []byte) error {
	if strings.Contains(string(value), d.text) {
		d.once.Do(func() {
			close(d.waits)
			<-d.wait
		})
	}
	return d.door.Store(ctx, key, value)
}

// fullDoor can be read, and not be written to while it is full.
type fullDoor struct {
	*door
	full atomic.Bool
}

// Store implements recordStorage.
func (d *fullDoor) Store(ctx context.Context, key string, value []byte) error {
	if d.full.Load() {
		return errors.New("disk full")
	}
	return d.door.Store(ctx, key, value)
}

// older leaves a word in the vault that an operator said of u0 an hour ago, by a node that is gone.
func (v *vault) older(t *testing.T) {
	t.Helper()
	m := &mark{ID: randomName(), Said: time.Now().Add(-time.Hour).UnixNano(), Upstream: u0, State: stateReady}
	if err := storeRecord(t.Context(), v.door(), markKey(u0), m); err != nil {
		t.Fatal(err)
	}
}

// An older word in the next storage wins in no way: not where that cannot be written to for a while, nor when it is named
// anew meanwhile, nor for a drain that is said just then.
func TestOlderWordInTheNextStorage(t *testing.T) {
	for name, change := range map[string]func(a *caddyNode, two *vault){
		"full": func(a *caddyNode, two *vault) {
			a.drain(u0)
			d := &fullDoor{door: two.door()}
			d.full.Store(true)
			a.load(d, a.pool)()
			pass(10 * time.Second)
			a.wantNoVisit(u0, "while it is full")
			d.full.Store(false)
		},
		"named anew": func(a *caddyNode, two *vault) {
			a.drain(u0)
			fails := two.door()
			fails.fail(errors.New("no route to host"))
			a.load(fails, a.pool)()
			pass(10 * time.Second)
			a.load(two.door(), a.pool)()
		},
		"said meanwhile": func(a *caddyNode, two *vault) {
			d := &slowDoor{door: a.door, text: `"state":"draining"`, wait: make(chan struct{}), waits: make(chan struct{})}
			a.load(d, a.pool)()
			said := make(chan error, 1)
			go func() { said <- a.say(a.t.Context(), u0, word{state: stateDraining}) }()
			<-d.waits
			a.load(two.door(), a.pool)()
			pass(3 * time.Second)
			close(d.wait)
			if err := <-said; err != nil {
				a.t.Error(err)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			two := newVault()
			two.older(t)
			a := startNode(t, newVault())
			pass(time.Minute)
			change(a, two)
			pass(10 * time.Second)
			a.wantNoVisit(u0, name)
			if !strings.Contains(string(two.value(markKey(u0))), stateDraining) {
				t.Errorf("%s: it still has the older word", name)
			}
		})
	}
}

// Nodes change the storage one after the other, and operators go on meanwhile: what was said last holds on all.
func TestStorageChangesNodeByNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		a, b := startNode(t, one), startNode(t, one)
		a.drain(u0)
		a.drain("u1:80")
		pass(time.Minute)
		b.load(two.door(), b.pool)()
		pass(time.Minute)
		b.tell(u0, word{state: stateReady})
		b.drain(u0)
		b.tell(u0, word{state: stateReady})
		minute := time.Minute
		b.tell("u1:80", word{state: stateDraining, grace: &minute, reason: "its disk is broken"})
		pass(5 * time.Minute)
		a.load(two.door(), a.pool)()
		pass(time.Minute)
		for _, n := range []*caddyNode{a, b} {
			n.wantState(u0, stateReady, "taken back")
			if !n.s.members.get("u1:80").Drain.IsClosed() {
				t.Error("it is open again, and nobody said so")
			}
		}
	})
}

// What all others have forgotten does not come back with a node that was cut off.
func TestForgottenMarkStaysForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		a.drain("u2:80")
		pass(time.Minute)
		a.load(a.door, testPool(2))()
		b.load(b.door, testPool(2))()
		pass(5 * time.Second)
		a.door.fail(errors.New("no route to host"))
		pass(2 * time.Hour)
		if v.holds(markKey("u2:80")) {
			t.Fatal("the mark is not forgotten")
		}
		b.load(b.door, testPool(3))()
		pass(time.Minute)
		a.door.fail(nil)
		pass(time.Minute)
		b.wantState("u2:80", stateReady, "the next server at that address")
	})
}

// A config that fails to load leaves no trace in its storage, though the one that runs has no policy.
func TestFailedLoadLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		a, b := startNode(t, one), startNode(t, one)
		pass(time.Minute)
		_, _ = a.socket(a.visitAt(u0))
		a.drain("u1:80")
		_ = a.s.Cleanup()
		pass(time.Minute)
		failed := newTestSelectionWith(a.s.table, a.pool)
		failed.join(a.node, two.door())
		pass(100 * time.Millisecond)
		_ = failed.Cleanup()
		pass(time.Minute)
		if two.holds(markKey("u1:80")) || two.holds(nodeKey(a.name)) {
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
		v := newVault()
		a := startNode(t, v)
		pass(time.Minute)
		d := &slowDoor{door: v.door(), text: `"left":true`, wait: make(chan struct{}), waits: make(chan struct{})}
		a.load(d, a.pool)()
		pass(time.Minute)
		_ = a.s.Cleanup()
		<-d.waits
		time.AfterFunc(time.Second, func() { close(d.wait) })
		a.exit()
		if !strings.Contains(string(v.value(nodeKey(a.name))), `"left":true`) {
			t.Error("the others do not know")
		}
		pass(10 * time.Second)
	})
}

// A storage that fails for a moment is tried again before the first visitor is let in.
func TestFirstReadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		startNode(t, v).drain(u0)
		d := v.door()
		d.fail(errors.New("connection reset"))
		time.AfterFunc(150*time.Millisecond, func() { d.fail(nil) })
		b := startNodeOn(t, "b", d, testPool(3))
		b.wantNoVisit(u0, "when the config runs")
		other := newVault()
		startNode(t, other).drain("u1:80")
		d = other.door()
		d.fail(errors.New("connection reset"))
		time.AfterFunc(150*time.Millisecond, func() { d.fail(nil) })
		b.load(d, b.pool)()
		b.wantNoVisit("u1:80", "when the next config runs")
		pass(time.Second)
	})
}

// A node that is about to end, and was empty for a moment, may be cut off and well as any other: nobody asked to kill it.
func TestNodeThatEndsIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		a.drain(u0)
		pass(time.Minute)
		b.ends()
		hangUp()
		pass(5 * time.Second)
		b.door.fail(errors.New("no route to host"))
		_, _ = b.socket(token)
		for range 30 {
			pass(10 * time.Second)
			a.wantDrained(u0, false, "with a socket through a node that is about to end")
		}
	})
}

// An upstream that one node has closed, and that is opened again through one that has not noticed yet, is not called
// drained by that before browsers have had the time to come back.
func TestOpenedAgainElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		pass(time.Second)
		b := startNodeOn(t, "b", a.door, testPool(3))
		pass(time.Minute + time.Second/2) // b has read just now, and counts the minute from when it reads again
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		minute, never := time.Minute, time.Duration(0)
		a.tell(u0, word{state: stateDraining, grace: &minute})
		pass(58 * time.Second)
		hangUp()
		for !a.s.members.get(u0).Drain.IsClosed() {
			pass(50 * time.Millisecond)
		}
		if b.s.members.get(u0).Drain.IsClosed() {
			t.Fatal("both have closed it")
		}
		b.tell(u0, word{state: stateDraining, grace: &never})
		for range 25 {
			pass(time.Second)
			b.wantDrained(u0, false, "while the browser may come back")
		}
		pass(time.Minute)
		b.wantDrained(u0, true, "later")
	})
}

// Whoever looks while a verdict is passed sees the one before or after it.
func TestVerdictIsSteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		a.drain(u0)
		pass(time.Hour)
		dr := &a.s.members.get(u0).Drain
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 20_000 {
				a.mu.Lock()
				a.judgeAll(a.node.t.Now())
				a.mu.Unlock()
			}
		}()
		for {
			select {
			case <-done:
				return
			default:
				if !dr.IsEmpty(a.node.t.Now()) {
					t.Fatal("for a moment it was not called empty")
				}
			}
		}
	})
}

// A drain that is taken back just when its time is up stays so, though another node writes a moment later that the
// upstream is closed.
func TestTakenBackWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		d := &slowDoor{door: v.door(), text: `"state":"closed"`, wait: make(chan struct{}), waits: make(chan struct{})}
		a := makeNode(t, d, newTestSelection(testPool(3)), testPool(3))
		a.s.join(a.node, d)
		b := startNode(t, v)
		pass(time.Minute)
		minute := time.Minute
		a.tell(u0, word{state: stateDraining, grace: &minute})
		pass(10 * time.Second)
		release := b.door.hang() // or it may be the first to write that
		<-d.waits
		release()
		synctest.Wait()
		b.tell(u0, word{state: stateReady})
		b.tell(u0, word{state: stateReady, reason: "the new version is bad"})
		close(d.wait)
		pass(10 * time.Second)
		a.wantState(u0, stateReady, "on the node that closed it")
		b.wantState(u0, stateReady, "on the node that was told")
	})
}

// A node that is about to end says so as soon as nobody is there, so that it can be killed; and takes it back if
// somebody comes after all.
func TestNodeMayBeKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		b.ends()
		a.drain(u0)
		pass(time.Hour)
		a.wantWait(u0, "it has 1 session", "while somebody is connected")
		hangUp()
		empty := func() (bool, error) { return b.mayBeKilled(), nil }
		if ok, _ := b.await(t.Context(), 10*time.Second, empty); !ok {
			t.Fatal("it does not say that it may be killed")
		}
		_, hangUp = b.socket(token)
		pass(5 * time.Minute)
		a.wantWait(u0, "it has 1 session", "when somebody has come back")
		hangUp()
		if ok, _ := b.await(t.Context(), 10*time.Second, empty); !ok {
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
		v := newVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.door.vault.mu.Lock()
		v.values[nodeKey("other")] = []byte("{")
		a.door.vault.mu.Unlock()
		pass(time.Minute)
		a.ends()
		told := func() bool { return strings.Contains(string(v.value(nodeKey(a.name))), `"left":true`) }
		awaits := func(c *caddyNode) bool {
			ok, _ := c.await(t.Context(), 10*time.Second, func() (bool, error) { return c.mayBeKilled(), nil })
			return ok
		}
		if ok := awaits(a); !ok || !told() {
			t.Errorf("it may be killed: %v; the others know: %v", ok, told())
		}
		b := startNode(t, v)
		pass(time.Minute)
		b.door.fail(errors.New("disk full"))
		b.ends()
		if !awaits(b) {
			t.Error("it waits for a storage that fails")
		}
	})
}

// A drain that began before the process did is not told of as one that begins.
func TestOldDrainDoesNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		startNode(t, v).drain(u0)
		s := newTestSelection(testPool(3))
		var mu sync.Mutex
		var raised []string
		s.raise = func(name string, data map[string]any) {
			mu.Lock()
			defer mu.Unlock()
			raised = append(raised, name+" "+data["upstream"].(string))
		}
		d := v.door()
		b := makeNode(t, d, s, testPool(3))
		s.join(b.node, d)
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
	v := newVault()
	a, b := startNode(t, v), startNode(t, v)
	soon(t, "read of", func() bool { return !errors.Is(a.giveUp(t.Context(), b.name, false), errUnknownNode) })
	for range 100 {
		if err := a.giveUp(t.Context(), b.name, false); err != nil {
			t.Fatal(err)
		}
		a.exchange(t.Context(), a.used)
	}
}
