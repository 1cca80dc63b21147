// This file tests what nodes tell each other, and that an upstream is called drained only when it certainly is.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// caddyNode is a Caddy with one policy, as far as it can be had without one.
type caddyNode struct {
	*Cluster
	t    *testing.T
	s    *testPolicy
	pool []string
	door *clustertest.Door
	logs *observer.ObservedLogs
}

// startNode starts a node on a host of its own, with a pool of three.
func startNode(t *testing.T, v *clustertest.Vault) *caddyNode {
	t.Helper()
	return startNodeOn(t, store.RandomName(), v.Door(), testPool(3))
}

func startNodeOn(t *testing.T, host string, d *clustertest.Door, pool []string) *caddyNode {
	t.Helper()
	c := makeNode(t, d, newTestPolicy(pool), pool)
	c.conf.Host, c.clock, c.door = host, host, d
	c.s.join(c.Cluster, d)
	return c
}

// makeNode makes a node with a policy, which does not know each other yet.
func makeNode(t *testing.T, st store.Storage, s *testPolicy, pool []string) *caddyNode {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	n := New(context.Background(), testConfig(s.table, func() store.Storage { return st }, zap.New(core)))
	n.conf.Host, n.conf.Process = store.RandomName(), record.Process{}
	n.clock = n.conf.Host
	c := &caddyNode{Cluster: n, t: t, s: s, pool: pool, logs: logs}
	t.Cleanup(c.kill)
	return c
}

// runs makes the node believe that a config with the given storage runs.
func (c *caddyNode) runs(st store.Storage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conf.Running = func() store.Storage { return st }
}

// load loads a config with another pool or storage; what it returns ends the one before.
func (c *caddyNode) load(st store.Storage, pool []string) (end func()) {
	before := c.s
	c.s, c.pool = newTestPolicyWith(before.table, pool), pool
	c.door, _ = st.(*clustertest.Door)
	c.s.join(c.Cluster, st)
	c.runs(st)
	return func() { _ = before.Cleanup() }
}

// ends makes the node believe that its process is about to end, which takes its time.
func (c *caddyNode) ends() {
	c.runs(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conf.Exiting = func() bool { return true }
}

// kill ends a node as kill -9 does.
func (c *caddyNode) kill() { c.loops.stop() }

func (c *caddyNode) knowsMarks() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.drains) > 0
}

// tell says something of an upstream to the node.
func (c *caddyNode) tell(addr string, w record.Request) {
	c.t.Helper()
	if err := c.setDrain(c.t.Context(), addr, w); err != nil {
		c.t.Fatal(err)
	}
}

func (c *caddyNode) drain(addr string) {
	c.t.Helper()
	c.tell(addr, record.Request{State: api.StateDraining})
}

// status returns the verdict on an upstream, and what it waits for.
func (c *caddyNode) status(addr string) (drained bool, waits string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for u, v := range c.verdicts {
		if u.Name == addr {
			return v.Drained, fmt.Sprint(v.Waits)
		}
	}
	return false, "it does not drain"
}

// wantDrained checks the verdict on an upstream.
func (c *caddyNode) wantDrained(addr string, want bool, when string) {
	c.t.Helper()
	if drained, waits := c.status(addr); drained != want {
		c.t.Errorf("%s: drained is %v, want %v; it waits for %s", when, drained, want, waits)
	}
}

// wantWait checks that an upstream is not drained, and that the reason is told.
func (c *caddyNode) wantWait(addr, why, when string) {
	c.t.Helper()
	if drained, waits := c.status(addr); drained || !strings.Contains(waits, why) {
		c.t.Errorf("%s: drained is %v; it waits for %s, want %q", when, drained, waits, why)
	}
}

// visit opens a page and says where it was made, and the token for its socket.
func (c *caddyNode) visit() (home, token string) {
	c.t.Helper()
	return c.s.page()
}

// visitAt visits until a page is made at addr.
func (c *caddyNode) visitAt(addr string) (token string) {
	c.t.Helper()
	for range 100 {
		if home, token := c.visit(); home == addr {
			return token
		}
	}
	c.t.Fatal("no visit is sent to ", addr)
	return ""
}

// socket opens a socket and returns where, and what closes it.
func (c *caddyNode) socket(token string) (addr string, hangUp func()) { return c.s.socket(token) }

func TestMarkHoldsOnEveryNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		a.drain(u0)
		for range 20 {
			if home, _ := a.visit(); home == u0 {
				t.Fatal("a new session went to the draining upstream on the node that was told")
			}
		}
		pass(5 * time.Second)
		for range 20 {
			if home, _ := b.visit(); home == u0 {
				t.Fatal("a new session went to the draining upstream through another node after 5 s")
			}
		}
		c := startNode(t, v)
		for range 20 {
			if home, _ := c.visit(); home == u0 {
				t.Fatal("a new session went to the draining upstream through a node that has just started")
			}
		}
		b.tell(u0, record.Request{State: api.StateReady})
		pass(5 * time.Second)
		for _, n := range []*caddyNode{a, b, c} {
			n.visitAt(u0)
		}
	})
}

func TestDrainedWhenAllNodesAreEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := b.socket(b.visitAt(u0))
		a.drain(u0)
		pass(time.Hour)
		a.wantWait(u0, b.name+" "+b.conf.Host+" it has 1 session", "with a session on the other node")
		hangUp()
		pass(32 * time.Second)
		a.wantDrained(u0, false, "when the session has just ended")
		pass(10 * time.Second)
		a.wantDrained(u0, true, "ten seconds later")
		b.wantDrained(u0, true, "on the other node")
		// Nodes that come, and nodes that go, change nothing.
		c := startNode(t, v)
		pass(10 * time.Second)
		a.wantDrained(u0, true, "with another node")
		c.wantDrained(u0, false, "at a node that has just started")
		pass(time.Minute)
		c.wantDrained(u0, true, "when it has settled")
		b.kill()
		pass(time.Minute)
		a.wantDrained(u0, true, "with a node that is missed")
	})
}

// A peer that reads the mark late may send a page after we have seen it empty.
func TestPeerThatReadsTheMarkLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		release := b.door.Hang()
		pass(3 * time.Second)
		a.drain(u0)
		pass(20 * time.Second)
		a.wantWait(u0, "it has not said that it has read the mark", "with a peer whose storage is slow")
		_, hangUp := b.socket(b.visitAt(u0))
		pass(20 * time.Second)
		a.wantWait(u0, "it has not said that it has read the mark", "after the peer sent a page")
		release()
		pass(5 * time.Second)
		a.wantWait(u0, "it has 1 session", "when the peer reports again")
		hangUp()
		pass(time.Minute)
		a.wantDrained(u0, true, "when that has ended")
	})
}

func TestPeerThatCannotReachTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		b.door.Fail(errors.New("no route to host"))
		a.drain(u0)
		pass(50 * time.Minute)
		a.wantWait(u0, b.name+" "+b.conf.Host+" it has not said that it has read the mark", "for as long as it may be alive")
		a.wantWait(u0, "if it is dead, say so", "for as long as it may be alive")
		if home, _ := b.visit(); home == "" {
			t.Error("traffic stopped")
		}
		if n := b.logs.FilterMessageSnippet("the storage fails").Len(); n != 1 {
			t.Errorf("it logged %d times that its storage fails", n)
		}
		b.wantDrained(u0, false, "at the node itself")
		b.door.Fail(nil)
		pass(time.Minute)
		if b.logs.FilterMessageSnippet("the storage is well again").Len() != 1 {
			t.Error("it did not log that its storage is well again")
		}
		a.wantDrained(u0, true, "when it is back")
	})
}

// What cannot be heard of is taken for dead after an hour, and what it had counts for as long as browsers come back.
func TestPeerIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, _ = b.socket(b.visitAt(u0))
		a.drain(u0)
		pass(time.Minute)
		b.kill()
		pass(59 * time.Minute)
		a.wantWait(u0, "it has not reported for", "before an hour is over")
		pass(time.Minute + 32*time.Second)
		a.wantDrained(u0, false, "while browsers may come back")
		pass(10 * time.Second)
		a.wantDrained(u0, true, "after that")
		pass(10 * time.Second) // others hear of it first
		if keys, _ := a.door.List(t.Context(), "caddy-bokeh/nodes", false); len(keys) != 2 {
			t.Errorf("reports of the dead are left: %v", keys)
		}
	})
}

// A node that ends in good order says so.
func TestPeerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := b.socket(b.visitAt(u0))
		a.drain(u0)
		pass(time.Minute)
		b.Detach(b.s)
		b.Close()
		hangUp()
		pass(20 * time.Second)
		a.wantWait(u0, "it is gone", "while browsers may come back")
		pass(25 * time.Second)
		a.wantDrained(u0, true, "after that")
	})
}

// Clocks ten minutes apart change nothing: nobody compares them.
func TestClocksApart(t *testing.T) {
	for _, apart := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			m := record.Request{State: api.StateDraining}.Record(nil, u0, "elsewhere", 0)
			m.Since = m.Since.Add(apart)
			if err := store.Put(t.Context(), b.door, record.DrainKey(u0), m); err != nil {
				t.Fatal(err)
			}
			pass(5 * time.Second)
			if home, _ := a.visit(); home == u0 {
				t.Error("the mark does not hold")
			}
			pass(time.Minute)
			a.wantDrained(u0, true, "with clocks apart")
		})
	}
}

// An operator hears that the storage fails, and nothing has changed.
func TestStorageFailsAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		a.door.Fail(errors.New("disk full"))
		if err := a.setDrain(t.Context(), u0, record.Request{State: api.StateDraining}); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("the operator hears %v", err)
		}
		a.visitAt(u0)
		a.door.Fail(nil)
		release := a.door.Hang()
		if err := a.setDrain(t.Context(), u0, record.Request{State: api.StateDraining}); err == nil || !strings.Contains(err.Error(), "has not answered") {
			t.Errorf("the operator hears %v", err)
		}
		a.visitAt(u0)
		release()
		pass(time.Second)
	})
}

// What the storage loses is not lost: only an operator takes a drain back.
func TestMarkIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		a.drain(u0)
		pass(time.Minute)
		v.Lock()
		clear(v.Values)
		v.Unlock()
		pass(time.Hour)
		if home, _ := a.visit(); home == u0 {
			t.Error("the mark is forgotten")
		}
		a.kill()
		a = startNodeOn(t, a.conf.Host, v.Door(), a.pool)
		if home, _ := a.visit(); home == u0 {
			t.Error("the mark was not written again, and a restart has forgotten it")
		}
		for broken, value := range map[string]string{"empty": "", "no JSON": "{", "another's": `{"id":"x","upstream":"u1:80","state":"ready"}`} {
			v.Lock()
			v.Values[record.DrainKey(u0)] = []byte(value)
			v.Unlock()
			pass(time.Minute)
			if home, _ := a.visit(); home == u0 {
				t.Errorf("%s: the mark is forgotten", broken)
			}
		}
	})
}

// A reload may change the storage. The marks go along; one that fails to load changes nothing.
func TestStorageIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := clustertest.NewVault(), clustertest.NewVault()
		a, b := startNode(t, before), startNode(t, before)
		a.drain(u0)
		_, hangUp := b.socket(b.visitAt("u1:80"))
		pass(time.Minute)
		stranger := startNode(t, after)
		stranger.drain("u2:80")
		pass(time.Minute)

		failed := newTestPolicyWith(a.s.table, a.pool)
		failed.join(a.Cluster, after.Door())
		pass(time.Minute)
		_ = failed.Cleanup()
		a.visitAt("u2:80")

		a.load(after.Door(), a.pool)()
		a.wantNoVisit(u0, "right after the reload")
		pass(5 * time.Second)
		for _, n := range []*caddyNode{a, stranger} {
			for range 20 {
				if home, _ := n.visit(); home != "u1:80" {
					t.Fatal("a new session went to", home, "though both storages have a mark")
				}
			}
		}
		a.tell("u1:80", record.Request{State: api.StateDraining})
		pass(time.Minute)
		a.wantWait("u1:80", "it has 1 session", "while a node has not changed the storage")

		b.load(after.Door(), b.pool)()
		hangUp()
		pass(time.Minute)
		a.wantDrained("u1:80", true, "when all have changed the storage")
	})
}

// The others know of a node as soon as its config runs.
func TestNodeReportsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		s := newTestPolicy(testPool(3))
		var running atomic.Bool
		d := v.Door()
		n := New(context.Background(), testConfig(s.table, func() store.Storage {
			if running.Load() {
				return d
			}
			return nil
		}, zap.NewNop()))
		s.join(n, d)
		pass(3 * time.Second)
		if v.Holds(record.NodeKey(n.name)) {
			t.Error("it reports though its config does not run")
		}
		running.Store(true)
		pass(200 * time.Millisecond)
		if !v.Holds(record.NodeKey(n.name)) {
			t.Error("it has not reported")
		}
		n.Close()
	})
}

// The next server at the address of one that was taken away is ready.
func TestMarkOfAnUpstreamThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNodeOn(t, "a", v.Door(), testPool(3)), startNodeOn(t, "b", v.Door(), testPool(2))
		a.drain("u2:80")
		pass(time.Hour)
		b.wantDrained("u2:80", true, "at a node that does not know it")
		a.load(a.door, testPool(2))()
		pass(9 * time.Minute)
		if !v.Holds(record.DrainKey("u2:80")) {
			t.Error("the mark is forgotten too early")
		}
		pass(2 * time.Minute)
		if v.Holds(record.DrainKey("u2:80")) || a.knowsMarks() || b.knowsMarks() {
			t.Error("the mark is not forgotten")
		}
	})
}

func TestNodesWithDifferentKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		b.mu.Lock() // with which the node asks for them
		b.s.keys = []string{"another"}
		b.mu.Unlock()
		pass(time.Minute)
		for _, n := range []*caddyNode{a, b} {
			if got := n.logs.FilterMessageSnippet("another node signs").Len(); got != 1 {
				t.Errorf("logged %d times that the keys differ", got)
			}
		}
	})
}

// A node that has said that it is gone signs nothing more: the next one may have another key, as after a restart with one that was changed.
func TestKeyOfANodeThatHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.Close()
		s, d := newTestPolicy(testPool(3)), v.Door()
		s.keys = []string{"another"}
		b := makeNode(t, d, s, testPool(3))
		b.door = d
		s.join(b.Cluster, d)
		for range 120 {
			pass(time.Second)
			if n := b.logs.FilterMessageSnippet("another node signs").Len(); n > 0 || !b.KeysAgree() {
				t.Fatalf("logged %d times that the keys differ, keys agree: %v", n, b.KeysAgree())
			}
		}
	})
}

// Nobody is cut without a grace period, nor when it is taken back, put off, or removed.
func TestGracePeriodTakenBack(t *testing.T) {
	hour, long, none := time.Hour, 10*time.Hour, time.Duration(0)
	for what, w := range map[string]record.Request{
		"taken back": {State: api.StateReady},
		"put off":    {State: api.StateDraining, Grace: &long},
		"removed":    {State: api.StateDraining, Grace: &none},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			token := b.visitAt(u0)
			_, _ = b.socket(token)
			a.tell(u0, record.Request{State: api.StateDraining, Grace: &hour})
			pass(50 * time.Minute)
			b.tell(u0, w)
			pass(time.Hour)
			if n := b.s.get(u0).Count(sessions.Connected); n != 1 {
				t.Errorf("%s: %d sockets are open", what, n)
			}
		})
	}
}

// What is said once more does not begin the grace period anew, also where only the reason is new.
func TestGracePeriodSaidOnceMore(t *testing.T) {
	hour := time.Hour
	for what, w := range map[string]record.Request{
		"the same":     {State: api.StateDraining},
		"a new reason": {State: api.StateDraining, Reason: "another"},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			_, _ = b.socket(b.visitAt(u0))
			a.tell(u0, record.Request{State: api.StateDraining, Grace: &hour})
			pass(50 * time.Minute)
			b.tell(u0, w)
			pass(5 * time.Minute)
			if n := b.s.get(u0).Count(sessions.Connected); n != 1 {
				t.Errorf("%s: before the hour is over %d sockets are open", what, n)
			}
			pass(6 * time.Minute)
			a.wantDrained(u0, true, what)
		})
	}
}

// A node that is starting has read no mark, and nobody has read of it: for a moment nothing new is called drained.
func TestDrainedNotWhileANodeIsStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Hour)
		b := startNode(t, v)
		v.Lock()
		delete(v.Values, record.NodeKey(b.name)) // as if its config were not running yet
		v.Unlock()
		a.drain(u0)
		_, hangUp := b.socket(b.visitAt(u0))
		for range 40 {
			pass(time.Second)
			a.wantDrained(u0, false, "with a session through the node that was starting")
		}
		hangUp()
		pass(time.Minute)
		a.wantDrained(u0, true, "when that has ended")
	})
}

// Who marks one of two upstreams, and who marks the other at the same time, are not both told that one is left.
func TestLastTwoAreMarkedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNodeOn(t, "a", clustertest.NewVault().Door(), testPool(2))
		pass(3 * time.Second)
		release := a.door.Hang()
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				errs[i] = askDrain(t.Context(), a.Cluster, fmt.Sprintf("u%d:80", i), record.Request{State: api.StateDraining})
			})
		}
		pass(time.Second)
		release()
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Errorf("of two that are marked at once: %v, %v", errs[0], errs[1])
		}
	})
}

// The grace period is not lost where a new reason comes through a node that has not read of it yet.
func TestGracePeriodThroughALateNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(3 * time.Second)
		hours := 8 * time.Hour
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &hours})
		b.tell(u0, record.Request{State: api.StateDraining, Reason: "new version"})
		pass(hours + time.Minute)
		if !a.s.get(u0).Drain.IsClosed() {
			t.Error("it is not closed")
		}
	})
}

// A config that is only validated leaves no trace among the nodes.
func TestValidatedConfigLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		s := newTestPolicy(testPool(3))
		n := New(context.Background(), testConfig(s.table, noStorage, zap.NewNop()))
		s.join(n, v.Door())
		pass(20 * time.Second)
		_ = s.Cleanup()
		pass(20 * time.Second)
		if keys, _ := v.Door().List(t.Context(), "caddy-bokeh/nodes", false); len(keys) != 1 {
			t.Errorf("there is a report: %v", keys)
		}
	})
}

// Who subscribes and is slow holds up nobody: what finds the queue full is lost, and that is logged once.
func TestSlowSubscriber(t *testing.T) {
	n := New(context.Background(), testConfig(newTestTable(), noStorage, zap.NewNop()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range maxEvents + 100 {
			n.Publish(eventDrained, nil)
		}
	}()
	select {
	case <-done:
	case <-time.After(hangs):
		t.Fatal("a full queue holds up who tells")
	}
	if got := n.lost.Load(); got != 100 {
		t.Errorf("%d events are lost, want 100", got)
	}
}
