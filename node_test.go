// This file tests what nodes tell each other, and that an upstream is called drained only when it certainly is.

package caddybokeh

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// vault is a storage that several nodes share.
type vault struct {
	mu     sync.Mutex // guards values
	values map[string][]byte
}

// door is one node's way to the vault.
type door struct {
	*vault
	mu     sync.Mutex // guards all below
	broken error
	shut   chan struct{} // what uses the door waits until this is closed
}

func newVault() *vault { return &vault{values: map[string][]byte{}} }

func (v *vault) value(key string) []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.values[key]
}

func (v *vault) holds(key string) bool { return v.value(key) != nil }

func (v *vault) door() *door { return &door{vault: v} }

// fail makes every call through the door fail, or none.
func (d *door) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = err
}

// hang makes every call through the door wait until what it returns is called.
func (d *door) hang() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	shut := make(chan struct{})
	d.shut = shut
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.shut = nil
		close(shut)
	}
}

func (d *door) open() error {
	d.mu.Lock()
	shut, err := d.shut, d.broken
	d.mu.Unlock()
	if shut != nil {
		<-shut
	}
	return err
}

func (d *door) Store(_ context.Context, key string, value []byte) error {
	if err := d.open(); err != nil {
		return err
	}
	d.vault.mu.Lock()
	defer d.vault.mu.Unlock()
	d.values[key] = value
	return nil
}

func (d *door) Load(_ context.Context, key string) ([]byte, error) {
	if err := d.open(); err != nil {
		return nil, err
	}
	d.vault.mu.Lock()
	defer d.vault.mu.Unlock()
	value, ok := d.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

func (d *door) Delete(_ context.Context, key string) error {
	if err := d.open(); err != nil {
		return err
	}
	d.vault.mu.Lock()
	defer d.vault.mu.Unlock()
	delete(d.values, key)
	return nil
}

// List also shows what a file storage does: the temporary file of a writer.
func (d *door) List(_ context.Context, prefix string, _ bool) ([]string, error) {
	if err := d.open(); err != nil {
		return nil, err
	}
	d.vault.mu.Lock()
	defer d.vault.mu.Unlock()
	keys := []string{prefix + "/3991498540"}
	for key := range maps.Keys(d.values) {
		if strings.HasPrefix(key, prefix+"/") {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// caddyNode is a Caddy with one policy, as far as it can be had without one.
type caddyNode struct {
	*node
	t    *testing.T
	s    *Selection
	pool reverseproxy.UpstreamPool
	door *door
	logs *observer.ObservedLogs
}

// startNode starts a node on a host of its own, with a pool of three.
func startNode(t *testing.T, v *vault) *caddyNode {
	t.Helper()
	return startNodeOn(t, randomName(), v.door(), testPool(3))
}

func startNodeOn(t *testing.T, host string, d *door, pool reverseproxy.UpstreamPool) *caddyNode {
	t.Helper()
	c := makeNode(t, d, newTestSelection(pool), pool)
	c.host, c.door = host, d
	c.s.join(c.node, d)
	return c
}

// makeNode makes a node with a policy, which does not know each other yet.
func makeNode(t *testing.T, st recordStorage, s *Selection, pool reverseproxy.UpstreamPool) *caddyNode {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	n := newNode(s.table.Table, func() recordStorage { return st }, zap.New(core))
	n.host, n.process = randomName(), process{}
	c := &caddyNode{node: n, t: t, s: s, pool: pool, logs: logs}
	t.Cleanup(c.kill)
	return c
}

// noStorage is that of a Caddy without a config.
func noStorage() recordStorage { return nil }

// runs makes the node believe that a config with the given storage runs.
func (c *caddyNode) runs(st recordStorage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config = func() recordStorage { return st }
}

// load loads a config with another pool or storage; what it returns ends the one before.
func (c *caddyNode) load(st recordStorage, pool reverseproxy.UpstreamPool) (end func()) {
	before := c.s
	c.s, c.pool = newTestSelectionWith(before.table, pool), pool
	c.door, _ = st.(*door)
	c.s.join(c.node, st)
	c.runs(st)
	return func() { _ = before.Cleanup() }
}

// ends makes the node believe that its process is about to end, which takes its time.
func (c *caddyNode) ends() {
	c.runs(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exiting = func() bool { return true }
}

// kill ends a node as kill -9 does.
func (c *caddyNode) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sh := range c.shares {
		sh.halt()
	}
}

func (c *caddyNode) knowsMarks() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.marked) > 0
}

// tell says something of an upstream to the node.
func (c *caddyNode) tell(addr string, w word) {
	c.t.Helper()
	if err := c.say(c.t.Context(), upstreamName(addr), w); err != nil {
		c.t.Fatal(err)
	}
}

func (c *caddyNode) drain(addr string) {
	c.t.Helper()
	c.tell(addr, word{state: stateDraining})
}

// status returns the verdict on an upstream, and what it waits for.
func (c *caddyNode) status(addr string) (drained bool, waits string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for u, v := range c.verdicts {
		if u.Name == upstreamName(addr) {
			return v.drained, fmt.Sprint(v.waits)
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
	return landed(c.t, c.s, c.pool)
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
func (c *caddyNode) socket(token string) (addr string, hangUp func()) {
	c.t.Helper()
	r := newSocket(c.s, token)
	addr, _ = r.choose(c.pool)
	if addr == "" {
		return "", r.end
	}
	rn := r.run()
	rn.connected(rn.attempt)
	rn.firstByteCame(rn.attempt)
	r.repl.Set(placeholderStatus, http.StatusSwitchingProtocols)
	// As the reverse proxy does, it ends when the context ends that Select has put on the request.
	context.AfterFunc(r.Context(), r.end)
	return addr, func() {
		r.end()
		synctest.Wait()
	}
}

const u0 = "u0:80"

// pass lets time pass, and what happens then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestMarkHoldsOnEveryNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
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
		b.tell(u0, word{state: stateReady})
		pass(5 * time.Second)
		for _, n := range []*caddyNode{a, b, c} {
			n.visitAt(u0)
		}
	})
}

func TestOneNodeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, newVault())
		token := a.visitAt(u0)
		home, hangUp := a.socket(token)
		if home != u0 {
			t.Fatal("the socket went to ", home)
		}
		pass(time.Hour)
		a.drain(u0)
		pass(time.Hour)
		a.wantWait(u0, "it has 1 session", "with a socket open")
		hangUp()
		// A tab comes back at the last moment.
		pass(31 * time.Second)
		a.wantWait(u0, "it has 1 session", "31 s after the socket closed")
		home, hangUp = a.socket(token)
		if home != u0 {
			t.Fatal("the socket came back to ", home)
		}
		pass(2 * time.Second)
		a.wantWait(u0, "it has 1 session", "after the tab came back")
		hangUp()
		pass(31 * time.Second)
		a.wantDrained(u0, false, "31 s after the last socket closed")
		pass(4 * time.Second)
		a.wantDrained(u0, true, "when the session has ended")
		// Its token is valid still, but there is nothing left to come back to.
		if home, _ = a.socket(token); home == u0 {
			t.Error("a socket of an ended session went to the drained upstream")
		}
	})
}

// A node that has just started says nothing: browsers may come back to it.
func TestDrainedNotBeforeANodeHasSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		token := a.visitAt(u0)
		_, _ = a.socket(token)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Second)
		a.kill()
		b := startNodeOn(t, a.host, v.door(), a.pool)
		pass(14 * time.Second)
		b.wantDrained(u0, false, "14 s after a restart")
		home, hangUp := b.socket(token)
		if home != u0 {
			t.Fatal("the browser came back to ", home)
		}
		pass(2 * time.Minute)
		b.wantWait(u0, "it has 1 session", "with the browser back")
		hangUp()
		pass(time.Minute)
		// Whether the process before is dead cannot be told here, and it had a session.
		b.wantWait(u0, a.name, "with the process before not known to be dead")
		if err := b.giveUp(t.Context(), a.name, false); err != nil {
			t.Fatal(err)
		}
		pass(20 * time.Second)
		b.wantWait(u0, "it is gone", "shortly after it was said to be dead")
		pass(20 * time.Second)
		b.wantDrained(u0, true, "when its sessions must have ended")
	})
}

func TestDrainedWhenAllNodesAreEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := b.socket(b.visitAt(u0))
		a.drain(u0)
		pass(time.Hour)
		a.wantWait(u0, b.name+" "+b.host+" it has 1 session", "with a session on the other node")
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

// A session that goes from one node to another is never between them.
func TestSessionThatWandersIsNotOverlooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		nodes := []*caddyNode{startNode(t, v), startNode(t, v), startNode(t, v)}
		pass(time.Minute)
		token := nodes[0].visitAt(u0)
		nodes[1].drain(u0)
		for i := range 40 {
			n := nodes[i%3]
			home, hangUp := n.socket(token)
			if home != u0 {
				t.Fatal("the session went to ", home)
			}
			pass(time.Duration(i%7) * 100 * time.Millisecond)
			hangUp()
			for range 31 {
				pass(time.Second)
				for _, n := range nodes {
					n.wantDrained(u0, false, "with a session under way")
				}
				if t.Failed() {
					return
				}
			}
		}
		pass(time.Minute)
		for _, n := range nodes {
			n.wantDrained(u0, true, "when it has ended")
		}
	})
}

// A peer that reads the mark late may send a page after we have seen it empty.
func TestPeerThatReadsTheMarkLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		release := b.door.hang()
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
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		b.door.fail(errors.New("no route to host"))
		a.drain(u0)
		pass(50 * time.Minute)
		a.wantWait(u0, b.name+" "+b.host+" it has not said that it has read the mark", "for as long as it may be alive")
		a.wantWait(u0, "if it is dead, say so", "for as long as it may be alive")
		if home, _ := b.visit(); home == "" {
			t.Error("traffic stopped")
		}
		if n := b.logs.FilterMessageSnippet("the storage fails").Len(); n != 1 {
			t.Errorf("it logged %d times that its storage fails", n)
		}
		b.wantDrained(u0, false, "at the node itself")
		b.door.fail(nil)
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
		v := newVault()
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
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		_, hangUp := b.socket(b.visitAt(u0))
		a.drain(u0)
		pass(time.Minute)
		b.detach(b.s)
		b.exit()
		hangUp()
		pass(20 * time.Second)
		a.wantWait(u0, "it is gone", "while browsers may come back")
		pass(25 * time.Second)
		a.wantDrained(u0, true, "after that")
	})
}

// Of a process of the same machine it can be seen whether it is gone.
func TestProcessOfTheSameMachine(t *testing.T) {
	self := thisProcess()
	if self.PID == 0 {
		t.Skip("SKIP-REASON: this system does not tell of processes")
	}
	dead := self
	dead.Started = "1"
	none := self
	none.PID = 1 << 30
	elsewhere := none
	elsewhere.Boot = "another"
	for name, c := range map[string]struct {
		p    process
		want bool
	}{
		"itself":            {self, false},
		"number used again": {dead, true},
		"no such number":    {none, true},
		"another machine":   {elsewhere, false},
		"unknown":           {process{}, false},
	} {
		if got := c.p.isGone(self); got != c.want {
			t.Errorf("%s: gone is %v", name, got)
		}
	}
}

// A system may hide the processes of other users, which are there all the same.
func TestHiddenProcess(t *testing.T) {
	self := thisProcess()
	if self.PID == 0 {
		t.Skip("SKIP-REASON: this system does not tell of processes")
	}
	none := self
	none.PID = 1 << 30
	defer func(before string) { proc = before }(proc)
	proc = t.TempDir()
	if self.isGone(self) {
		t.Error("a process that is hidden is gone")
	}
	if !none.isGone(self) {
		t.Error("a process that is not there may be hidden")
	}
}

// Clocks ten minutes apart change nothing: nobody compares them.
func TestClocksApart(t *testing.T) {
	for _, apart := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			v := newVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			m := word{state: stateDraining}.follows(nil, u0, "elsewhere", 0)
			m.Since = m.Since.Add(apart)
			if err := storeRecord(t.Context(), b.door, markKey(u0), m); err != nil {
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
		a := startNode(t, newVault())
		a.door.fail(errors.New("disk full"))
		if err := a.say(t.Context(), u0, word{state: stateDraining}); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("the operator hears %v", err)
		}
		a.visitAt(u0)
		a.door.fail(nil)
		release := a.door.hang()
		if err := a.say(t.Context(), u0, word{state: stateDraining}); err == nil || !strings.Contains(err.Error(), "has not answered") {
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
		v := newVault()
		a := startNode(t, v)
		a.drain(u0)
		pass(time.Minute)
		v.mu.Lock()
		clear(v.values)
		v.mu.Unlock()
		pass(time.Hour)
		if home, _ := a.visit(); home == u0 {
			t.Error("the mark is forgotten")
		}
		a.kill()
		a = startNodeOn(t, a.host, v.door(), a.pool)
		if home, _ := a.visit(); home == u0 {
			t.Error("the mark was not written again, and a restart has forgotten it")
		}
		for broken, value := range map[string]string{"empty": "", "no JSON": "{", "another's": `{"id":"x","upstream":"u1:80","state":"ready"}`} {
			v.mu.Lock()
			v.values[markKey(u0)] = []byte(value)
			v.mu.Unlock()
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
		before, after := newVault(), newVault()
		a, b := startNode(t, before), startNode(t, before)
		a.drain(u0)
		_, hangUp := b.socket(b.visitAt("u1:80"))
		pass(time.Minute)
		stranger := startNode(t, after)
		stranger.drain("u2:80")
		pass(time.Minute)

		failed := newTestSelectionWith(a.s.table, a.pool)
		failed.join(a.node, after.door())
		pass(time.Minute)
		_ = failed.Cleanup()
		a.visitAt("u2:80")

		a.load(after.door(), a.pool)()
		a.wantNoVisit(u0, "right after the reload")
		pass(5 * time.Second)
		for _, n := range []*caddyNode{a, stranger} {
			for range 20 {
				if home, _ := n.visit(); home != "u1:80" {
					t.Fatal("a new session went to", home, "though both storages have a mark")
				}
			}
		}
		a.tell("u1:80", word{state: stateDraining})
		pass(time.Minute)
		a.wantWait("u1:80", "it has 1 session", "while a node has not changed the storage")

		b.load(after.door(), b.pool)()
		hangUp()
		pass(time.Minute)
		a.wantDrained("u1:80", true, "when all have changed the storage")
	})
}

// The others know of a node as soon as its config runs.
func TestNodeReportsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		s := newTestSelection(testPool(3))
		var running atomic.Bool
		d := v.door()
		n := newNode(s.table.Table, func() recordStorage {
			if running.Load() {
				return d
			}
			return nil
		}, zap.NewNop())
		s.join(n, d)
		pass(3 * time.Second)
		if v.holds(nodeKey(n.name)) {
			t.Error("it reports though its config does not run")
		}
		running.Store(true)
		pass(200 * time.Millisecond)
		if !v.holds(nodeKey(n.name)) {
			t.Error("it has not reported")
		}
		n.exit()
	})
}

// The next server at the address of one that was taken away is ready.
func TestMarkOfAnUpstreamThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNodeOn(t, "a", v.door(), testPool(3)), startNodeOn(t, "b", v.door(), testPool(2))
		a.drain("u2:80")
		pass(time.Hour)
		b.wantDrained("u2:80", true, "at a node that does not know it")
		a.load(a.door, testPool(2))()
		pass(9 * time.Minute)
		if !v.holds(markKey("u2:80")) {
			t.Error("the mark is forgotten too early")
		}
		pass(2 * time.Minute)
		if v.holds(markKey("u2:80")) || a.knowsMarks() || b.knowsMarks() {
			t.Error("the mark is not forgotten")
		}
	})
}

func TestNodesWithDifferentKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		b.s.ring.Store(&stamp.Keyring{stamp.NewKey([]byte("another"))})
		pass(time.Minute)
		for _, n := range []*caddyNode{a, b} {
			if got := n.logs.FilterMessageSnippet("another node signs").Len(); got != 1 {
				t.Errorf("logged %d times that the keys differ", got)
			}
		}
	})
}

// When the grace period is over nothing goes to the upstream through any node, and what is open there is closed over the
// span; each session moves to the same other upstream, through whichever node it comes.
func TestGracePeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		nodes := []*caddyNode{startNode(t, v), startNode(t, v)}
		pass(time.Minute)
		const n = 40
		var tokens []string
		for i := range n {
			token := nodes[i%2].visitAt(u0)
			if home, _ := nodes[i%2].socket(token); home != u0 {
				t.Fatal("a socket went to ", home)
			}
			tokens = append(tokens, token)
		}
		grace, span := 10*time.Minute, 20*time.Second
		nodes[0].tell(u0, word{state: stateDraining, grace: &grace, span: &span})
		open := func() (sum int64) {
			for _, c := range nodes {
				for _, st := range c.upstreams() {
					if st.Address == u0 {
						sum = st.Sessions.Connected
						if st.Drain.Deadline == nil && st.State == stateDraining {
							t.Error("the deadline is not told")
						}
					}
				}
			}
			return sum
		}
		pass(grace - 5*time.Second)
		if got := open(); got != n {
			t.Fatalf("before the grace period is over %d of %d sockets are open", got, n)
		}
		other := nodes[0].visitAt("u1:80")
		pass(5*time.Second + span/2)
		if got := open(); got < n/4 || got > n*3/4 {
			t.Errorf("in the middle of the span %d of %d sockets are open", got, n)
		}
		for _, token := range tokens {
			a, hangUpA := nodes[0].socket(token)
			b, hangUpB := nodes[1].socket(token)
			if a == u0 || a != b {
				t.Errorf("a session goes to %s through one node, to %s through the other", a, b)
			}
			hangUpA()
			hangUpB()
		}
		pass(span/2 + 5*time.Second)
		if got := open(); got != 0 {
			t.Errorf("5 s after the span %d sockets are open", got)
		}
		pass(5 * time.Second)
		for i, c := range nodes {
			c.wantDrained(u0, true, fmt.Sprint("after the span, node ", i))
			if got := c.logs.FilterMessageSnippet("grace period is over").Len(); got != 1 {
				t.Errorf("node %d logged %d times that it closes websockets", i, got)
			}
		}
		if home, _ := nodes[1].socket(other); home != "u1:80" {
			t.Errorf("a session of another upstream went to %s", home)
		}
		for range 20 {
			if addr, _ := newRequest(nodes[0].s, "/static/js/bokeh.js").choose(nodes[0].pool); addr == u0 {
				t.Fatal("a file was asked of the closed upstream")
			}
		}
		// It stays closed over a restart, and is ready when that is taken back.
		c := startNode(t, v)
		if home, _ := c.socket(tokens[0]); home == u0 {
			t.Error("after a restart a socket went to the closed upstream")
		}
		c.tell(u0, word{state: stateReady})
		pass(5 * time.Second)
		nodes[1].visitAt(u0)
	})
}

// Nobody is cut without a grace period, nor when it is taken back, put off, or removed.
func TestGracePeriodTakenBack(t *testing.T) {
	hour, long, none := time.Hour, 10*time.Hour, time.Duration(0)
	for what, w := range map[string]word{
		"taken back": {state: stateReady},
		"put off":    {state: stateDraining, grace: &long},
		"removed":    {state: stateDraining, grace: &none},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := newVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			token := b.visitAt(u0)
			_, _ = b.socket(token)
			a.tell(u0, word{state: stateDraining, grace: &hour})
			pass(50 * time.Minute)
			b.tell(u0, w)
			pass(time.Hour)
			if n := b.s.members.get(u0).Count(sessions.Connected); n != 1 {
				t.Errorf("%s: %d sockets are open", what, n)
			}
		})
	}
}

// What is said once more does not begin the grace period anew, also where only the reason is new.
func TestGracePeriodSaidOnceMore(t *testing.T) {
	hour := time.Hour
	for what, w := range map[string]word{
		"the same":     {state: stateDraining},
		"a new reason": {state: stateDraining, reason: "another"},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := newVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			_, _ = b.socket(b.visitAt(u0))
			a.tell(u0, word{state: stateDraining, grace: &hour})
			pass(50 * time.Minute)
			b.tell(u0, w)
			pass(5 * time.Minute)
			if n := b.s.members.get(u0).Count(sessions.Connected); n != 1 {
				t.Errorf("%s: before the hour is over %d sockets are open", what, n)
			}
			pass(6 * time.Minute)
			a.wantDrained(u0, true, what)
		})
	}
}

// A node that cannot reach the storage closes the upstream by itself, and so does one that was started since, on the same
// machine.
func TestGracePeriodWithoutTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		pass(time.Minute)
		token := a.visitAt(u0)
		hour := time.Hour
		a.tell(u0, word{state: stateDraining, grace: &hour})
		pass(30 * time.Minute)
		a.kill()
		b := startNodeOn(t, a.host, v.door(), a.pool)
		_, _ = b.socket(token)
		b.door.fail(errors.New("disk full"))
		pass(29 * time.Minute)
		if n := b.s.members.get(u0).Count(sessions.Connected); n != 1 {
			t.Errorf("before the hour is over %d sockets are open", n)
		}
		pass(2 * time.Minute)
		if n := b.s.members.get(u0).Slots.Sessions.Load(); n != 0 {
			t.Errorf("after it %d sessions are left", n)
		}
		b.door.fail(nil)
		b.tell(u0, word{state: stateDraining, reason: "a disk is replaced"})
		if home, _ := b.socket(token); home == u0 {
			t.Error("it is opened again, though nobody said so")
		}
		pass(5 * time.Second)
		if !strings.Contains(string(v.value(markKey(u0))), stateClosed) {
			t.Errorf("the storage does not have that it is closed: %s", v.value(markKey(u0)))
		}
	})
}

// What never ends by itself keeps no closed upstream from being drained: pages that its server does not build, answers that
// a client does not read, websockets that are not answered.
func TestGracePeriodOfWhatNeverEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		socket, answered bool
	}{"page": {}, "page that is not read": {answered: true}, "socket": {socket: true}} {
		synctest.Test(t, func(t *testing.T) {
			a := startNode(t, newVault())
			pass(time.Minute)
			r := newRequest(a.s, "/app")
			if tc.socket {
				r = newSocket(a.s, a.visitAt(u0))
			}
			addr, _ := r.choose(a.pool)
			rn := r.run()
			rn.connected(rn.attempt)
			if tc.answered {
				rn.firstByteCame(rn.attempt)
			}
			grace := 5 * time.Second
			a.tell(addr, word{state: stateDraining, grace: &grace})
			pass(grace + nodePause)
			a.wantState(addr, stateClosed, name)
			pass(defaultSpan + 5*time.Second)
			a.wantDrained(addr, true, name)
			if r.Context().Err() == nil {
				t.Errorf("%s: it goes on", name)
			}
			r.end()
		})
	}
}

// A node that is starting has read no mark, and nobody has read of it: for a moment nothing new is called drained.
func TestDrainedNotWhileANodeIsStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		pass(time.Hour)
		b := startNode(t, v)
		v.mu.Lock()
		delete(v.values, nodeKey(b.name)) // as if its config were not running yet
		v.mu.Unlock()
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

// Who takes a drain back sends nobody new to the server before the others have read that.
func TestUndrainIsHeardFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		b.wantDrained(u0, true, "at first")
		a.tell(u0, word{state: stateReady})
		if !a.s.members.get(u0).Drain.On() {
			t.Error("it gets new sessions though another node takes it for empty")
		}
		pass(openRest)
		if home, _ := b.socket(a.visitAt(u0)); home != u0 {
			t.Errorf("a session that began then went to %q", home)
		}
	})
}

// A drain that is taken back and said again between two looks of a node leaves nothing of what it knew.
func TestMarkChangesBetweenTwoLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		b.wantDrained(u0, true, "at first")
		a.tell(u0, word{state: stateReady})
		pass(openRest) // until then b may take it for empty
		token := a.visitAt(u0)
		b.drain(u0)
		if home, _ := b.socket(token); home != u0 {
			t.Errorf("a session that began meanwhile went to %q", home)
		}
	})
}

// Where upstreams are discovered, a night in which nobody visits says nothing about which there are.
func TestMarkOutlivesAQuietNight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNodeOn(t, "a", v.door(), testPool(3))
		a.drain("u2:80")
		pass(time.Minute)
		a.kill()
		s := newTestSelection(nil)
		discovers(s)
		d := v.door()
		b := makeNode(t, d, s, nil)
		s.join(b.node, d)
		pass(10 * time.Hour)
		if !v.holds(markKey("u2:80")) {
			t.Error("the mark was forgotten")
		}
	})
}

// Who marks one of two upstreams, and who marks the other at the same time, are not both told that one is left.
func TestLastTwoAreMarkedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNodeOn(t, "a", newVault().door(), testPool(2))
		pass(3 * time.Second)
		release := a.door.hang()
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = a.node.drain(t.Context(), fmt.Sprintf("u%d:80", i), word{state: stateDraining}, false)
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
		v := newVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(3 * time.Second)
		hours := 8 * time.Hour
		a.tell(u0, word{state: stateDraining, grace: &hours})
		b.tell(u0, word{state: stateDraining, reason: "new version"})
		pass(hours + time.Minute)
		if !a.s.members.get(u0).Drain.IsClosed() {
			t.Error("it is not closed")
		}
	})
}

// A session that lives for short may go to a node that has started a moment ago, of which nobody has read.
func TestShortLivedSessionGoesToAStartingNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		start := func(running func() bool) *caddyNode {
			s := newTestSelection(testPool(3))
			s.lifetime = 2 * time.Second
			d := v.door()
			c := makeNode(t, d, s, testPool(3))
			c.config = func() recordStorage {
				if running() {
					return d
				}
				return nil
			}
			s.join(c.node, d)
			return c
		}
		a := start(func() bool { return true })
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		a.drain(u0)
		pass(time.Minute)
		begun := time.Now()
		b := start(func() bool { return time.Since(begun) > 2100*time.Millisecond })
		pass(1900 * time.Millisecond)
		hangUp()
		if home, _ := b.socket(token); home != u0 {
			t.Fatal("the session went to ", home)
		}
		for range 100 {
			pass(100 * time.Millisecond)
			if st, err := a.upstream(u0); err != nil || st.State == api.StateDrained {
				t.Fatalf("%v after the start of the other node: %+v %v", time.Since(begun), st, err)
			}
		}
	})
}

// A config that is only validated leaves no trace among the nodes.
func TestValidatedConfigLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		s := newTestSelection(testPool(3))
		n := newNode(s.table.Table, noStorage, zap.NewNop())
		s.join(n, v.door())
		pass(20 * time.Second)
		_ = s.Cleanup()
		pass(20 * time.Second)
		if keys, _ := v.door().List(t.Context(), "caddy-bokeh/nodes", false); len(keys) != 1 {
			t.Errorf("there is a report: %v", keys)
		}
	})
}
