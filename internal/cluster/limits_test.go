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
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// poisoned returns a mark that drains u0 and cannot be later.
func poisoned(id string) *drainRecord {
	return &drainRecord{ID: id, Said: math.MaxInt64, Upstream: u0, State: stateDraining, By: "junk", Since: time.Now(), Written: time.Now()}
}

func put(t testing.TB, v *clustertest.Vault, key string, record any) {
	t.Helper()
	if err := store.Put(context.Background(), v.Door(), key, record); err != nil {
		t.Fatal(err)
	}
}

// What an operator says holds on every node, whatever the record says of its time.
func TestLastTimeOfAll(t *testing.T) {
	for _, id := range []string{"zz", "zz" + closedSuffix, "0123456789abcdef", "~ffffffff00000000", "\U0010ffff"} {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a, b := startNode(t, v), startNode(t, v)
			pass(time.Minute)
			put(t, v, drainKey(u0), poisoned(id))
			pass(time.Minute)
			a.wantState(u0, api.StateDrained, "by the record")
			for i := range 20 {
				teller, state := []*caddyNode{a, b}[i%2], []string{stateReady, stateDraining}[i%2]
				before, _ := loadDrainRecord(t.Context(), a.door, u0)
				teller.tell(u0, DrainRequest{State: state})
				pass(5 * time.Second)
				after, _ := loadDrainRecord(t.Context(), a.door, u0)
				if !after.newer(before) || len(after.ID) > len(id)+20 {
					t.Fatalf("%q comes after %q", after.ID, before.ID)
				}
				a.wantState(u0, state, "when an operator has said so")
				b.wantState(u0, state, "when an operator has said so")
			}
		})
	}
}

func TestLaterID(t *testing.T) {
	for _, id := range []string{"", "zz", "~", "~~~~", "0~0000000000000000", "a~0000000Fzzzzzzzz", "a~ffffffffzzzzzzzz", strings.Repeat("~", 40), "é~x"} {
		for i := range 100 {
			later := laterID(id)
			if i%2 > 0 {
				later += withdrawnSuffix
			}
			if later <= id || !isID(later) {
				t.Fatalf("%q comes after %q", later, id)
			}
			id = later
		}
		if len(id) > 70 {
			t.Errorf("it has grown to %q", id)
		}
	}
}

// A drain that comes after a mark with an id as long as may be can be taken back, and closed, and all nodes read that.
func TestLongestID(t *testing.T) {
	for size := maxName; size > 200; size-- {
		id := strings.Repeat("~", size-1) + "0"
		m := &drainRecord{ID: id, Said: math.MaxInt64, Upstream: u0, State: stateReady}
		if m.Check() != nil {
			continue
		}
		next := DrainRequest{State: stateDraining}.record(m, u0, "c", 0)
		for _, m := range []*drainRecord{next, next.closed(), next.withdrawn(m), next.withdrawn(m).closed()} {
			if err := m.Check(); err != nil {
				t.Fatalf("after an id of %d bytes one of %d: %v", size, len(m.ID), err)
			}
		}
	}
}

// What no Caddy writes into a mark closes nothing, lasts for ever nowhere, and breaks no answer of the admin API.
func TestImplausibleMarks(t *testing.T) {
	late := time.Date(9999, 12, 31, 23, 0, 0, 0, time.UTC)
	for name, spoil := range map[string]func(*drainRecord){
		"grace for ever":    func(m *drainRecord) { m.Left = math.MaxInt64 },
		"grace is negative": func(m *drainRecord) { m.Left = -1 },
		"written too late":  func(m *drainRecord) { m.Written, m.Since, m.Left = late, late, MaxLifetime },
		"written never":     func(m *drainRecord) { m.Written, m.Left = time.Time{}, time.Hour },
		"unknown state":     func(m *drainRecord) { m.State = "junk" },
		"a long reason":     func(m *drainRecord) { m.Reason, m.By = strings.Repeat("é", 60_000), strings.Repeat("x", 60_000) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				a := startNode(t, v)
				pass(time.Minute)
				_, hangUp := a.socket(a.visitAt(u0))
				defer hangUp()
				m := poisoned("0123456789abcdef")
				m.Clock = a.clock()
				spoil(m)
				put(t, v, drainKey(u0), m)
				pass(time.Minute)
				a.wantState(u0, stateDraining, "with a session")
				body, err := json.Marshal(a.Upstreams())
				if err != nil || len(body) > 10_000 || !utf8.Valid(body) {
					t.Errorf("the answer has %d bytes: %v", len(body), err)
				}
				a.tell(u0, DrainRequest{State: stateReady})
				a.wantState(u0, stateReady, "when it was taken back")
			})
		})
	}
}

// A grace period ends, however long the span in which the websockets are to be closed.
func TestImplausibleSpan(t *testing.T) {
	for _, span := range []time.Duration{math.MinInt64, math.MaxInt64} {
		m := poisoned("x")
		m.Span = span
		if err := m.Check(); err != nil || m.Span < 0 || m.Span > MaxLifetime {
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
		put(t, v, drainKey(u0), poisoned(""))
		pass(10 * time.Second)
		a.wantState(u0, stateReady, "with a mark of no id")
		if st := a.Self(); !strings.Contains(st.Storage, drainKey(u0)) || !strings.Contains(st.Storage, "delete it") {
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
		put(t, v, drainKey(m.Upstream), m)
		pass(10 * time.Second)
		a.wantState(pool[0], stateReady, "marked by a name that is none between nodes")
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
	"too large":             `{"node":"%s","host":"` + strings.Repeat("x", maxReport) + `"}`,
	"too many upstreams":    `{"node":"%s","upstreams":{` + strings.Repeat(`"a":{},`, 10) + manyAccounts() + `}}`,
	"a long host":           `{"node":"%s","host":"` + strings.Repeat("x", 1000) + `"}`,
	"a long mark":           `{"node":"%s","upstreams":{"u0:80":{"mark":"` + strings.Repeat("x", 1000) + `"}}}`,
	"nothing":               `{}`,
}

func manyAccounts() string {
	accounts := make([]string, maxAccounts+1)
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
				v.Values[nodeKey(beef)] = []byte(strings.ReplaceAll(text, "%s", beef))
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
				if v.Holds(nodeKey(beef)) {
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
		put(t, v, nodeKey("beef"), &report{Node: "beef", Seq: 1, Settles: 2 * MaxLifetime})
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
		m, _ := loadDrainRecord(t.Context(), a.door, u0)
		r := &report{Node: "beef", Settled: true, Heard: map[string]uint64{a.name: math.MaxUint64}, Upstreams: map[string]account{u0: {Mark: m.ID}}}
		for range 30 {
			r.Seq++
			put(t, v, nodeKey(r.Node), r)
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
			v.Values[nodeKey(fmt.Sprintf("%x", i))] = []byte("junk")
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
		put(t, v, drainKey(u0), m)
		for i := range 2 * store.MaxRecords {
			v.Values[drainsFolder+fmt.Sprintf("%032x", i)+store.Suffix] = []byte("junk")
		}
		a := startNode(t, v)
		pass(time.Minute)
		a.wantNoVisit(u0, "marked among many")
	})
}

// All that is read of a folder is bounded, though each record is small enough.
func TestTooManyBytes(t *testing.T) {
	v := clustertest.NewVault()
	l := store.NewLister(store.Counting(v.Door(), sessions.NewCounters(store.Operations...).Add), nodeKey("0"))
	big := strings.Repeat("x", maxReport-100)
	const nodes = 2 * store.MaxFolder / maxReport
	for i := range nodes {
		name := fmt.Sprintf("%x", i)
		v.Values[nodeKey(name)] = fmt.Appendf(nil, `{"node":%q,"x":%q}`, name, big)
	}
	records, err := store.LoadAll[report](t.Context(), l, store.NodesFolder)
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
	v.Values[drainKey(u0)] = make([]byte, maxMark+1)
	for range 5 {
		if _, err := store.Load[drainRecord](t.Context(), st, drainKey(u0)); !errors.Is(err, store.ErrBroken) || !strings.Contains(err.Error(), "524289 bytes") {
			t.Error(err)
		}
	}
	if d.loads != 1 || n.storageErrors["load"].Load() != 5 {
		t.Errorf("it was loaded %d times, and %d errors are counted", d.loads, n.storageErrors["load"].Load())
	}
	put(t, v, drainKey(u0), poisoned("x"))
	if m, err := store.Load[drainRecord](t.Context(), st, drainKey(u0)); m == nil || err != nil {
		t.Error("the next one is not read: ", err)
	}
	v.Values[drainKey(u0)] = make([]byte, maxMark+1)
	_, _ = store.Load[drainRecord](t.Context(), st, drainKey(u0))
	delete(v.Values, drainKey(u0))
	if _, err := store.LoadAll[drainRecord](t.Context(), store.NewLister(st, nodeKey("0")), drainsFolder); err != nil {
		t.Error(err)
	}
	v.Values[drainKey(u0)] = make([]byte, maxMark+1)
	before := d.loads
	_, _ = store.Load[drainRecord](t.Context(), st, drainKey(u0))
	if d.loads != before+1 {
		t.Error("it is remembered that it was too large, though it was there no more")
	}
}

// Files that seem to be larger than the memory, and take no room on the disk, are not read.
func TestSparseFiles(t *testing.T) {
	st := &certmagic.FileStorage{Path: t.TempDir()}
	var keys []string
	for i := range 3 {
		keys = append(keys, nodeKey(fmt.Sprintf("%x", i)))
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
		if _, err := store.LoadAll[report](t.Context(), New(context.Background(), testConfig(newTestTable(), nil, nil)).share(st).records, store.NodesFolder); !errors.Is(err, store.ErrBroken) {
			t.Error(err)
		}
	}
	runtime.ReadMemStats(&after)
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 64 {
		t.Errorf("%d MiB are read", mib)
	}
}

// What a node writes, others read, whatever visitors make up. It leaves out what matters least, and says that it has.
func TestReportFits(t *testing.T) {
	r := &report{Node: "a", Upstreams: make(map[string]account)}
	for i := range 2 * 4096 { // twice what a policy remembers
		a := account{InPool: true, Begun: int64(i), Keys: []string{strings.Repeat("f", 16)}}
		switch i % 1000 {
		case 500:
			a.Draining = true
		case 501:
			a.Sessions.Connected = 1
		}
		r.Upstreams[fmt.Sprintf("%d%s", i, strings.Repeat("<", 250))] = a
	}
	all := r.Upstreams
	r.fit()
	value, err := json.Marshal(r)
	if err != nil || len(value) > maxReport || len(value) < maxReport-4000 || !r.Unsure {
		t.Errorf("it has %d bytes, unsure is %v: %v", len(value), r.Unsure, err)
	}
	for shared, a := range all {
		if _, there := r.Upstreams[shared]; !there && (a.Draining || a.Sessions.All() > 0) {
			t.Errorf("%.10s is left out", shared)
		}
	}
	if err := r.Check(); err != nil {
		t.Error("others refuse it: ", err)
	}
}

// A thousand upstreams with long names fit, of which all is told.
func TestThousandUpstreamsFit(t *testing.T) {
	r := &report{Node: store.RandomName(), Host: "host", Heard: make(map[string]uint64), Upstreams: make(map[string]account)}
	for i := range 1000 {
		r.Heard[store.RandomName()] = math.MaxUint64
		r.Upstreams[fmt.Sprintf("bokeh-%d.bokeh-headless.a-namespace-with-a-long-name.svc.cluster.local:5006", i)] = account{
			InPool: true, Draining: true, Mark: store.RandomName() + closedSuffix, Sessions: api.Counts{Building: 1e6, Waiting: 1e6, Connected: 1e6, Unused: 1e6},
			Begun: 1e9, Ended: 1e6, Oldest: 1e7 / 3., Keys: []string{store.RandomName(), store.RandomName()}, Reopened: true,
		}
	}
	r.fit()
	value, err := json.Marshal(r)
	if err != nil || r.Unsure || len(r.Upstreams) != 1000 || len(value) > maxReport/4 {
		t.Errorf("%d bytes tell of %d upstreams, unsure is %v: %v", len(value), len(r.Upstreams), r.Unsure, err)
	}
}

// A report of a version that named what nobody can dial is read without that.
func TestLongNamesOfOlderVersions(t *testing.T) {
	r := &report{Node: "a", Upstreams: map[string]account{strings.Repeat("x", 60_000) + ":80": {}, u0: {Begun: 1}}}
	if err := r.Check(); err != nil || len(r.Upstreams) != 1 {
		t.Errorf("%d upstreams are left: %v", len(r.Upstreams), err)
	}
}

func TestCut(t *testing.T) {
	for _, tc := range [][2]string{{"", ""}, {"abc", "abc"}, {"abcd", "abc…"}, {"abé", "ab…"}, {"aéé", "aé…"}} {
		if got := printable.Cut(tc[0], 3); got != tc[1] || printable.Cut(got, 3) != got && len(tc[0]) > 3 && !strings.HasSuffix(got, "…") {
			t.Errorf("%q is cut to %q", tc[0], got)
		}
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
	for _, m := range []*drainRecord{poisoned("zz"), poisoned(""), poisoned("0123456789abcdef-closed"), {ID: "x", Said: -1, Upstream: u0, State: stateClosed, Left: math.MinInt64}} {
		value, _ := json.Marshal(m)
		f.Add(string(value))
	}
	f.Add(`{"id":"~ffffffff00000000","upstream":"u1:80","left":9223372036854775807,"span":-1,"written":"9999-12-31T23:59:59Z","since":"0000-01-01T00:00:00Z"}`)
	f.Add(`{"id":"` + strings.Repeat("~", 240) + `","upstream":"127.0.0.1:80","said":9223372036854775807}`)
	f.Add("null")
	n := quietNode(f)
	f.Fuzz(func(t *testing.T, text string) {
		m := decode[drainRecord](drainKey(u0), text)
		if m == nil {
			return
		}
		ready := DrainRequest{State: stateReady, Reason: "fuzz"}.record(m, m.Upstream, "here", 0)
		if !ready.newer(m) || !ready.newer(m.closed()) || ready.drains() {
			t.Errorf("%q of %d does not come after it", ready.ID, ready.Said)
		}
		value, err := json.Marshal(ready)
		if again := decode[drainRecord](drainKey(u0), string(value)); err != nil || again == nil || again.newer(ready) || ready.newer(again) {
			t.Errorf("%s is not read again: %v", value, err)
		}
		n.mu.Lock()
		n.mergeRecords(n.used, map[string]*drainRecord{drainKey(m.Upstream): m}, true, false, nil)
		n.closeDue(n.conf.Table.Now())
		n.mu.Unlock()
		if _, err := json.Marshal(n.Upstreams()); err != nil {
			t.Error(err)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.mergeRecords(n.used, map[string]*drainRecord{drainKey(m.Upstream): ready}, true, false, nil)
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
	r := &report{Node: "beef", Seq: 1, Settled: true, Heard: map[string]uint64{"x": math.MaxUint64}, Upstreams: map[string]account{u0: {Mark: "x"}}}
	value, _ := json.Marshal(r)
	f.Add(string(value))
	f.Add(`{"node":"beef","process":{"pid":-1},"left":true,"upstreams":{"u0:80":{"oldest":1e308,"keys":[""]}}}`)
	n := quietNode(f)
	n.apply(poisoned("the mark"))
	f.Fuzz(func(t *testing.T, text string) {
		r := decode[report](nodeKey("beef"), text)
		if r == nil {
			return
		}
		n.mu.Lock()
		key, now := nodeKey(r.Node), n.conf.Table.Now()+time.Hour
		n.round, n.listed, n.used.trusted = now, now, true
		n.updatePeers(n.used, map[string]*report{key: r}, true, now)
		n.judgeAll(now)
		n.judgeAll(now + drainQuarantine)
		for u, v := range n.verdicts {
			if p := n.peers[key]; v.drained && p != nil && p.gone == 0 && (r.Upstreams[u.Shared].Mark != "the mark" || r.Upstreams[u.Shared].Sessions.All() > 0) {
				t.Errorf("%q is drained: %+v", u.Name, v)
			}
		}
		if p := n.peers[key]; p != nil && n.mayReturnFor(p, now) > now+2*MaxLifetime {
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

// A reason of an operator, who may give one as long as that, is read as it is.
func TestLongReasonIsRead(t *testing.T) {
	fits := strings.Repeat("x", MaxReason)
	m := poisoned("x")
	if m.Reason = fits; m.Check() != nil || m.Reason != fits {
		t.Errorf("it has become %q", m.Reason)
	}
}

// A mark of an upstream whose name would steer a terminal is of no use.
func TestMarkOfAnEscapeSequence(t *testing.T) {
	m := poisoned("x")
	m.Upstream = "\x1b]0;owned\a\u009b2J"
	if err := m.Check(); err == nil {
		t.Error("it is read")
	}
}
