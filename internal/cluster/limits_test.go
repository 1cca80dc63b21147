// This file tests that what is read of a storage is bounded, and that values which no Caddy writes do no harm.

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// poisoned returns a mark that drains u0 and cannot be later.
func poisoned(id string) *record.Drain {
	return &record.Drain{ID: id, Said: math.MaxInt64, Upstream: u0, State: api.StateDraining, By: "junk", Since: time.Now(), Written: time.Now()}
}

func put(t testing.TB, v *clustertest.Vault, key string, record any) {
	t.Helper()
	if err := store.Put(context.Background(), v.Door(), key, record); err != nil {
		t.Fatal(err)
	}
}

// What an operator says holds on every node, whatever the record says of its time.
func TestLastTimeOfAll(t *testing.T) {
	for _, id := range []string{"zz", "zz-closed", "0123456789abcdef", "~ffffffff00000000", "\U0010ffff"} {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			put(t, v, record.DrainKey(u0), poisoned(id))
			pass(time.Minute)
			a.wantState(u0, api.StateDrained, "by the record")
			for i := range 20 {
				teller, state := []*caddyNode{a, b}[i%2], []string{api.StateReady, api.StateDraining}[i%2]
				before, _ := record.LoadDrain(t.Context(), a.door, u0)
				teller.tell(u0, record.Request{State: state})
				pass(5 * time.Second)
				after, _ := record.LoadDrain(t.Context(), a.door, u0)
				if !after.Newer(before) || len(after.ID) > len(id)+20 {
					t.Fatalf("%q comes after %q", after.ID, before.ID)
				}
				a.wantState(u0, state, "when an operator has said so")
				b.wantState(u0, state, "when an operator has said so")
			}
		})
	}
}

// What no Caddy writes into a mark closes nothing, lasts for ever nowhere, and breaks no answer of the admin API.
func TestImplausibleMarks(t *testing.T) {
	late := time.Date(9999, 12, 31, 23, 0, 0, 0, time.UTC)
	for name, spoil := range map[string]func(*record.Drain){
		"grace for ever":    func(m *record.Drain) { m.Left = math.MaxInt64 },
		"grace is negative": func(m *record.Drain) { m.Left = -1 },
		"written too late":  func(m *record.Drain) { m.Written, m.Since, m.Left = late, late, record.MaxLifetime },
		"written never":     func(m *record.Drain) { m.Written, m.Left = time.Time{}, time.Hour },
		"unknown state":     func(m *record.Drain) { m.State = "junk" },
		"a long reason":     func(m *record.Drain) { m.Reason, m.By = strings.Repeat("é", 60_000), strings.Repeat("x", 60_000) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				a := startNode(t, v)
				pass(time.Minute)
				_, hangUp := a.socket(a.visitAt(u0))
				defer hangUp()
				m := poisoned("0123456789abcdef")
				m.Clock = a.clock
				spoil(m)
				put(t, v, record.DrainKey(u0), m)
				pass(time.Minute)
				a.wantState(u0, api.StateDraining, "with a session")
				body, err := json.Marshal(a.Upstreams())
				if err != nil || len(body) > 10_000 || !utf8.Valid(body) {
					t.Errorf("the answer has %d bytes: %v", len(body), err)
				}
				a.tell(u0, record.Request{State: api.StateReady})
				a.wantState(u0, api.StateReady, "when it was taken back")
			})
		})
	}
}

// A grace period ends, however long the span in which the websockets are to be closed.
func TestImplausibleSpan(t *testing.T) {
	for _, span := range []time.Duration{math.MinInt64, math.MaxInt64} {
		m := poisoned("x")
		m.Span = span
		if err := m.Check(); err != nil || m.Span < 0 || m.Span > record.MaxLifetime {
			t.Errorf("%v has become %v: %v", span, m.Span, err)
		}
	}
}

// A mark without an id says nothing: a node that has not read it seems to have.
func TestMarkWithoutID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		put(t, v, record.DrainKey(u0), poisoned(""))
		pass(10 * time.Second)
		a.wantState(u0, api.StateReady, "with a mark of no id")
		if st := a.Self(); !strings.Contains(st.Storage, record.DrainKey(u0)) || !strings.Contains(st.Storage, "delete it") {
			t.Errorf("the node says %q", st.Storage)
		}
		a.drain(u0)
		pass(10 * time.Second)
		a.wantState(u0, api.StateDrained, "when an operator has said so")
		if st := a.Self(); st.Storage != "" {
			t.Errorf("the node says %q", st.Storage)
		}
	})
}

// An upstream of this machine has one name between nodes: under a second one it would drain, and nobody could take that back.
func TestSecondName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		pool := testPool(2)
		pool[0] = "127.0.0.1:5006"
		a := startNodeOn(t, thisHost, v.Door(), pool)
		pass(time.Minute)
		m := poisoned("x")
		m.Upstream = pool[0]
		put(t, v, record.DrainKey(m.Upstream), m)
		pass(10 * time.Second)
		a.wantState(pool[0], api.StateReady, "marked by a name that is none between nodes")
	})
}

// brokenReports are what no Caddy writes.
var brokenReports = map[string]string{
	"no session, but fewer": `{"node":"%s","upstreams":{"u0:80":{"sessions":{"connected":1,"waiting":-1}}}}`,
	"too many sessions":     `{"node":"%s","upstreams":{"u0:80":{"sessions":{"connected":9223372036854775807}}}}`,
	"fewer than none begun": `{"node":"%s","upstreams":{"u0:80":{"begun":-5}}}`,
	"settles for ever":      `{"node":"%s","settles":9223372036854775807}`,
	"settles before":        `{"node":"%s","settles":-1}`,
	"a long number":         `{"node":"%s","seq":` + strings.Repeat("9", 1<<20) + `}`,
	"too large":             `{"node":"%s","host":"` + strings.Repeat("x", (*record.Report)(nil).Size()) + `"}`,
	"too many upstreams":    `{"node":"%s","upstreams":{` + strings.Repeat(`"a":{},`, 10) + manyAccounts() + `}}`,
	"a long host":           `{"node":"%s","host":"` + strings.Repeat("x", 1000) + `"}`,
	"a long mark":           `{"node":"%s","upstreams":{"u0:80":{"mark":"` + strings.Repeat("x", 1000) + `"}}}`,
	"nothing":               `{}`,
}

func manyAccounts() string {
	accounts := make([]string, record.MaxAccounts+1)
	for i := range accounts {
		accounts[i] = fmt.Sprintf(`"u%d:80":{}`, i)
	}
	return strings.Join(accounts, ",")
}

// While the report of a node cannot be read nothing is drained, and the log and the status name it. That ends when an operator
// says that the node is dead.
func TestBrokenReports(t *testing.T) {
	for name, text := range brokenReports {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				a, b := startNode(t, v), startNode(t, v)
				pass(time.Minute)
				a.drain(u0)
				const beef = "beef"
				v.Lock()
				v.Values[record.NodeKey(beef)] = []byte(strings.ReplaceAll(text, "%s", beef))
				v.Unlock()
				pass(time.Minute)
				b.wantDrained(u0, false, "with a report that cannot be read")
				st := a.Self()
				if !strings.Contains(st.Storage, "DELETE /bokeh/nodes/beef") || len(st.Storage) > 1000 {
					t.Errorf("the node says %.1000q", st.Storage)
				}
				if n := a.logs.FilterMessageSnippet("the storage fails").Len(); n != 1 {
					t.Errorf("it was logged %d times", n)
				}
				if err := a.RemoveNode(t.Context(), beef, false); err != nil {
					t.Fatal(err)
				}
				pass(time.Minute)
				a.wantDrained(u0, true, "a minute after the node was given up")
				b.wantDrained(u0, true, "a minute after the node was given up")
				if v.Holds(record.NodeKey(beef)) {
					t.Error("its record is there still")
				}
			})
		})
	}
}

// Nobody gives up what was never there, nor what lies elsewhere in the storage.
func TestGiveUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		v.Lock()
		v.Values[store.NodesFolder+"../x.json"] = []byte("x")
		v.Unlock()
		pass(time.Minute)
		for _, name := range []string{"beef", "../x", "", a.name} {
			if err := a.RemoveNode(t.Context(), name, true); !errors.Is(err, ErrUnknownNode) {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}

// A node that says that browsers come back for years is waited for as long, unless an operator knows better.
func TestForgetNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		put(t, v, record.NodeKey("beef"), &record.Report{Node: "beef", Seq: 1, Settles: 2 * record.MaxLifetime})
		pass(10 * time.Second)
		a.drain(u0)
		if err := a.RemoveNode(t.Context(), "beef", false); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		a.wantWait(u0, "DELETE /bokeh/nodes/beef?force=true", "an hour after it was given up")
		if err := a.RemoveNode(t.Context(), "beef", true); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		a.wantDrained(u0, true, "when it was forgotten")
	})
}

// Nobody has heard what was not said yet.
func TestHeardOfTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		m, _ := record.LoadDrain(t.Context(), a.door, u0)
		r := &record.Report{Node: "beef", Settled: true, Heard: map[string]uint64{a.name: math.MaxUint64}, Upstreams: map[string]record.Account{u0: {Mark: m.ID}}}
		for range 30 {
			r.Seq++
			put(t, v, record.NodeKey(r.Node), r)
			pass(2 * time.Second)
			a.wantDrained(u0, false, "with a node that says so")
		}
	})
}

// Nothing is drained where more nodes have reported than are read, and no error is as long as the folder.
func TestTooManyRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		v.Lock()
		for i := range 2 * store.MaxRecords {
			v.Values[record.NodeKey(fmt.Sprintf("%x", i))] = []byte("junk")
		}
		v.Unlock()
		pass(time.Minute)
		a.wantDrained(u0, false, "in a crowd")
		if st := a.Self(); !strings.Contains(st.Storage, "more than 4096 records") || !strings.Contains(st.Storage, "and 409") || len(st.Storage) > 2000 {
			t.Errorf("the node says %.2000q", st.Storage)
		}
		if n := a.storageErrors["list"].Load(); n == 0 {
			t.Error("no error is counted")
		}
	})
}

// Marks of upstreams that are known are read though there are more than are read.
func TestTooManyMarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		m := poisoned("x")
		put(t, v, record.DrainKey(u0), m)
		for i := range 2 * store.MaxRecords {
			v.Values[record.DrainsFolder+fmt.Sprintf("%032x", i)+store.Suffix] = []byte("junk")
		}
		a := startNode(t, v)
		pass(time.Minute)
		a.wantNoVisit(u0, "marked among many")
	})
}

// All that is read of a folder is bounded, though each record is small enough.
func TestTooManyBytes(t *testing.T) {
	v := clustertest.NewVault()
	l := store.NewLister(store.Counting(v.Door(), sessions.NewCounters(store.Operations...).Add), record.NodeKey("0"))
	big := strings.Repeat("x", (*record.Report)(nil).Size()-100)
	nodes := 2 * store.MaxFolder / (*record.Report)(nil).Size()
	for i := range nodes {
		name := fmt.Sprintf("%x", i)
		v.Values[record.NodeKey(name)] = fmt.Appendf(nil, `{"node":%q,"x":%q}`, name, big)
	}
	records, err := store.LoadAll[record.Report](t.Context(), l, store.NodesFolder)
	if !errors.Is(err, store.ErrTooMuch) || len(records) > nodes/2+2*store.LoadsAtOnce {
		t.Errorf("%d of %d were read: %v", len(records), nodes, err)
	}
}

// sizedDoor can say how large a value is, and counts how often one is loaded.
type sizedDoor struct {
	*clustertest.Door
	loads int
}

func (d *sizedDoor) Load(ctx context.Context, key string) ([]byte, error) {
	d.loads++
	return d.Door.Load(ctx, key)
}

func (d *sizedDoor) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	value := d.Value(key)
	if value == nil {
		return certmagic.KeyInfo{}, fs.ErrNotExist
	}
	return certmagic.KeyInfo{Key: key, Size: int64(len(value))}, nil
}

// A record that is too large is loaded once, and again when it is not so large any more.
func TestTooLargeIsLoadedOnce(t *testing.T) {
	v := clustertest.NewVault()
	d := &sizedDoor{Door: v.Door()}
	n := New(context.Background(), testConfig(newTestTable(), nil, nil))
	st := n.share(d).st
	v.Values[record.DrainKey(u0)] = make([]byte, (*record.Drain)(nil).Size()+1)
	for range 5 {
		if _, err := store.Load[record.Drain](t.Context(), st, record.DrainKey(u0)); !errors.Is(err, store.ErrBroken) || !strings.Contains(err.Error(), "524289 bytes") {
			t.Error(err)
		}
	}
	if d.loads != 1 || n.storageErrors["load"].Load() != 5 {
		t.Errorf("it was loaded %d times, and %d errors are counted", d.loads, n.storageErrors["load"].Load())
	}
	put(t, v, record.DrainKey(u0), poisoned("x"))
	if m, err := store.Load[record.Drain](t.Context(), st, record.DrainKey(u0)); m == nil || err != nil {
		t.Error("the next one is not read: ", err)
	}
	v.Values[record.DrainKey(u0)] = make([]byte, (*record.Drain)(nil).Size()+1)
	_, _ = store.Load[record.Drain](t.Context(), st, record.DrainKey(u0))
	delete(v.Values, record.DrainKey(u0))
	if _, err := store.LoadAll[record.Drain](t.Context(), store.NewLister(st, record.NodeKey("0")), record.DrainsFolder); err != nil {
		t.Error(err)
	}
	v.Values[record.DrainKey(u0)] = make([]byte, (*record.Drain)(nil).Size()+1)
	before := d.loads
	_, _ = store.Load[record.Drain](t.Context(), st, record.DrainKey(u0))
	if d.loads != before+1 {
		t.Error("it is remembered that it was too large, though it was there no more")
	}
}

// Files that seem to be larger than the memory, and take no room on the disk, are not read.
func TestSparseFiles(t *testing.T) {
	st := &certmagic.FileStorage{Path: t.TempDir()}
	var keys []string
	for i := range 3 {
		keys = append(keys, record.NodeKey(fmt.Sprintf("%x", i)))
	}
	for _, key := range keys {
		if err := st.Store(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(st.Filename(key), 128<<20); err != nil {
			t.Skip(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 2 {
		if _, err := store.LoadAll[record.Report](t.Context(), New(context.Background(), testConfig(newTestTable(), nil, nil)).share(st).records, store.NodesFolder); !errors.Is(err, store.ErrBroken) {
			t.Error(err)
		}
	}
	runtime.ReadMemStats(&after)
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 64 {
		t.Errorf("%d MiB are read", mib)
	}
}

// decode returns the record that a text is, or nil, as a node reads it.
func decode[T any, R store.Record[T]](key, text string) *T {
	v := clustertest.NewVault()
	v.Values[key] = []byte(text)
	r, _ := store.Load[T, R](context.Background(), v.Door(), key)
	return r
}

// quietNode returns a node that neither reads nor writes.
func quietNode(f *testing.F) *Cluster {
	s := newTestPolicy(testPool(3))
	n := New(context.Background(), testConfig(s.table, noStorage, zap.NewNop()))
	n.shares = []*share{{pools: []Policy{s}}}
	n.used = n.shares[0]
	f.Cleanup(func() { _ = s.Cleanup() })
	return n
}

// FuzzMark reads what a storage may hold as a mark: it can be told of and taken back, and then is not the last word.
func FuzzMark(f *testing.F) {
	for _, m := range []*record.Drain{poisoned("zz"), poisoned(""), poisoned("0123456789abcdef-closed"), {ID: "x", Said: -1, Upstream: u0, State: api.StateClosed, Left: math.MinInt64}} {
		value, _ := json.Marshal(m)
		f.Add(string(value))
	}
	f.Add(`{"id":"~ffffffff00000000","upstream":"u1:80","left":9223372036854775807,"span":-1,"written":"9999-12-31T23:59:59Z","since":"0000-01-01T00:00:00Z"}`)
	f.Add(`{"id":"` + strings.Repeat("~", 240) + `","upstream":"127.0.0.1:80","said":9223372036854775807}`)
	f.Add("null")
	n := quietNode(f)
	f.Fuzz(func(t *testing.T, text string) {
		m := decode[record.Drain](record.DrainKey(u0), text)
		if m == nil {
			return
		}
		ready := record.Request{State: api.StateReady, Reason: "fuzz"}.Record(m, m.Upstream, "here", 0)
		if !ready.Newer(m) || !ready.Newer(m.Closed()) || ready.Drains() {
			t.Errorf("%q of %d does not come after it", ready.ID, ready.Said)
		}
		value, err := json.Marshal(ready)
		if again := decode[record.Drain](record.DrainKey(u0), string(value)); err != nil || again == nil || again.Newer(ready) || ready.Newer(again) {
			t.Errorf("%s is not read again: %v", value, err)
		}
		n.mu.Lock()
		n.mergeRecords(n.used, map[string]*record.Drain{record.DrainKey(m.Upstream): m}, true, false, nil)
		n.closeDue(n.conf.Table.Now())
		n.mu.Unlock()
		if _, err := json.Marshal(n.Upstreams()); err != nil {
			t.Error(err)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.mergeRecords(n.used, map[string]*record.Drain{record.DrainKey(m.Upstream): ready}, true, false, nil)
		n.conf.Table.Each(func(u *sessions.Upstream) {
			if u.Drain.On() {
				t.Errorf("%q drains still", u.Name)
			}
		})
		clear(n.drains)
	})
}

// FuzzReport reads what a storage may hold as a report: it can be told of, and no upstream is drained that it says nothing of.
func FuzzReport(f *testing.F) {
	for _, text := range brokenReports {
		if len(text) < 10_000 {
			f.Add(strings.ReplaceAll(text, "%s", "beef"))
		}
	}
	r := &record.Report{Node: "beef", Seq: 1, Settled: true, Heard: map[string]uint64{"x": math.MaxUint64}, Upstreams: map[string]record.Account{u0: {Mark: "x"}}}
	value, _ := json.Marshal(r)
	f.Add(string(value))
	f.Add(`{"node":"beef","process":{"pid":-1},"left":true,"upstreams":{"u0:80":{"oldest":1e308,"keys":[""]}}}`)
	n := quietNode(f)
	n.apply(poisoned("the mark"))
	f.Fuzz(func(t *testing.T, text string) {
		r := decode[record.Report](record.NodeKey("beef"), text)
		if r == nil {
			return
		}
		n.mu.Lock()
		key, now := record.NodeKey(r.Node), n.conf.Table.Now()+time.Hour
		n.round, n.listed, n.used.trusted = now, now, true
		n.updatePeers(n.used, map[string]*record.Report{key: r}, true, now)
		n.judgeAll(now)
		n.judgeAll(now + verdict.DrainQuarantine)
		for u, v := range n.verdicts {
			if p := n.peers[key]; v.Drained && p != nil && p.Gone == 0 && (r.Upstreams[u.Shared].Mark != "the mark" || r.Upstreams[u.Shared].Sessions.All() > 0) {
				t.Errorf("%q is drained: %+v", u.Name, v)
			}
		}
		if p := n.peers[key]; p != nil && n.mayReturnFor(p, now) > now+2*record.MaxLifetime {
			t.Error("it settles for ever")
		}
		n.mu.Unlock()
		if _, err := json.Marshal(n.Upstreams()); err != nil {
			t.Error(err)
		}
		for _, st := range n.Nodes() {
			if st.Sessions.All() < 0 {
				t.Errorf("%+v", st)
			}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		clear(n.peers)
	})
}
