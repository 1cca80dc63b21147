// This file tests nodes, marks and tables against a model: Bokeh servers that know what lives where.

package caddybokeh

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// fleetModel is a fleet as the servers see it, driven at random.
type fleetModel struct {
	t     *testing.T
	rnd   *rand.Rand
	v     *clustertest.Vault
	nodes []*modelNode
	docs  []*document
	mark  map[string]time.Time // when a drain was said, by upstream
	back  map[string]time.Time // when it was taken back
	trace []string

	seen int // how often an upstream was called drained, while documents lived elsewhere
}

// modelNode is a node, and what the model knows of it.
type modelNode struct {
	*fleetNode
	hears time.Time // since when its storage is well; zero if it is not
	open  map[*modelSocket]bool
}

// document is what lives on a server. It ends when it has had no socket for its lifetime.
type document struct {
	at      string
	token   string
	sockets int
	idle    time.Time // when its last socket closed, or its page was made
}

type modelSocket struct {
	doc    *document
	hangUp func()
}

const modelLifetime = 32 * time.Second

func (d *document) lives() bool { return d.sockets > 0 || time.Since(d.idle) < modelLifetime }

func (f *fleetModel) say(format string, args ...any) {
	f.trace = append(f.trace, fmt.Sprint(time.Now().Format("15:04:05.000 "), fmt.Sprintf(format, args...)))
}

func (f *fleetModel) fail(format string, args ...any) {
	f.t.Helper()
	for _, line := range f.trace[max(0, len(f.trace)-40):] {
		f.t.Log(line)
	}
	f.t.Fatalf(format, args...)
}

func (f *fleetModel) start() {
	n := &modelNode{fleetNode: startCaddy(f.t, f.v), hears: time.Now(), open: map[*modelSocket]bool{}}
	f.nodes = append(f.nodes, n)
	f.say("start %s", n.Name())
}

func (f *fleetModel) node() *modelNode { return f.nodes[f.rnd.IntN(len(f.nodes))] }

func (f *fleetModel) upstream() string { return fmt.Sprintf("u%d:80", f.rnd.IntN(3)) }

// page requests a page, which may fail on the way.
func (f *fleetModel) page() {
	n := f.node()
	r := newRequest(n.s, "/app")
	addr, _ := r.choose(n.pool)
	if addr == "" {
		r.end()
		synctest.Wait()
		return
	}
	if f.rnd.IntN(8) == 0 {
		addr, _ = r.choose(n.pool) // it failed, and is retried
		if addr == "" {
			r.end()
			synctest.Wait()
			return
		}
	}
	f.say("page through %s at %s", n.Name(), addr)
	if n.s.members.get(addr).Drain.On() {
		f.fail("a new session went to %s, which drains, through %s", addr, n.Name())
	}
	if since := f.mark[addr]; !since.IsZero() && !n.hears.IsZero() && time.Since(since) > 5*time.Second && time.Since(n.hears) > 5*time.Second {
		f.fail("node %s has not heard for %v that %s drains", n.Name(), time.Since(since), addr)
	}
	r.answer(200)
	synctest.Wait()
	f.docs = append(f.docs, &document{at: addr, token: bokehtest.Token(f.t, r.stamp(), nil), idle: time.Now()})
}

// socket opens a socket of a document that lives, through any node.
func (f *fleetModel) socket() {
	var live []*document
	for _, d := range f.docs {
		if d.lives() {
			live = append(live, d)
		}
	}
	if len(live) == 0 {
		return
	}
	d, n := live[f.rnd.IntN(len(live))], f.node()
	if f.rnd.IntN(2) == 0 { // a browser that comes back late
		for _, other := range live {
			if d.sockets > 0 || other.sockets == 0 && other.idle.Before(d.idle) {
				d = other
			}
		}
	}
	addr, hangUp := n.socket(d.token)
	f.say("socket through %s at %s", n.Name(), addr)
	if addr != d.at {
		f.fail("a session that lives at %s went to %q through %s", d.at, addr, n.Name())
	}
	d.sockets++
	n.open[&modelSocket{d, hangUp}] = true
}

func (n *modelNode) close(s *modelSocket) {
	delete(n.open, s)
	s.hangUp()
	if s.doc.sockets--; s.doc.sockets == 0 {
		s.doc.idle = time.Now()
	}
}

func (f *fleetModel) hangUp() {
	n := f.node()
	for s := range n.open {
		f.say("close a socket through %s", n.Name())
		n.close(s)
		return
	}
}

// drain says that an upstream drains, or that it does not.
func (f *fleetModel) drain() {
	n, u := f.node(), f.upstream()
	w := record.Request{State: api.StateDraining}
	if f.rnd.IntN(3) == 0 {
		w.State = api.StateReady
	}
	err := n.say(u, w)
	f.say("%s %s through %s: %v", w.State, u, n.Name(), err)
	switch {
	case err != nil && !n.hears.IsZero():
		f.fail("the storage is well, and yet: %v", err)
	case err != nil:
	case w.State == api.StateReady:
		delete(f.mark, u)
		f.back[u] = time.Now()
	case f.mark[u].IsZero():
		f.mark[u] = time.Now()
	}
}

// storage lets a node's storage fail, or heals it.
func (f *fleetModel) storage() {
	n := f.node()
	for _, other := range f.nodes { // what fails is mended before another fails
		if other.hears.IsZero() {
			n = other
		}
	}
	if n.hears.IsZero() {
		n.door.Fail(nil)
		n.hears = time.Now()
		f.say("the storage of %s is well", n.Name())
		return
	}
	n.door.Fail(errors.New("disk full"))
	n.hears = time.Time{}
	f.say("the storage of %s fails", n.Name())
}

// end ends a node: in good order, or so that an operator has to say that it is dead.
func (f *fleetModel) end() {
	if len(f.nodes) < 2 {
		return
	}
	i := f.rnd.IntN(len(f.nodes))
	n := f.nodes[i]
	f.nodes = append(f.nodes[:i:i], f.nodes[i+1:]...)
	n.kill()
	// A dead process counts nothing any more, and its visitors' sockets are closed.
	for s := range n.open {
		n.close(s)
	}
	f.say("%s is killed", n.Name())
	for _, other := range f.nodes {
		if !other.hears.IsZero() {
			if err := other.RemoveNode(f.t.Context(), n.Name(), false); err != nil && !errors.Is(err, cluster.ErrUnknownNode) {
				f.fail("saying that a node is dead: %v", err)
			}
			return
		}
	}
}

// reload replaces the policy of a node by another one, or fails to.
func (f *fleetModel) reload() {
	n := f.node()
	s := newTestSelectionWith(n.s.table, n.pool)
	s.join(n.Cluster, n.door)
	if f.rnd.IntN(3) == 0 {
		_ = s.Cleanup()
		f.say("%s fails to reload", n.Name())
		return
	}
	_ = n.s.Cleanup()
	n.s = s
	f.say("%s reloads", n.Name())
}

// check checks what must always hold.
func (f *fleetModel) check() {
	synctest.Wait()
	live := map[string]int{}
	for _, d := range f.docs {
		if d.lives() {
			live[d.at]++
		}
	}
	for _, n := range f.nodes {
		for _, st := range n.Upstreams() {
			if st.State == api.StateDrained && len(live) > 0 {
				f.seen++
			}
			// A node that cannot hear that a drain is taken back calls nothing drained after a while.
			holds := !f.mark[st.Address].IsZero() || time.Since(f.back[st.Address]) > 32*time.Second
			if st.State == api.StateDrained && holds && live[st.Address] > 0 {
				f.fail("%s calls %s drained, and %d documents live there", n.Name(), st.Address, live[st.Address])
			}
		}
		open := map[string]map[*document]bool{}
		for s := range n.open {
			if open[s.doc.at] == nil {
				open[s.doc.at] = map[*document]bool{}
			}
			open[s.doc.at][s.doc] = true
		}
		for i := range 3 {
			addr := fmt.Sprintf("u%d:80", i)
			if got := n.s.members.get(addr).Count(sessions.Connected); got != int64(len(open[addr])) {
				f.fail("%s counts %d connected sessions at %s, there are %d", n.Name(), got, addr, len(open[addr]))
			}
		}
	}
}

func TestFleetModel(t *testing.T) {
	seen := 0
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fleetModel{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), v: clustertest.NewVault(), mark: map[string]time.Time{}, back: map[string]time.Time{}}
				f.start()
				f.start()
				for range 600 {
					switch dice := f.rnd.IntN(100); {
					case dice < 8:
						f.page()
					case dice < 28:
						f.socket()
					case dice < 52:
						f.hangUp()
					case dice < 55:
						f.drain()
					case dice < 57:
						f.storage()
					case dice < 58 && len(f.nodes) < 4:
						f.start()
					case dice < 59:
						f.end()
					case dice < 61:
						f.reload()
					default:
						pass(time.Duration(f.rnd.IntN(6000)) * time.Millisecond)
					}
					f.check()
				}
				f.quieten()
				seen += f.seen
			})
		})
	}
	if t.Logf("drained was seen %d times", seen); seen < 1000 {
		t.Error("too little happens")
	}
}

// quieten lets everybody go, and then all that drains must be called drained by all.
func (f *fleetModel) quieten() {
	for _, n := range f.nodes {
		for s := range n.open {
			n.close(s)
		}
		n.door.Fail(nil)
	}
	pass(10 * time.Second)
	alive := map[string]bool{}
	for _, n := range f.nodes {
		alive[n.Name()] = true
	}
	for _, st := range f.nodes[0].Nodes() {
		if !alive[st.Node] {
			_ = f.nodes[0].RemoveNode(f.t.Context(), st.Node, false)
		}
	}
	pass(2 * time.Minute)
	for _, n := range f.nodes {
		for u := range f.mark {
			if drained, waits := n.status(u); !drained {
				f.fail("in the end %s does not call %s drained: %s", n.Name(), u, waits)
			}
		}
	}
}
