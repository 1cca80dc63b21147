// This file tests that what is remembered of what others have written to the storage stays little, and that nothing is called drained
// for what is forgotten of it.

package cluster

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// tenant has the same storage as a fleet, and gives its records other names again and again.
type tenant struct {
	*clustertest.Vault
	wrote []string
	n     int // names so far
}

// writes deletes what the tenant has written, and writes some records anew.
func (te *tenant) writes(t *testing.T, records int, write func(i int) (key string, record any)) {
	t.Helper()
	te.Lock()
	for _, key := range te.wrote {
		delete(te.Values, key)
	}
	te.Unlock()
	te.wrote = te.wrote[:0]
	for range records {
		te.n++
		key, record := write(te.n)
		put(t, te.Vault, key, record)
		te.wrote = append(te.wrote, key)
	}
}

// strangeMark is one of an upstream that is in no pool.
func strangeMark(i int, state string) (key string, m *record.Drain) {
	m = &record.Drain{ID: store.RandomName(), Said: 1, Upstream: fmt.Sprintf("strange%d:80", i), State: state, By: strings.Repeat("x", record.MaxReason), Reason: strings.Repeat("y", record.MaxReason)}
	return record.DrainKey(m.Upstream), m
}

// strangeReport is one of a node that tells of many upstreams, in as few bytes as that takes.
func strangeReport(i int) (key string, rec any) {
	name, told := fmt.Sprintf("%x", i), make(map[string]any)
	for u := range record.MaxAccounts {
		told[fmt.Sprintf("%x", u)] = map[string]int{"begun": 1}
	}
	return record.NodeKey(name), map[string]any{"node": name, "seq": 1, "settles": 1, "upstreams": told}
}

// marksKept returns how many marks a node remembers, and how many bytes of memory they take.
func (c *caddyNode) marksKept() (marks, memory int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, md := range c.drains {
		memory += md.Memory()
	}
	return len(c.drains), memory
}

// reportsKept returns how many nodes a node remembers, and how many bytes of memory their reports take.
func (c *caddyNode) reportsKept() (nodes, memory int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.peers {
		memory += p.Memory()
	}
	return len(c.peers), memory
}

// Marks of upstreams that are in no pool do not become more and more, whatever they say. Those that take a drain back are remembered
// for a day, though nothing in the storage tells of them; and nothing is forgotten where a record cannot be read.
func TestStrangersMarksAreBounded(t *testing.T) {
	for _, state := range []string{api.StateReady, api.StateDraining, api.StateClosed} {
		for _, broken := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, broken %v", state, broken), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					v := clustertest.NewVault()
					a, b := startNode(t, v), startNode(t, v)
					pass(time.Minute)
					a.drain(u0)
					pass(10 * time.Second)
					if broken {
						v.Lock()
						v.Values[record.DrainsFolder+"0.json"] = []byte("{bro")
						v.Unlock()
					}
					te := &tenant{Vault: v}
					for range 8 {
						te.writes(t, 1000, func(i int) (string, any) { return strangeMark(i, state) })
						pass(nodeInterval)
						if marks, memory := b.marksKept(); marks > maxStrangers+1 || memory > 20<<20 {
							t.Fatalf("after %d marks it remembers %d, which take %d KiB", te.n, marks, memory>>10)
						}
					}
					for _, n := range []*caddyNode{a, b} {
						n.wantNoVisit(u0, "marked before the others were")
						if got := n.logs.FilterMessageSnippet("than is remembered").Len(); got > 1 || got == 0 && (broken || state == api.StateReady) {
							t.Errorf("it is logged %d times", got)
						}
						if got := n.logs.FilterMessageSnippet("is marked").Len(); got != 1 {
							t.Errorf("of %d marks of upstreams that nobody here knows it is logged too: %d lines", te.n, got)
						}
					}
				})
			})
		}
	}
}

// Of too many marks, those stay that another node needs read: it has the upstream in its pool.
func TestMarksOfOthersPoolsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNodeOn(t, "a", v.Door(), testPool(2)), startNodeOn(t, "b", v.Door(), testPool(3))
		pass(time.Minute)
		b.drain("u2:80")
		pass(10 * time.Second)
		te := &tenant{Vault: v}
		for range 8 {
			te.writes(t, 1000, func(i int) (string, any) { return strangeMark(i, api.StateReady) })
			pass(nodeInterval)
			a.mu.Lock()
			kept := a.drains["u2:80"] != nil
			a.mu.Unlock()
			if !kept {
				t.Fatal("the mark of an upstream of another node's pool is forgotten")
			}
		}
		pass(time.Minute)
		b.wantDrained("u2:80", true, "which the other node has read of")
	})
}

// Reports of nodes that nobody has seen again do not become more and more. What they have told is forgotten, not that they may be
// there: nothing is drained for it. A node with sessions at an upstream that is known here is forgotten last.
func TestStrangersReportsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a, b := startNode(t, v), startNode(t, v)
		pass(time.Minute)
		token := b.visitAt(u0)
		_, hangUp := b.socket(token)
		pass(reportInterval + nodeInterval)
		b.door.Fail(errors.New("no route to host"))
		v.Lock()
		delete(v.Values, record.NodeKey(b.name)) // somebody has put an older state of the storage back
		v.Unlock()
		a.drain(u0)
		te := &tenant{Vault: v}
		for range 8 {
			te.writes(t, 12, strangeReport)
			pass(nodeInterval)
			if nodes, memory := a.reportsKept(); memory > store.MaxMemory || nodes != te.n+1 {
				t.Fatalf("of %d nodes it remembers %d, whose reports take %d MiB", te.n+1, nodes, memory>>20)
			}
			a.wantDrained(u0, false, "with a websocket at a node that cannot be heard")
		}
		a.mu.Lock()
		if got := a.peers[record.NodeKey(b.name)].Upstreams[u0].Sessions.All(); got != 1 {
			t.Errorf("of a node with a session it remembers %d sessions", got)
		}
		a.mu.Unlock()
		if got := a.logs.FilterMessageSnippet("than is remembered").Len(); got != 1 {
			t.Errorf("it is logged %d times", got)
		}
		te.writes(t, 0, nil)
		b.door.Fail(nil)
		hangUp()
		pass(time.Minute)
		a.wantDrained(u0, false, "with nodes of which little is remembered")
		a.mu.Lock()
		for key, p := range a.peers {
			if key != record.NodeKey(b.name) {
				p.Report = p.Outline() // of all of them, for an hour of looks at what is remembered takes its time
			}
		}
		a.mu.Unlock()
		pass(deadTimeout + time.Minute)
		a.wantDrained(u0, true, "when those were given up")
		if nodes, _ := a.reportsKept(); nodes != 1 {
			t.Errorf("it remembers %d nodes", nodes)
		}
	})
}

// What a few bytes of JSON become in memory counts while a folder is read.
func TestManySmallAccounts(t *testing.T) {
	v := clustertest.NewVault()
	for i := range 100 {
		key, record := strangeReport(i + 1)
		put(t, v, key, record)
	}
	l := store.NewLister(store.Counting(v.Door(), sessions.NewCounters(store.Operations...).Add), record.NodeKey("0"))
	records, err := store.LoadAll[record.Report](t.Context(), l, store.NodesFolder)
	memory := 0
	for _, r := range records {
		memory += r.Memory()
	}
	if !errors.Is(err, store.ErrTooMuch) || memory > store.MaxMemory+(store.LoadsAtOnce+1)*8<<20 {
		t.Errorf("%d reports are read, which take %d MiB: %v", len(records), memory>>20, err)
	}
}

// However many nodes and drains there are, what each drain waits for is told in a few lines.
func TestWaitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		const many = 300
		for i := range many {
			key, m := strangeMark(i, api.StateDraining)
			put(t, v, key, m)
			name := fmt.Sprintf("%x", i)
			put(t, v, record.NodeKey(name), &record.Report{Node: name, Seq: 1, Settled: true})
		}
		a.drain(u0)
		pass(10 * time.Second)
		a.wantWait(u0, fmt.Sprintf("%d other Caddys", many-verdict.MaxWaits), "among many nodes")
		a.mu.Lock()
		defer a.mu.Unlock()
		waits := 0
		for _, v := range a.verdicts {
			waits += len(v.Waits)
		}
		if most := (many + 1) * (verdict.MaxWaits + 4); len(a.verdicts) != many+1 || waits > most {
			t.Errorf("%d drains wait for %d things", len(a.verdicts), waits)
		}
	})
}

// What was certain stays so while nodes are late, however many, and does not if one of them has sessions.
func TestCertainAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(10 * time.Second)
		m, _ := record.LoadDrain(t.Context(), a.door, u0)
		reports := make([]*record.Report, 2*verdict.MaxWaits)
		write := func() {
			a.mu.Lock()
			seq := a.seq
			a.mu.Unlock()
			for _, r := range reports {
				r.Seq++
				r.Heard = map[string]uint64{a.name: seq}
				put(t, v, record.NodeKey(r.Node), r)
			}
		}
		for i := range reports {
			name := fmt.Sprintf("%x", 100+i)
			reports[i] = &record.Report{Node: name, Settled: true, Upstreams: map[string]record.Account{u0: {Mark: m.ID, Draining: true, InPool: true}}}
		}
		for range 10 {
			write()
			pass(nodeInterval)
		}
		a.wantDrained(u0, true, "which all nodes have read of")
		pass(verdict.OverdueTimeout + 5*time.Second)
		a.wantDrained(u0, true, "which was certain before they were late")
		last := reports[len(reports)-1]
		last.Seq++
		last.Upstreams = map[string]record.Account{u0: {Mark: m.ID, Draining: true, InPool: true, Sessions: api.Counts{Connected: 1}, Begun: 1}}
		put(t, v, record.NodeKey(last.Node), last)
		pass(5 * time.Second)
		a.wantDrained(u0, false, "with a session at the last of them")
	})
}
