// This file tests nodes whose storage hangs, fails, is closed, loses what it held or brings back old records.

package caddybokeh

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// trick is a door that plays tricks: each of its hooks is called before the door's own method, where it is not nil.
type trick struct {
	*door
	list, load func(key string) error
	store      func() error
	stored     func() error // what the caller hears of a write that worked
}

func call[A any](hook func(A) error, arg A) error {
	if hook == nil {
		return nil
	}
	return hook(arg)
}

func (d *trick) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	if err := call(d.list, prefix); err != nil {
		return nil, err
	}
	return d.door.List(ctx, prefix, recursive)
}

func (d *trick) Load(ctx context.Context, key string) ([]byte, error) {
	if err := call(d.load, key); err != nil {
		return nil, err
	}
	return d.door.Load(ctx, key)
}

func (d *trick) Store(ctx context.Context, key string, value []byte) error {
	if d.store != nil {
		if err := d.store(); err != nil {
			return err
		}
	}
	if err := d.door.Store(ctx, key, value); err != nil || d.stored == nil {
		return err
	}
	return d.stored()
}

// startTricked starts a node behind such a door.
func startTricked(t *testing.T, d *trick, upstreams int) *caddyNode {
	t.Helper()
	pool := testPool(upstreams)
	c := makeNode(t, d, newTestSelection(pool), pool)
	c.door = d.door
	c.s.join(c.node, d)
	return c
}

// A node retires from a storage when nothing is there to tell of. The storage of a config that is just loading is not
// forgotten with it.
func TestRetiresWhileAConfigLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_ = a.s.Cleanup() // a config without the policy
		next := v.door()  // storage file_system makes a new one for every config
		time.AfterFunc(3*time.Second, next.hang())
		a.load(next, a.pool) // waits for the first read, while the node retires
		pass(10 * time.Second)
		b.drain(u0)
		pass(10 * time.Second)
		a.wantNoVisit(u0, "marked through another node")
		if err := a.say(t.Context(), "u1:80", word{state: stateDraining}); err != nil {
			t.Error("an operator hears: ", err)
		}
	})
}

// A write that hangs in one storage holds up nothing in the next.
func TestHungWriteAndAnotherStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		hang := make(chan struct{})
		var hangs atomic.Bool
		a := startTricked(t, &trick{door: one.door(), store: func() error {
			if hangs.Load() {
				<-hang
			}
			return nil
		}}, 3)
		b := startNode(t, two)
		pass(time.Minute)
		hangs.Store(true)
		pass(13 * time.Second) // a report is due
		a.load(two.door(), a.pool)()
		pass(5 * time.Second)
		if !two.holds(nodeKey(a.name)) {
			t.Error("it does not report in the next storage")
		}
		b.drain(u0)
		pass(6 * time.Second)
		a.wantNoVisit(u0, "6 s after another node was told")
		close(hang)
		pass(time.Second)
	})
}

// What an operator said to a storage that hung, and was told that nobody knows, does not come after what was said since.
func TestHungWordIsNotTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		release := a.door.hang()
		if err := a.say(t.Context(), u0, word{state: stateDraining}); !errors.Is(err, errUnanswered) {
			t.Fatal(err)
		}
		pass(time.Minute)
		b.drain(u0) // the operator goes to the other node
		pass(time.Minute)
		b.tell(u0, word{state: stateReady})
		pass(10 * time.Minute)
		release()
		pass(10 * time.Second)
		b.wantState(u0, stateReady, "when the word that hung has come late")
	})
}

// A report that is not there says nothing: its node may be alive.
func TestMissingReport(t *testing.T) {
	var unmounted atomic.Bool
	for name, lose := range map[string]func(b *caddyNode, before map[string][]byte){
		"the folder is empty": func(*caddyNode, map[string][]byte) { unmounted.Store(true) },
		"rolled back": func(b *caddyNode, before map[string][]byte) {
			b.door.fail(errors.New("no route to host"))
			b.door.vault.mu.Lock()
			b.door.values = before
			b.door.vault.mu.Unlock()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVault()
				unmounted.Store(false)
				a := startTricked(t, &trick{door: v.door(), list: func(string) error {
					if unmounted.Load() {
						return fs.ErrNotExist
					}
					return nil
				}}, 3)
				pass(time.Minute)
				v.mu.Lock()
				before := maps.Clone(v.values)
				v.mu.Unlock()
				b := startNode(t, v)
				pass(time.Minute)
				_, hangUp := b.socket(b.visitAt(u0))
				defer hangUp()
				a.drain(u0)
				pass(time.Minute)
				lose(b, before)
				for range 30 {
					pass(10 * time.Second)
					a.wantDrained(u0, false, "with a websocket at the other node, which is alive")
				}
			})
		})
	}
}

// Only nodes of the same machine see that a process is gone. They tell the others before they forget it.
func TestGoneIsToldToAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		startAs := func(p process) *caddyNode {
			d, pool := v.door(), testPool(3)
			c := makeNode(t, d, newTestSelection(pool), pool)
			c.door, c.process = d, p
			c.s.join(c.node, d)
			return c
		}
		there := startNode(t, v)
		startAs(process{Boot: "one", Namespace: "n", PID: 1})
		dead := startAs(process{Boot: "one", Namespace: "n", PID: 1 << 30, Started: "1"}) // no such process
		pass(time.Minute)
		there.drain(u0)
		pass(time.Minute)
		dead.kill()
		pass(5 * time.Minute)
		there.wantDrained(u0, true, "5 min after a node of another machine was killed")
		if v.holds(nodeKey(dead.name)) {
			t.Error("its record is kept")
		}
	})
}

// Saying something of an upstream that nobody has begins its time anew.
func TestSaidAgainOfALonelyUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		pass(time.Minute)
		a.drain("u2:80")
		a.load(a.door, testPool(2))()
		pass(lonelyFor - 10*time.Second)
		if _, err := a.node.drain(t.Context(), "u2:80", word{state: stateDraining, reason: "not ready yet"}, true); err != nil {
			t.Fatal(err)
		}
		pass(30 * time.Second)
		a.load(a.door, testPool(3))()
		a.wantNoVisit("u2:80", "30 s after it was marked")
	})
}

// A node that does not know its pool yet may have the upstream that another one's config drains.
func TestConfigDrainsAndAPoolIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		s := newTestSelection(nil)
		discovers(s)
		d := v.door()
		b := makeNode(t, d, s, nil)
		s.join(b.node, d)
		pass(time.Minute)
		a.s.members.drain([]string{u0})
		pass(time.Minute)
		a.wantDrained(u0, false, "while another node's pool is unknown")
	})
}

// The last but one may have been marked a moment ago, through another node.
func TestLastTwoThroughTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNodeOn(t, "a", v.door(), testPool(2)), startNodeOn(t, "b", v.door(), testPool(2))
		pass(time.Minute)
		if _, err := a.node.drain(t.Context(), "u0:80", word{state: stateDraining}, false); err != nil {
			t.Fatal(err)
		}
		if _, err := b.node.drain(t.Context(), "u1:80", word{state: stateDraining}, false); err == nil {
			t.Error("both are marked without force")
		}
	})
}

// An upstream of another machine's own may come back with it, after hours.
func TestLoopbackOfAnotherMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		pool := testPool(2)
		pool[0].Dial = "localhost:5006"
		a := startNodeOn(t, hostname(), v.door(), pool)
		startNodeOn(t, "b", v.door(), testPool(2))
		pass(time.Minute)
		if _, err := a.node.drain(t.Context(), "localhost:5006", word{state: stateDraining}, false); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		a.exit()
		pass(2 * time.Hour)
		a = startNodeOn(t, hostname(), v.door(), pool)
		a.wantNoVisit("localhost:5006", "after two hours of maintenance")
	})
}

// Nobody is told that nothing has changed by a storage that may have written.
func TestStoreThatFailsMayHaveWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lose atomic.Bool
		a := startTricked(t, &trick{door: newVault().door(), stored: func() error {
			if lose.Load() {
				return errors.New("i/o timeout")
			}
			return nil
		}}, 3)
		pass(time.Minute)
		lose.Store(true)
		said := storageError(a.say(t.Context(), u0, word{state: stateDraining})).Error()
		if !strings.Contains(said, "not known whether") {
			t.Error("the operator hears: ", said)
		}
		lose.Store(false)
		pass(5 * time.Second)
		a.wantNoVisit(u0, "5 s later")
	})
}

// The first visitors of a config find the marks of its storage, also while the config before has not ended.
func TestFirstVisitorsWithAnotherStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newVault(), newVault()
		a, other := startNode(t, one), startNode(t, two)
		other.drain(u0)
		pass(time.Minute + 500*time.Millisecond)
		end := a.load(two.door(), a.pool)
		pass(150 * time.Millisecond)
		a.wantNoVisit(u0, "150 ms after the reload")
		end()
	})
}

// A drain that was taken back does not come back with a node that was cut off for hours.
func TestTakenBackStaysTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNodeOn(t, "a", v.door(), testPool(2)), startNodeOn(t, "b", v.door(), testPool(3))
		pass(time.Minute)
		a.drain("u2:80")
		pass(time.Minute)
		b.door.fail(errors.New("no route to host"))
		pass(time.Minute)
		a.tell("u2:80", word{state: stateReady})
		pass(4 * time.Hour)
		b.door.fail(nil)
		pass(time.Minute)
		b.wantState("u2:80", stateReady, "when it is back")
	})
}

// A node that cannot read the others' reports forgets nothing of their upstreams.
func TestForgetsNothingWithoutReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		b := startNodeOn(t, "b", v.door(), testPool(3))
		startTricked(t, &trick{door: v.door(), list: func(prefix string) error {
			if strings.HasPrefix(prefix+"/", nodesFolder) {
				return errors.New("permission denied")
			}
			return nil
		}}, 2)
		pass(time.Minute)
		b.drain("u2:80")
		pass(lonelyFor - 5*time.Second)
		b.kill()
		pass(20 * time.Second)
		b = startNodeOn(t, "b", v.door(), testPool(3))
		b.wantNoVisit("u2:80", "after a restart of 20 s")
	})
}

// Whoever says the same again and again does not keep a node from reading what others say.
func TestSaidAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		wait := func(string) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		}
		a, b := startTricked(t, &trick{door: v.door(), list: wait, load: wait}, 3), startNode(t, v)
		pass(time.Minute)
		ctx, stop := context.WithCancel(t.Context())
		var saying sync.WaitGroup
		saying.Go(func() {
			for ctx.Err() == nil {
				_ = a.say(context.Background(), "u1:80", word{state: stateDraining})
				time.Sleep(100 * time.Millisecond)
			}
		})
		pass(10 * time.Second)
		b.drain(u0)
		pass(10 * time.Second)
		a.wantNoVisit(u0, "10 s after another node was told")
		stop()
		saying.Wait()
		a.kill()
		pass(5 * time.Second) // what it was doing takes its time
	})
}

// A record that is broken stays so until somebody deletes it, so it is told of, and counted every time.
func TestBrokenRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		pass(time.Minute)
		v.mu.Lock()
		v.values[nodeKey("feedfeed")] = []byte("{bro")
		v.mu.Unlock()
		pass(10 * time.Minute)
		if got := a.storageErrors["load"].Load(); got <= 3 { // what the alert in examples/ asks for
			t.Errorf("%d failures to load are counted", got)
		}
		if got := a.node.status().Storage; !strings.Contains(got, nodeKey("feedfeed")) {
			t.Errorf("the node tells of its storage: %q", got)
		}
		v.mu.Lock()
		delete(v.values, nodeKey("feedfeed"))
		v.mu.Unlock()
		pass(5 * time.Second)
		if got := a.node.status().Storage; got != "" {
			t.Errorf("with the record deleted the node tells of its storage: %q", got)
		}
	})
}

// Who has heard that an upstream is drained does not hear it again when the storage was away for a while, and is reminded
// every hour all the same; but does hear it again if somebody was there meanwhile.
func TestDrainedIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var raised atomic.Int64
		pool, d := testPool(3), newVault().door()
		s := newTestSelection(pool)
		s.raise = func(event string, _ map[string]any) {
			if event == eventDrained {
				raised.Add(1)
			}
		}
		a := makeNode(t, d, s, pool)
		a.door = d
		s.join(a.node, d)
		want := func(when string, told, reminded int) {
			t.Helper()
			a.wantDrained(u0, true, when)
			if got := a.logs.FilterMessageSnippet("upstream is drained").Len(); got != told || raised.Load() != int64(told) {
				t.Errorf("%s: it was logged %d times that it is drained, and raised %d times, want %d", when, got, raised.Load(), told)
			}
			if got := a.logs.FilterMessageSnippet("drained for long").Len(); got != reminded {
				t.Errorf("%s: %d reminders, want %d", when, got, reminded)
			}
		}
		outage := func(meanwhile func()) {
			d.fail(errors.New("no route to host"))
			pass(10 * time.Second)
			a.wantDrained(u0, false, "while the storage fails")
			meanwhile()
			d.fail(nil)
			pass(50 * time.Second)
		}
		token := a.visitAt(u0)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		want("a minute after it was marked", 1, 0)
		outage(func() {})
		want("when the storage is back", 1, 0)
		pass(57 * time.Minute)
		want("before an hour is over", 1, 0)
		pass(2 * time.Minute)
		want("when the hour is over", 1, 1)
		pass(time.Hour)
		want("when another is over", 1, 2)
		outage(func() {
			home, hangUp := a.socket(token)
			if home != u0 {
				t.Fatal("while nothing is certain the socket went to ", home)
			}
			hangUp()
		})
		want("when somebody was there meanwhile", 2, 2)
	})
}

// A reload closes the storage of the config before. While sessions live, the node goes on in that of the config that runs,
// whether that has a policy or not, and whoever asks it hears no error.
func TestConfigsWithoutAPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := a.socket(a.visitAt(u0))
		for i := range 3 {
			before := a.door
			a.door = v.door()
			a.runs(a.door)
			if i == 0 {
				a.serversStopped() // those of a config without a policy tell nobody
			}
			before.fail(errClosed)
			if i == 0 {
				_ = a.s.Cleanup()
			}
			pass(30 * time.Second)
		}
		b.drain(u0)
		pass(10 * time.Second)
		b.wantWait(u0, "it has 1 session", "with a session at a node without a policy")
		hangUp()
		pass(40 * time.Second)
		if !hasLeft(v, a) {
			t.Error("with nothing left to tell of, it does not say farewell")
		}
		pass(time.Minute)
		b.wantDrained(u0, true, "when the session has ended")
		wantNoTrouble(t, a)
	})
}

var errClosed = errors.New("the client is closed")

// hasLeft says whether the last report of a node is its farewell.
func hasLeft(v *vault, c *caddyNode) bool {
	return strings.Contains(string(v.value(nodeKey(c.name))), `"left":true`)
}

// wantNoTrouble checks that nothing of the storage was logged or counted.
func wantNoTrouble(t *testing.T, c *caddyNode) {
	t.Helper()
	if logged := c.logs.FilterMessageSnippet("storage").All(); len(logged) > 0 {
		t.Error("logged: ", logged)
	}
	for operation, failures := range c.storageErrors {
		if got := failures.Load(); got > 0 {
			t.Errorf("%d failures to %s are counted", got, operation)
		}
	}
}

// A config that fails is cleaned up with its storage. Nobody tries to read that any more.
func TestStorageOfAFailedConfigIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		pass(time.Minute)
		d := newVault().door()
		d.fail(errClosed)
		failed := newTestSelectionWith(a.s.table, a.pool)
		a.attach(failed, d)
		_ = a.detach(failed)
		pass(time.Minute)
		if logged := a.logs.FilterMessageSnippet("storage").All(); len(logged) > 0 {
			t.Error("logged: ", logged)
		}
		if got := a.storageErrors["list"].Load(); got > 10 {
			t.Errorf("%d failures to list are counted", got)
		}
	})
}

// The farewell is written when the servers have stopped: the storage may be closed before a policy is cleaned up.
func TestFarewellBeforeTheStorageCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		pass(time.Minute)
		_, _ = a.socket(a.visitAt(u0)) // which nobody waits for
		a.ends()
		pass(time.Second)
		a.serversStopped()
		last := string(v.value(nodeKey(a.name)))
		a.door.fail(errClosed)
		_ = a.s.Cleanup()
		a.exit()
		pass(time.Minute)
		if !hasLeft(v, a) || string(v.value(nodeKey(a.name))) != last {
			t.Errorf("the last report is %s, after %s", v.value(nodeKey(a.name)), last)
		}
		wantNoTrouble(t, a)
	})
}

// A storage that hangs is told of as one that fails, once.
func TestHangingStorageIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		pass(time.Minute)
		release := a.door.hang()
		pass(10 * time.Minute)
		if got := a.logs.FilterMessageSnippet("the storage fails").Len(); got != 1 {
			t.Errorf("it is logged %d times, want once", got)
		}
		if got := a.node.status().Storage; !strings.Contains(got, "has not answered") {
			t.Errorf("the node tells of its storage: %q", got)
		}
		if a.storageErrors["load"].Load() <= 3 { // what the alert in examples/ asks for
			t.Error("no metric tells of it")
		}
		release()
		pass(10 * time.Second)
		if got := a.logs.FilterMessageSnippet("well again").Len(); got != 1 || a.node.status().Storage != "" {
			t.Errorf("that it is over is logged %d times, want once; the node tells of its storage: %q", got, a.node.status().Storage)
		}
	})
}

// A storage that can be read but not written is told of: nobody else knows of this node.
func TestStorageThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		startNode(t, v)
		a := startTricked(t, &trick{door: v.door(), store: func() error { return errors.New("read-only file system") }}, 3)
		for range 20 {
			pass(7 * time.Second)
			if got := a.node.status().Storage; !strings.Contains(got, "read-only") {
				t.Fatalf("the node tells of its storage: %q", got)
			}
		}
		if got := a.logs.FilterMessageSnippet("the storage fails").Len(); got != 1 {
			t.Errorf("it is logged %d times, want once", got)
		}
		a.wantState(u0, stateReady, "with marks that can be read")
	})
}

// Many upstreams before a storage that takes its time hold up neither the start nor what nodes tell each other.
func TestManyUpstreamsAndASlowStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		const upstreams = 400
		slow := func(string) error {
			time.Sleep(20 * time.Millisecond)
			return nil
		}
		for i := range upstreams { // each was drained once
			name := testPool(upstreams)[i].Dial
			m := word{state: stateReady}.follows(nil, name, "elsewhere", 0)
			if err := storeRecord(t.Context(), v.door(), markKey(name), m); err != nil {
				t.Fatal(err)
			}
		}
		m := word{state: stateDraining}.follows(nil, u0, "elsewhere", 0)
		if err := storeRecord(t.Context(), v.door(), markKey(u0), m); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		a := startTricked(t, &trick{door: v.door(), load: slow}, upstreams)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the start takes %v", took)
		}
		for range 50 {
			if home, _ := a.visit(); home == u0 {
				t.Fatal("a new session went to the draining upstream")
			}
		}
		pass(time.Minute)
		a.wantDrained(u0, true, "after a minute")
		if logged := a.logs.FilterMessageSnippet("storage").All(); len(logged) > 0 {
			t.Error("logged: ", logged)
		}
	})
}
