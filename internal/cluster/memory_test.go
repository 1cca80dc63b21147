// This file tests that what is remembered of what others have written to the storage stays little, and that nothing is called drained
// for what is forgotten of it.

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
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
func strangeMark(i int, state string) (key string, m *drainRecord) {
	m = &drainRecord{ID: store.RandomName(), Said: 1, Upstream: fmt.Sprintf("strange%d:80", i), State: state, By: strings.Repeat("x", MaxReason), Reason: strings.Repeat("y", MaxReason)}
	return drainKey(m.Upstream), m
}

// strangeReport is one of a node that tells of many upstreams, in as few bytes as that takes.
func strangeReport(i int) (key string, record any) {
	name, told := fmt.Sprintf("%x", i), make(map[string]any)
	for u := range maxAccounts {
		told[fmt.Sprintf("%x", u)] = map[string]int{"begun": 1}
	}
	return nodeKey(name), map[string]any{"node": name, "seq": 1, "settles": 1, "upstreams": told}
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
	for _, state := range []string{stateReady, stateDraining, stateClosed} {
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
						v.Values[drainsFolder+"0.json"] = []byte("{bro")
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
						if got := n.logs.FilterMessageSnippet("than is remembered").Len(); got > 1 || got == 0 && (broken || state == stateReady) {
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
			te.writes(t, 1000, func(i int) (string, any) { return strangeMark(i, stateReady) })
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
		delete(v.Values, nodeKey(b.name)) // somebody has put an older state of the storage back
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
		if got := a.peers[nodeKey(b.name)].Upstreams[u0].Sessions.All(); got != 1 {
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
			if key != nodeKey(b.name) {
				p.report = p.outline() // of all of them, for an hour of looks at what is remembered takes its time
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

// Whatever a node has told: what speaks against calling an upstream drained does so as well when little more is remembered of it than
// that it is there.
func TestOutlineSpeaksAgainstDrained(t *testing.T) {
	n := newTestNode(t)
	now := n.conf.Table.Now() + 2*time.Hour
	marks := []*drainRecord{nil, {ID: "x", State: stateDraining}, {ID: "x", State: stateClosed}}
	cases := 0
	for bits := range 1 << 9 {
		is := func(i int) bool { return bits>>i&1 > 0 }
		a := account{InPool: is(0), Draining: is(1), Mark: "x"}
		if is(2) {
			a.Sessions.Connected = 1
		}
		if is(3) {
			a.Mark = "older"
		}
		r := &report{Node: "beef", Settled: is(4), Unsure: is(5), Left: is(6), Heard: map[string]uint64{n.name: math.MaxUint64}, Upstreams: map[string]account{u0: a}}
		whole, outlined := &peer{report: r, changed: now}, &peer{report: r.outline(), changed: now}
		for _, p := range []*peer{whole, outlined} {
			if is(7) {
				p.gone = now
			}
			if is(8) {
				p.changed = now - time.Hour
			}
		}
		for _, m := range marks {
			s := &snapshot{now: now, node: n.name, ttl: 32 * time.Second, shared: u0, record: m}
			before := s.waitsFor(whole)
			after := s.waitsFor(outlined)
			certain := func(w wait) bool { return w.certain }
			if len(before) > 0 && len(after) == 0 || slices.ContainsFunc(before, certain) && !slices.ContainsFunc(after, certain) {
				t.Errorf("%+v, mark %+v: it waits for %v, and then for %v", whole, m, before, after)
			}
			cases++
		}
	}
	if cases != 3<<9 {
		t.Error("too few cases: ", cases)
	}
}

func newTestNode(t *testing.T) *Cluster {
	t.Helper()
	return makeNode(t, clustertest.NewVault().Door(), newTestPolicy(testPool(3)), testPool(3)).Cluster
}

// What a few bytes of JSON become in memory counts while a folder is read.
func TestManySmallAccounts(t *testing.T) {
	v := clustertest.NewVault()
	for i := range 100 {
		key, record := strangeReport(i + 1)
		put(t, v, key, record)
	}
	l := store.NewLister(store.Counting(v.Door(), sessions.NewCounters(store.Operations...).Add), nodeKey("0"))
	records, err := store.LoadAll[report](t.Context(), l, store.NodesFolder)
	memory := 0
	for _, r := range records {
		memory += r.Memory()
	}
	if !errors.Is(err, store.ErrTooMuch) || memory > store.MaxMemory+(store.LoadsAtOnce+1)*8<<20 {
		t.Errorf("%d reports are read, which take %d MiB: %v", len(records), memory>>20, err)
	}
}

// What is taken for the memory of a record is what it takes, whatever it looks like.
func TestMemoryOfRecords(t *testing.T) {
	small, keys, heard, fleet := make(map[string]account), make([]string, 100_000), make(map[string]uint64), make(map[string]account)
	for i := range maxAccounts {
		small[fmt.Sprintf("%x", i)] = account{Begun: 1}
	}
	for i := range store.MaxRecords {
		heard[fmt.Sprintf("%x", i)] = 1
	}
	for i := range 1000 {
		fleet[fmt.Sprintf("bokeh-%d.bokeh-headless.a-namespace.svc.cluster.local:5006", i)] = account{InPool: true, Keys: []string{store.RandomName()}, Mark: store.RandomName()}
	}
	for name, r := range map[string]*report{
		"small accounts": {Node: "a", Upstreams: small},
		"empty keys":     {Node: "a", Upstreams: map[string]account{u0: {Keys: keys}}},
		"heard":          {Node: "a", Heard: heard},
		"a fleet":        {Node: "a", Upstreams: fleet},
	} {
		value, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		const copies = 20
		read := make([]*report, copies)
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range read {
			read[i] = new(report)
			if err := json.Unmarshal(value, read[i]); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		takes := int(after.HeapAlloc-before.HeapAlloc) / copies
		if told := read[0].Memory(); takes > 2*told || told > 4*takes {
			t.Errorf("%s: %d KiB of JSON take %d KiB of memory, and are taken for %d KiB", name, len(value)>>10, takes>>10, told>>10)
		}
		runtime.KeepAlive(read)
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
			key, m := strangeMark(i, stateDraining)
			put(t, v, key, m)
			name := fmt.Sprintf("%x", i)
			put(t, v, nodeKey(name), &report{Node: name, Seq: 1, Settled: true})
		}
		a.drain(u0)
		pass(10 * time.Second)
		a.wantWait(u0, fmt.Sprintf("%d other Caddys", many-maxWaits), "among many nodes")
		a.mu.Lock()
		defer a.mu.Unlock()
		waits := 0
		for _, v := range a.verdicts {
			waits += len(v.waits)
		}
		if most := (many + 1) * (maxWaits + 4); len(a.verdicts) != many+1 || waits > most {
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
		m, _ := loadDrainRecord(t.Context(), a.door, u0)
		reports := make([]*report, 2*maxWaits)
		write := func() {
			a.mu.Lock()
			seq := a.seq
			a.mu.Unlock()
			for _, r := range reports {
				r.Seq++
				r.Heard = map[string]uint64{a.name: seq}
				put(t, v, nodeKey(r.Node), r)
			}
		}
		for i := range reports {
			name := fmt.Sprintf("%x", 100+i)
			reports[i] = &report{Node: name, Settled: true, Upstreams: map[string]account{u0: {Mark: m.ID, Draining: true, InPool: true}}}
		}
		for range 10 {
			write()
			pass(nodeInterval)
		}
		a.wantDrained(u0, true, "which all nodes have read of")
		pass(overdueTimeout + 5*time.Second)
		a.wantDrained(u0, true, "which was certain before they were late")
		last := reports[len(reports)-1]
		last.Seq++
		last.Upstreams = map[string]account{u0: {Mark: m.ID, Draining: true, InPool: true, Sessions: api.Counts{Connected: 1}, Begun: 1}}
		put(t, v, nodeKey(last.Node), last)
		pass(5 * time.Second)
		a.wantDrained(u0, false, "with a session at the last of them")
	})
}
