// This file tests nodes whose storage hangs, fails, is closed, loses what it held or brings back old records.

package cluster

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

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// startTricked starts a node behind such a door.
func startTricked(t *testing.T, d *clustertest.Trick, upstreams int) *caddyNode {
	t.Helper()
	pool := testPool(upstreams)
	c := makeNode(t, d, newTestPolicy(pool), pool)
	c.door = d.Door
	c.s.join(c.Cluster, d)
	return c
}

// A node retires from a storage when nothing is there to tell of. The storage of a config that is just loading is not
// forgotten with it.
func TestRetiresWhileAConfigLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_ = a.s.Cleanup() // a config without the policy
		next := v.Door()  // storage file_system makes a new one for every config
		time.AfterFunc(3*time.Second, next.Hang())
		a.load(next, a.pool) // waits for the first read, while the node retires
		pass(10 * time.Second)
		b.drain(u0)
		pass(10 * time.Second)
		a.wantNoVisit(u0, "marked through another node")
		if err := a.setDrain(t.Context(), "u1:80", record.Request{State: api.StateDraining}); err != nil {
			t.Error("an operator hears: ", err)
		}
	})
}

// A write that hangs in one storage holds up nothing in the next.
func TestHungWriteAndAnotherStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		hang := make(chan struct{})
		var hangs atomic.Bool
		a := startTricked(t, &clustertest.Trick{Door: one.Door(), OnStore: func() error {
			if hangs.Load() {
				<-hang
			}
			return nil
		}}, 3)
		b := startNode(t, two)
		pass(time.Minute)
		hangs.Store(true)
		pass(13 * time.Second) // a report is due
		a.load(two.Door(), a.pool)()
		pass(5 * time.Second)
		if !two.Holds(record.NodeKey(a.name)) {
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
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		release := a.door.Hang()
		if err := a.setDrain(t.Context(), u0, record.Request{State: api.StateDraining}); !errors.Is(err, store.ErrUnanswered) {
			t.Fatal(err)
		}
		pass(time.Minute)
		b.drain(u0) // the operator goes to the other node
		pass(time.Minute)
		b.tell(u0, record.Request{State: api.StateReady})
		pass(10 * time.Minute)
		release()
		pass(10 * time.Second)
		b.wantState(u0, api.StateReady, "when the word that hung has come late")
	})
}

// A report that is not there says nothing: its node may be alive.
func TestMissingReport(t *testing.T) {
	var unmounted atomic.Bool
	for name, lose := range map[string]func(b *caddyNode, before map[string][]byte){
		"the folder is empty": func(*caddyNode, map[string][]byte) { unmounted.Store(true) },
		"rolled back": func(b *caddyNode, before map[string][]byte) {
			b.door.Fail(errors.New("no route to host"))
			b.door.Vault.Lock()
			b.door.Values = before
			b.door.Vault.Unlock()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				unmounted.Store(false)
				a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnList: func(string) error {
					if unmounted.Load() {
						return fs.ErrNotExist
					}
					return nil
				}}, 3)
				pass(time.Minute)
				v.Lock()
				before := maps.Clone(v.Values)
				v.Unlock()
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
		v := clustertest.NewVault()
		startAs := func(p record.Process) *caddyNode {
			d, pool := v.Door(), testPool(3)
			c := makeNode(t, d, newTestPolicy(pool), pool)
			c.door, c.conf.Process = d, p
			c.s.join(c.Cluster, d)
			return c
		}
		there := startNode(t, v)
		startAs(record.Process{Boot: "one", Namespace: "n", PID: 1})
		dead := startAs(record.Process{Boot: "one", Namespace: "n", PID: 1 << 30, Started: "1"}) // no such process
		pass(time.Minute)
		there.drain(u0)
		pass(time.Minute)
		dead.kill()
		pass(5 * time.Minute)
		there.wantDrained(u0, true, "5 min after a node of another machine was killed")
		if v.Holds(record.NodeKey(dead.name)) {
			t.Error("its record is kept")
		}
	})
}

// Saying something of an upstream that nobody has begins its time anew.
func TestSaidAgainOfALonelyUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		a.drain("u2:80")
		a.load(a.door, testPool(2))()
		pass(lonelyTimeout - 10*time.Second)
		if err := askDrain(t.Context(), a.Cluster, "u2:80", record.Request{State: api.StateDraining, Reason: "not ready yet", Force: true}); err != nil {
			t.Fatal(err)
		}
		pass(30 * time.Second)
		a.load(a.door, testPool(3))()
		a.wantNoVisit("u2:80", "30 s after it was marked")
	})
}

// The last but one may have been marked a moment ago, through another node.
func TestLastTwoThroughTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNodeOn(t, "a", v.Door(), testPool(2)), startNodeOn(t, "b", v.Door(), testPool(2))
		pass(time.Minute)
		if err := askDrain(t.Context(), a.Cluster, "u0:80", record.Request{State: api.StateDraining}); err != nil {
			t.Fatal(err)
		}
		if err := askDrain(t.Context(), b.Cluster, "u1:80", record.Request{State: api.StateDraining}); err == nil {
			t.Error("both are marked without force")
		}
	})
}

// An upstream of another machine's own may come back with it, after hours.
func TestLoopbackOfAnotherMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		pool := testPool(2)
		pool[0] = "localhost:5006"
		a := startNodeOn(t, thisHost, v.Door(), pool)
		startNodeOn(t, "b", v.Door(), testPool(2))
		pass(time.Minute)
		if err := askDrain(t.Context(), a.Cluster, "localhost:5006", record.Request{State: api.StateDraining}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		a.Close()
		pass(2 * time.Hour)
		a = startNodeOn(t, thisHost, v.Door(), pool)
		a.wantNoVisit("localhost:5006", "after two hours of maintenance")
	})
}

// The first visitors of a config find the marks of its storage, also while the config before has not ended.
func TestFirstVisitorsWithAnotherStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := clustertest.NewVault(), clustertest.NewVault()
		a, other := startNode(t, one), startNode(t, two)
		other.drain(u0)
		pass(time.Minute + 500*time.Millisecond)
		end := a.load(two.Door(), a.pool)
		pass(150 * time.Millisecond)
		a.wantNoVisit(u0, "150 ms after the reload")
		end()
	})
}

// A drain that was taken back does not come back with a node that was cut off for hours.
func TestTakenBackStaysTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNodeOn(t, "a", v.Door(), testPool(2)), startNodeOn(t, "b", v.Door(), testPool(3))
		pass(time.Minute)
		a.drain("u2:80")
		pass(time.Minute)
		b.door.Fail(errors.New("no route to host"))
		pass(time.Minute)
		a.tell("u2:80", record.Request{State: api.StateReady})
		pass(4 * time.Hour)
		b.door.Fail(nil)
		pass(time.Minute)
		b.wantState("u2:80", api.StateReady, "when it is back")
	})
}

// A node that cannot read the others' reports forgets nothing of their upstreams.
func TestForgetsNothingWithoutReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		b := startNodeOn(t, "b", v.Door(), testPool(3))
		startTricked(t, &clustertest.Trick{Door: v.Door(), OnList: func(prefix string) error {
			if strings.HasPrefix(prefix+"/", store.NodesFolder) {
				return errors.New("permission denied")
			}
			return nil
		}}, 2)
		pass(time.Minute)
		b.drain("u2:80")
		pass(lonelyTimeout - 5*time.Second)
		b.kill()
		pass(20 * time.Second)
		b = startNodeOn(t, "b", v.Door(), testPool(3))
		b.wantNoVisit("u2:80", "after a restart of 20 s")
	})
}

// Whoever says the same again and again does not keep a node from reading what others say.
func TestSaidAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		wait := func(string) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		}
		a, b := startTricked(t, &clustertest.Trick{Door: v.Door(), OnList: wait, OnLoad: wait}, 3), startNode(t, v)
		pass(time.Minute)
		ctx, stop := context.WithCancel(t.Context())
		var saying sync.WaitGroup
		saying.Go(func() {
			for ctx.Err() == nil {
				_ = a.setDrain(context.Background(), "u1:80", record.Request{State: api.StateDraining})
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
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		v.Lock()
		v.Values[record.NodeKey("feedfeed")] = []byte("{bro")
		v.Unlock()
		pass(10 * time.Minute)
		if got := a.storageErrors["load"].Load(); got <= 3 { // what the alert in examples/ asks for
			t.Errorf("%d failures to load are counted", got)
		}
		if got := a.Self().Storage; !strings.Contains(got, record.NodeKey("feedfeed")) {
			t.Errorf("the node tells of its storage: %q", got)
		}
		v.Lock()
		delete(v.Values, record.NodeKey("feedfeed"))
		v.Unlock()
		pass(5 * time.Second)
		if got := a.Self().Storage; got != "" {
			t.Errorf("with the record deleted the node tells of its storage: %q", got)
		}
	})
}

// Who has heard that an upstream is drained does not hear it again when the storage was away for a while, and is reminded
// every hour all the same; but does hear it again if somebody was there meanwhile.
func TestDrainedIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var raised atomic.Int64
		pool, d := testPool(3), clustertest.NewVault().Door()
		s := newTestPolicy(pool)
		s.raise = func(event string, _ map[string]any) {
			if event == eventDrained {
				raised.Add(1)
			}
		}
		a := makeNode(t, d, s, pool)
		a.door = d
		s.join(a.Cluster, d)
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
			d.Fail(errors.New("no route to host"))
			pass(10 * time.Second)
			a.wantDrained(u0, false, "while the storage fails")
			meanwhile()
			d.Fail(nil)
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
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := a.socket(a.visitAt(u0))
		for i := range 3 {
			before := a.door
			a.door = v.Door()
			a.runs(a.door)
			if i == 0 {
				a.ServersStopped() // those of a config without a policy tell nobody
			}
			before.Fail(errClosed)
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
func hasLeft(v *clustertest.Vault, c *caddyNode) bool {
	return strings.Contains(string(v.Value(record.NodeKey(c.name))), `"left":true`)
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
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		d := clustertest.NewVault().Door()
		d.Fail(errClosed)
		failed := newTestPolicyWith(a.s.table, a.pool)
		a.Attach(failed, d)
		_ = a.Detach(failed)
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
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		_, _ = a.socket(a.visitAt(u0)) // which nobody waits for
		a.ends()
		pass(time.Second)
		a.ServersStopped()
		last := string(v.Value(record.NodeKey(a.name)))
		a.door.Fail(errClosed)
		_ = a.s.Cleanup()
		a.Close()
		pass(time.Minute)
		if !hasLeft(v, a) || string(v.Value(record.NodeKey(a.name))) != last {
			t.Errorf("the last report is %s, after %s", v.Value(record.NodeKey(a.name)), last)
		}
		wantNoTrouble(t, a)
	})
}

// A storage that hangs is told of as one that fails, once.
func TestHangingStorageIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		release := a.door.Hang()
		pass(10 * time.Minute)
		if got := a.logs.FilterMessageSnippet("the storage fails").Len(); got != 1 {
			t.Errorf("it is logged %d times, want once", got)
		}
		if got := a.Self().Storage; !strings.Contains(got, "has not answered") {
			t.Errorf("the node tells of its storage: %q", got)
		}
		if a.storageErrors["load"].Load() <= 3 { // what the alert in examples/ asks for
			t.Error("no metric tells of it")
		}
		release()
		pass(10 * time.Second)
		if got := a.logs.FilterMessageSnippet("well again").Len(); got != 1 || a.Self().Storage != "" {
			t.Errorf("that it is over is logged %d times, want once; the node tells of its storage: %q", got, a.Self().Storage)
		}
	})
}

// A storage that can be read but not written is told of: nobody else knows of this node.
func TestStorageThatCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		startNode(t, v)
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnStore: func() error { return errors.New("read-only file system") }}, 3)
		for range 20 {
			pass(7 * time.Second)
			if got := a.Self().Storage; !strings.Contains(got, "read-only") {
				t.Fatalf("the node tells of its storage: %q", got)
			}
		}
		if got := a.logs.FilterMessageSnippet("the storage fails").Len(); got != 1 {
			t.Errorf("it is logged %d times, want once", got)
		}
		a.wantState(u0, api.StateReady, "with marks that can be read")
	})
}

// Many upstreams before a storage that takes its time hold up neither the start nor what nodes tell each other.
func TestManyUpstreamsAndASlowStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		const upstreams = 400
		slow := func(string) error {
			time.Sleep(20 * time.Millisecond)
			return nil
		}
		for i := range upstreams { // each was drained once
			name := testPool(upstreams)[i]
			m := record.Request{State: api.StateReady}.Record(nil, name, "elsewhere", 0)
			if err := store.Put(t.Context(), v.Door(), record.DrainKey(name), m); err != nil {
				t.Fatal(err)
			}
		}
		m := record.Request{State: api.StateDraining}.Record(nil, u0, "elsewhere", 0)
		if err := store.Put(t.Context(), v.Door(), record.DrainKey(u0), m); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		a := startTricked(t, &clustertest.Trick{Door: v.Door(), OnLoad: slow}, upstreams)
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
