// This file tests Caddys that share a storage as their visitors see them, with the policy that sends those to upstreams.

package caddybokeh

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// fleetNode is a Caddy with one policy, as far as it can be had without one.
type fleetNode struct {
	*cluster.Cluster
	t     *testing.T
	s     *Selection
	pool  reverseproxy.UpstreamPool
	table *ledger
	host  string
	door  *clustertest.Door
	logs  *observer.ObservedLogs
	kill  func() // ends it as kill -9 does

	running atomic.Pointer[func() store.Storage]
	exiting atomic.Bool
}

// startCaddy starts a node on a host of its own, with a pool of three.
func startCaddy(t *testing.T, v *clustertest.Vault) *fleetNode {
	t.Helper()
	return startCaddyOn(t, rand.Text(), v.Door(), testPool(3))
}

func startCaddyOn(t *testing.T, host string, d *clustertest.Door, pool reverseproxy.UpstreamPool) *fleetNode {
	t.Helper()
	c := makeCaddy(t, host, d, newTestSelection(pool), pool)
	c.s.join(c.Cluster, d)
	return c
}

// startTrickedCaddy starts a node behind a door that plays tricks.
func startTrickedCaddy(t *testing.T, d *clustertest.Trick, upstreams int) *fleetNode {
	t.Helper()
	pool := testPool(upstreams)
	c := makeCaddy(t, rand.Text(), d, newTestSelection(pool), pool)
	c.door = d.Door
	c.s.join(c.Cluster, d)
	return c
}

// makeCaddy makes a node with a policy, which does not know each other yet.
func makeCaddy(t *testing.T, host string, st store.Storage, s *Selection, pool reverseproxy.UpstreamPool) *fleetNode {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	ctx, kill := context.WithCancel(context.Background())
	c := &fleetNode{t: t, s: s, pool: pool, table: s.table, host: host, logs: logs, kill: kill}
	c.door, _ = st.(*clustertest.Door)
	c.runs(st)
	conf := testConfig(s.table.Table, func() store.Storage { return (*c.running.Load())() }, zap.New(core))
	conf.Host, conf.Process, conf.Exiting = host, record.Process{}, c.exiting.Load
	c.Cluster = cluster.New(ctx, conf)
	t.Cleanup(kill)
	return c
}

// testConfig is what a node is told in tests, where it is in this process.
func testConfig(t *sessions.Table, running func() store.Storage, logger *zap.Logger) cluster.Config {
	conf := processConfig()
	conf.Table, conf.Running, conf.Logger = t, running, logger
	return conf
}

// noStorage is that of a Caddy without a config.
func noStorage() store.Storage { return nil }

// runs makes the node believe that a config with the given storage runs.
func (c *fleetNode) runs(st store.Storage) {
	running := func() store.Storage { return st }
	c.running.Store(&running)
}

// say says something of an upstream to the node.
func (c *fleetNode) say(addr string, w record.Request) error {
	w.Force = true
	return c.SetDrain(c.t.Context(), upstreamName(addr), w)
}

// tell says something of an upstream to the node, which must do it.
func (c *fleetNode) tell(addr string, w record.Request) {
	c.t.Helper()
	if err := c.say(addr, w); err != nil {
		c.t.Fatal(err)
	}
}

func (c *fleetNode) drain(addr string) {
	c.t.Helper()
	c.tell(addr, record.Request{State: api.StateDraining})
}

// drainAsked drains an upstream as the admin API does, and returns the status of the answer.
func (c *fleetNode) drainAsked(addr string, force bool) (status int, said string) {
	_, err := drain(context.Background(), c.Cluster, addr, record.Request{State: api.StateDraining, By: c.Name(), Force: force})
	if err == nil {
		return http.StatusOK, ""
	}
	answer, ok := errors.AsType[caddy.APIError](err)
	if !ok {
		return 0, err.Error()
	}
	return answer.HTTPStatus, answer.Error() + ": " + answer.Err.Error()
}

// status returns whether an upstream is drained, and what that waits for.
func (c *fleetNode) status(addr string) (drained bool, waits string) {
	for _, st := range c.Upstreams() {
		if st.Address == upstreamName(addr) && st.Drain != nil {
			return st.State == api.StateDrained, fmt.Sprint(st.WaitingFor)
		}
	}
	return false, "it does not drain"
}

// storedState returns what is stored of an upstream.
func storedState(v *clustertest.Vault, addr string) string {
	m := struct{ State string }{api.StateReady}
	_ = json.Unmarshal(v.Value(clustertest.DrainKey(addr)), &m)
	return m.State
}

// wantDrained checks the verdict on an upstream.
func (c *fleetNode) wantDrained(addr string, want bool, when string) {
	c.t.Helper()
	if drained, waits := c.status(addr); drained != want {
		c.t.Errorf("%s: drained is %v, want %v; it waits for %s", when, drained, want, waits)
	}
}

// wantWait checks that an upstream is not drained, and that the reason is told.
func (c *fleetNode) wantWait(addr, why, when string) {
	c.t.Helper()
	if drained, waits := c.status(addr); drained || !strings.Contains(waits, why) {
		c.t.Errorf("%s: drained is %v; it waits for %s, want %q", when, drained, waits, why)
	}
}

// visit opens a page and says where it was made, and the token for its socket.
func (c *fleetNode) visit() (home, token string) {
	c.t.Helper()
	return landed(c.t, c.s, c.pool)
}

// visitAt visits until a page is made at addr.
func (c *fleetNode) visitAt(addr string) (token string) {
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
func (c *fleetNode) socket(token string) (addr string, hangUp func()) {
	c.t.Helper()
	r := newSocket(c.s, token)
	addr, _ = r.choose(c.pool)
	if addr == "" {
		return "", r.end
	}
	v := r.visit()
	v.connected(v.attempt)
	v.firstByteCame(v.attempt)
	r.repl.Set(placeholderStatus, http.StatusSwitchingProtocols)
	// As the reverse proxy does, it ends when the context ends that Select has put on the request.
	context.AfterFunc(r.Context(), r.end)
	return addr, func() {
		r.end()
		synctest.Wait()
	}
}

// wantNoVisit checks that no new session goes to addr.
func (c *fleetNode) wantNoVisit(addr, when string) {
	c.t.Helper()
	for range 50 {
		if home, _ := c.visit(); home == addr {
			c.t.Errorf("%s: a new session went to %s", when, addr)
			return
		}
	}
}

// wantState checks what is told of an upstream.
func (c *fleetNode) wantState(addr, want, when string) {
	c.t.Helper()
	if st, err := upstreamMeant(c.Cluster, addr); err != nil || st.State != want {
		c.t.Errorf("%s: it is %+v %v, want %s", when, st, err, want)
	}
}

const u0 = "u0:80"

// pass lets time pass, and what happens then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestOneNodeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startCaddy(t, clustertest.NewVault())
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
		v := clustertest.NewVault()
		a := startCaddy(t, v)
		token := a.visitAt(u0)
		_, _ = a.socket(token)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Second)
		a.kill()
		b := startCaddyOn(t, a.host, v.Door(), a.pool)
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
		b.wantWait(u0, a.Name(), "with the process before not known to be dead")
		if err := b.RemoveNode(t.Context(), a.Name(), false); err != nil {
			t.Fatal(err)
		}
		pass(20 * time.Second)
		b.wantWait(u0, "it is gone", "shortly after it was said to be dead")
		pass(20 * time.Second)
		b.wantDrained(u0, true, "when its sessions must have ended")
	})
}

// A session that goes from one node to another is never between them.
func TestSessionThatWandersIsNotOverlooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		nodes := []*fleetNode{startCaddy(t, v), startCaddy(t, v), startCaddy(t, v)}
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

// When the grace period is over nothing goes to the upstream through any node, and what is open there is closed over the
// span; each session moves to the same other upstream, through whichever node it comes.
func TestGracePeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		nodes := []*fleetNode{startCaddy(t, v), startCaddy(t, v)}
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
		nodes[0].tell(u0, record.Request{State: api.StateDraining, Grace: &grace, Span: &span})
		open := func() (sum int64) {
			for _, c := range nodes {
				for _, st := range c.Upstreams() {
					if st.Address == u0 {
						sum = st.Sessions.Connected
						if st.Drain.Deadline == nil && st.State == api.StateDraining {
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
		c := startCaddy(t, v)
		if home, _ := c.socket(tokens[0]); home == u0 {
			t.Error("after a restart a socket went to the closed upstream")
		}
		c.tell(u0, record.Request{State: api.StateReady})
		pass(5 * time.Second)
		nodes[1].visitAt(u0)
	})
}

// A node that cannot reach the storage closes the upstream by itself, and so does one that was started since, on the same
// machine.
func TestGracePeriodWithoutTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startCaddy(t, v)
		pass(time.Minute)
		token := a.visitAt(u0)
		hour := time.Hour
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &hour})
		pass(30 * time.Minute)
		a.kill()
		b := startCaddyOn(t, a.host, v.Door(), a.pool)
		_, _ = b.socket(token)
		b.door.Fail(errors.New("disk full"))
		pass(29 * time.Minute)
		if n := b.s.members.get(u0).Count(sessions.Connected); n != 1 {
			t.Errorf("before the hour is over %d sockets are open", n)
		}
		pass(2 * time.Minute)
		if n := b.s.members.get(u0).Slots.Sessions.Load(); n != 0 {
			t.Errorf("after it %d sessions are left", n)
		}
		b.door.Fail(nil)
		b.tell(u0, record.Request{State: api.StateDraining, Reason: "a disk is replaced"})
		if home, _ := b.socket(token); home == u0 {
			t.Error("it is opened again, though nobody said so")
		}
		pass(5 * time.Second)
		if !strings.Contains(string(v.Value(clustertest.DrainKey(u0))), api.StateClosed) {
			t.Errorf("the storage does not have that it is closed: %s", v.Value(clustertest.DrainKey(u0)))
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
			a := startCaddy(t, clustertest.NewVault())
			pass(time.Minute)
			r := newRequest(a.s, "/app")
			if tc.socket {
				r = newSocket(a.s, a.visitAt(u0))
			}
			addr, _ := r.choose(a.pool)
			v := r.visit()
			v.connected(v.attempt)
			if tc.answered {
				v.firstByteCame(v.attempt)
			}
			grace := 5 * time.Second
			a.tell(addr, record.Request{State: api.StateDraining, Grace: &grace})
			pass(grace + 2*time.Second)
			a.wantState(addr, api.StateClosed, name)
			pass(30*time.Second + 5*time.Second)
			a.wantDrained(addr, true, name)
			if r.Context().Err() == nil {
				t.Errorf("%s: it goes on", name)
			}
			r.end()
		})
	}
}

// Who takes a drain back sends nobody new to the server before the others have read that.
func TestUndrainIsHeardFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startCaddy(t, v), startCaddy(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		b.wantDrained(u0, true, "at first")
		a.tell(u0, record.Request{State: api.StateReady})
		if !a.s.members.get(u0).Drain.On() {
			t.Error("it gets new sessions though another node takes it for empty")
		}
		pass(3 * time.Second)
		if home, _ := b.socket(a.visitAt(u0)); home != u0 {
			t.Errorf("a session that began then went to %q", home)
		}
	})
}

// A drain that is taken back and said again between two looks of a node leaves nothing of what it knew.
func TestMarkChangesBetweenTwoLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startCaddy(t, v), startCaddy(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		b.wantDrained(u0, true, "at first")
		a.tell(u0, record.Request{State: api.StateReady})
		pass(3 * time.Second) // until then b may take it for empty
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
		v := clustertest.NewVault()
		a := startCaddyOn(t, "a", v.Door(), testPool(3))
		a.drain("u2:80")
		pass(time.Minute)
		a.kill()
		s := newTestSelection(nil)
		discovers(s)
		d := v.Door()
		b := makeCaddy(t, rand.Text(), d, s, nil)
		s.join(b.Cluster, d)
		pass(10 * time.Hour)
		if !v.Holds(clustertest.DrainKey("u2:80")) {
			t.Error("the mark was forgotten")
		}
	})
}

// A session that lives for short may go to a node that has started a moment ago, of which nobody has read.
func TestShortLivedSessionGoesToAStartingNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		start := func(running func() bool) *fleetNode {
			s := newTestSelection(testPool(3))
			s.lifetime = 2 * time.Second
			d := v.Door()
			c := makeCaddy(t, rand.Text(), d, s, testPool(3))
			runs := func() store.Storage {
				if running() {
					return d
				}
				return nil
			}
			c.running.Store(&runs)
			s.join(c.Cluster, d)
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
			if st, err := upstreamMeant(a.Cluster, u0); err != nil || st.State == api.StateDrained {
				t.Fatalf("%v after the start of the other node: %+v %v", time.Since(begun), st, err)
			}
		}
	})
}

// A storage that hangs holds up nothing that is due by the clock.
func TestStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startCaddy(t, v), startCaddy(t, v)
		pass(time.Minute)
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		hour := time.Hour
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &hour})
		b.drain("u1:80")
		pass(30 * time.Minute)
		a.wantDrained("u1:80", true, "before")
		defer a.door.Hang()()
		pass(10 * time.Second)
		a.wantDrained("u1:80", false, "when the storage has not been read for long")
		b.tell("u1:80", record.Request{State: api.StateReady})
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

// A closed upstream that is opened again has its sessions as before: those that were just unused, and those whose
// websocket was not closed yet.
func TestClosedAndOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startCaddy(t, clustertest.NewVault())
		pass(time.Minute)
		unused := a.visitAt(u0)
		_, hangUp := a.socket(unused)
		open := map[string]func(){} // of these one is closed at once, the other a while later
		for range 2 {
			token := a.visitAt(u0)
			_, open[token] = a.socket(token)
		}
		minute, never, span := time.Minute, time.Duration(0), time.Hour
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &minute, Span: &span})
		pass(time.Minute - 4*time.Second)
		hangUp()
		pass(5 * time.Second)
		a.wantState(u0, api.StateClosed, "when the grace period is over")
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &never})
		pass(7 * time.Second)
		a.wantState(u0, api.StateDraining, "opened again, while a browser may come back")
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
		a.wantState(u0, api.StateDraining, "10 s after a socket that was not closed has ended")
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

// An upstream that one node has closed, and that is opened again through one that has not noticed yet, is not called
// drained by that before browsers have had the time to come back.
func TestOpenedAgainElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startCaddy(t, clustertest.NewVault())
		pass(time.Second)
		b := startCaddyOn(t, "b", a.door, testPool(3))
		pass(time.Minute + time.Second/2) // b has read just now, and counts the minute from when it reads again
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		minute, never := time.Minute, time.Duration(0)
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &minute})
		pass(58 * time.Second)
		hangUp()
		for !a.s.members.get(u0).Drain.IsClosed() {
			pass(50 * time.Millisecond)
		}
		if b.s.members.get(u0).Drain.IsClosed() {
			t.Fatal("both have closed it")
		}
		b.tell(u0, record.Request{State: api.StateDraining, Grace: &never})
		for range 25 {
			pass(time.Second)
			b.wantDrained(u0, false, "while the browser may come back")
		}
		pass(time.Minute)
		b.wantDrained(u0, true, "later")
	})
}

// A node that does not know its pool yet may have the upstream that another one's config drains.
func TestConfigDrainsAndAPoolIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startCaddy(t, v)
		s := newTestSelection(nil)
		discovers(s)
		d := v.Door()
		b := makeCaddy(t, rand.Text(), d, s, nil)
		s.join(b.Cluster, d)
		pass(time.Minute)
		a.s.members.drain([]string{u0})
		pass(time.Minute)
		a.wantDrained(u0, false, "while another node's pool is unknown")
	})
}

// Nobody is told that nothing has changed by a storage that may have written.
func TestStoreThatFailsMayHaveWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lose atomic.Bool
		a := startTrickedCaddy(t, &clustertest.Trick{Door: clustertest.NewVault().Door(), OnStored: func() error {
			if lose.Load() {
				return errors.New("i/o timeout")
			}
			return nil
		}}, 3)
		pass(time.Minute)
		lose.Store(true)
		said := storageError(a.say(u0, record.Request{State: api.StateDraining})).Error()
		if !strings.Contains(said, "not known whether") {
			t.Error("the operator hears: ", said)
		}
		lose.Store(false)
		pass(5 * time.Second)
		a.wantNoVisit(u0, "5 s later")
	})
}

// rivals starts two nodes with a pool of two; through the first one, the second look at u1 does what it is told.
func secondLook(t *testing.T, v *clustertest.Vault, second func() error) *fleetNode {
	var started, written atomic.Bool
	a := startTrickedCaddy(t, &clustertest.Trick{
		Door: v.Door(),
		OnStored: func() error {
			written.Store(started.Load())
			return nil
		},
		OnLoad: func(key string) error {
			if !written.Load() || key != clustertest.DrainKey("u1:80") {
				return nil
			}
			return second()
		},
	}, 2)
	pass(time.Minute)
	started.Store(true)
	return a
}

// Where it cannot be seen a second time whether another upstream is left, the drain is taken back, to what was before.
func TestSecondLookFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := secondLook(t, v, func() error { return errors.New("no route to host") })
		if status, said := a.drainAsked(u0, false); status != http.StatusServiceUnavailable || !strings.Contains(said, "nothing has changed, for") || !strings.Contains(said, "u1:80") {
			t.Errorf("it is answered with %d %s", status, said)
		}
		if got := storedState(v, u0); got != api.StateReady {
			t.Error("it is stored as ", got)
		}
		a.visitAt(u0)
		if got := a.logs.FilterMessageSnippet("is marked").Len(); got > 0 {
			t.Error("it is logged that it was marked")
		}
		pass(time.Minute)
		a.visitAt(u0)
		if status, said := a.drainAsked(u0, true); status != http.StatusOK {
			t.Errorf("by force it is answered with %d %s", status, said)
		}
	})
}

// What cannot be taken back at once is when the storage answers, and the operator hears so.
func TestTakenBackLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		b := startCaddyOn(t, "b", v.Door(), testPool(2))
		var fail func()
		a := secondLook(t, v, func() error {
			fail()
			return nil
		})
		fail = sync.OnceFunc(func() { a.door.Fail(errors.New("no route to host")) })
		status, said := a.drainAsked(u0, false)
		if status != http.StatusServiceUnavailable || !strings.Contains(said, "not known whether") || !strings.Contains(said, "taken back as soon as") {
			t.Errorf("it is answered with %d %s", status, said)
		}
		pass(10 * time.Second)
		b.wantState(u0, api.StateDraining, "while the storage fails")
		a.door.Fail(nil)
		pass(10 * time.Second)
		for _, n := range []*fleetNode{a, b} {
			n.wantState(u0, api.StateReady, "when it answers")
		}
	})
}

// A config waits once for its storage, however many policies it has: for the key and for the marks at the same time.
func TestStartWaitsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		keys := newHeldKeys()
		keys.logger = func() *zap.Logger { return zap.New(core) }
		st := &hung{release: make(chan struct{})}
		defer func() {
			close(st.release)
			pass(time.Minute)
		}()
		config, unload := context.WithCancel(t.Context())
		defer unload()
		pool, d := testPool(3), clustertest.NewVault().Door()
		defer d.Hang()()
		began := time.Now()
		var n *cluster.Cluster
		l := newLedger()
		for range 8 {
			s := newTestSelectionWith(l, pool)
			if n == nil {
				n = makeCaddy(t, rand.Text(), d, s, pool).Cluster
			}
			s.keyed = keys.keeper(config, st, keyGrace).answered
			s.join(n, d)
		}
		if took := time.Since(began); took != storageTimeout {
			t.Errorf("8 policies wait %v", took)
		}
		pass(time.Minute)
		if logs.Len() != 1 {
			t.Errorf("of the key it is logged: %v", logs.All())
		}
	})
}

// A node that has not looked for its key tells of none, and takes none for a strange one.
func TestKeysOfAPolicyThatHasNotLooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		other := startCaddy(t, v)
		pass(time.Minute)
		pool, d := testPool(3), v.Door()
		s := newTestSelection(pool)
		ring := stamp.Keyring{stamp.NewKey([]byte("made for as long as nothing else is known"))}
		s.ring.Store(&ring)
		keyed := make(chan struct{})
		s.keyed = keyed
		a := makeCaddy(t, rand.Text(), d, s, pool)
		go s.join(a.Cluster, d)
		pass(4 * time.Second)
		for _, n := range []*fleetNode{other, a} {
			if got := n.logs.FilterMessageSnippet("signs its stamps with a key").Len(); got > 0 {
				t.Error("a key that nothing is signed with yet is taken for a strange one")
			}
		}
		close(keyed)
		pass(time.Minute)
		if other.logs.FilterMessageSnippet("signs its stamps with a key").Len() == 0 {
			t.Error("a strange key is not seen")
		}
	})
}

// Where no other node is there, a session that has ended is known to have. One that may have come since the storage was last read may have it.
func TestEndedSessionMayLiveOnElsewhere(t *testing.T) {
	for name, tc := range map[string]struct {
		fails bool
		back  bool // a browser that comes back with the session is sent to the upstream
	}{"while the storage is read": {false, false}, "while it is not": {true, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := startCaddy(t, clustertest.NewVault())
				pass(time.Minute)
				token := a.visitAt(u0)
				_, hangUp := a.socket(token)
				_, stays := a.socket(a.visitAt(u0)) // so that it is not empty
				a.drain(u0)
				hangUp()
				pass(testLifetime + 10*time.Second)
				if tc.fails {
					a.door.Fail(errors.New("no route to host"))
				}
				pass(20 * time.Second)
				home, end := a.socket(token)
				if back := home == u0; back != tc.back {
					t.Errorf("a browser that comes back is sent to %q", home)
				}
				end()
				stays()
				pass(time.Hour)
			})
		})
	}
}
