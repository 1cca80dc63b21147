// This file tests the verdict "drained" against each thing that another node may say, or not say.

package cluster

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// puppet is another node that says what a test wants. It tells of u0 only.
type puppet struct {
	a     *caddyNode // that hears it
	r     record.Report
	quiet bool // it does not report
}

// sessionTTL is how long sessions live without a websocket.
const sessionTTL = 32 * time.Second

// newPuppet returns a node as another one is that has long been up, and has nothing to say against an upstream that drains.
func newPuppet(a *caddyNode) *puppet {
	return &puppet{a: a, r: record.Report{
		Node: "0123456789abcdef", Host: "puppet", Settles: 32 * time.Second, Settled: true,
		Upstreams: map[string]record.Account{u0: {InPool: true, Draining: true}},
	}}
}

// account changes what it says of u0.
func (p *puppet) account(change func(a *record.Account)) {
	a := p.r.Upstreams[u0]
	change(&a)
	p.r.Upstreams[u0] = a
}

// markID returns the id of the mark that a has of u0.
func (p *puppet) markID() string {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	return p.a.recordOf(p.a.s.get(u0)).IDOrNone()
}

// hears returns what the node says that it has read, which is the last report of a.
func (p *puppet) hears() map[string]uint64 {
	last, err := store.Load[record.Report](context.Background(), p.a.door.Door(), record.NodeKey(p.a.name))
	if err != nil {
		return nil
	}
	return map[string]uint64{p.a.name: last.Seq}
}

// reports makes its next report, which says of what it has heard what is given.
func (p *puppet) reports(heard map[string]uint64) {
	p.a.t.Helper()
	if p.quiet {
		return
	}
	p.r.Seq++
	r := p.r
	r.Heard = heard
	if err := store.Put(p.a.t.Context(), p.a.door.Door(), record.NodeKey(r.Node), &r); err != nil {
		p.a.t.Fatal(err)
	}
}

// pass lets time pass, in which the node reports each second that it has read the mark of u0 and the reports of a. It does all
// that it should but for what each changes before it reports.
func (p *puppet) pass(d time.Duration, each ...func(p *puppet)) {
	p.a.t.Helper()
	for range d / time.Second {
		heard := p.hears()
		p.account(func(a *record.Account) { a.Mark = p.markID() })
		for _, change := range each {
			change(p)
		}
		if p.r.Heard != nil { // it says something else
			heard = p.r.Heard
		}
		p.reports(heard)
		pass(time.Second)
	}
}

// says returns the change of the account of u0.
func says(change func(a *record.Account)) func(p *puppet) {
	return func(p *puppet) { p.account(change) }
}

// judged is a node that has been up for long and another one that is heard of, which says nothing against it.
func judged(t *testing.T) (a *caddyNode, p *puppet) {
	t.Helper()
	a = startNodeOn(t, "a", clustertest.NewVault().Door(), testPool(3))
	p = newPuppet(a)
	p.pass(time.Minute)
	return a, p
}

// peerFaults are what a node may say against a verdict, and what is told of it. What is certain is the end of a verdict that was
// passed before; all else is no reason to take back what was certain.
var peerFaults = map[string]struct {
	each    func(p *puppet)
	why     string
	certain bool
}{
	"it has not read the mark":        {says(func(a *record.Account) { a.Mark = "" }), "it has not said that it has read the mark", true},
	"it has read another one":         {says(func(a *record.Account) { a.Mark = "another" }), "it has not said that it has read the mark", true},
	"a page is being built there":     {says(func(a *record.Account) { a.Sessions.Building = 1 }), "it has 1 session", true},
	"a page waits there":              {says(func(a *record.Account) { a.Sessions.Waiting = 1 }), "it has 1 session", true},
	"somebody is connected there":     {says(func(a *record.Account) { a.Sessions.Connected = 2 }), "it has 2 sessions", true},
	"a session is unused there":       {says(func(a *record.Account) { a.Sessions.Unused = 1 }), "it has 1 session", true},
	"it was closed a moment ago":      {says(func(a *record.Account) { a.Reopened = true }), "it was closed there until a moment ago", true},
	"sessions come and go unseen":     {says(func(a *record.Account) { a.Begun++ }), "it must say so once more", true},
	"it has just started":             {func(p *puppet) { p.r.Settled = false }, "it has just started", false},
	"it is not heard of":              {func(p *puppet) { p.quiet = true }, "it has not reported for", false},
	"it has heard nothing":            {func(p *puppet) { p.r.Heard = map[string]uint64{} }, "it must say so once more", false},
	"it has heard what nobody said":   {func(p *puppet) { p.r.Heard = map[string]uint64{p.a.name: 1 << 60} }, "it must say so once more", false},
	"it has heard what was said then": {func(p *puppet) { p.r.Heard = map[string]uint64{p.a.name: 3} }, "it must say so once more", false},
}

// Nothing is called drained while another node says anything against it, and it is as soon as it does not.
func TestDrainedNotAgainstAnotherNode(t *testing.T) {
	for name, tc := range peerFaults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, p := judged(t)
				a.drain(u0)
				p.pass(2*time.Minute, tc.each)
				a.wantWait(u0, tc.why, "while it says so")
				p.r, p.quiet = newPuppet(a).r, false
				p.r.Seq = 1 << 20
				p.pass(10 * time.Second)
				a.wantDrained(u0, true, "when it does not any more")
			})
		})
	}
}

// What was certain stays so while a node is late or young, and ends when one shows that a session may be there.
func TestDrainedUntilItIsNot(t *testing.T) {
	for name, tc := range peerFaults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, p := judged(t)
				a.drain(u0)
				p.pass(20 * time.Second)
				a.wantDrained(u0, true, "at first")
				p.pass(2*time.Minute, tc.each)
				a.wantDrained(u0, !tc.certain, "later")
			})
		})
	}
}

// A session that has been there is not overlooked though it has ended by the time that its node reports. The verdict is passed anew.
func TestSessionSinceItWasDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := judged(t)
		a.drain(u0)
		p.pass(20 * time.Second)
		a.wantDrained(u0, true, "at first")
		heard := p.hears()
		p.account(func(a *record.Account) { a.Begun++ })
		p.reports(heard)
		pass(4 * time.Second)
		a.wantWait(u0, "it must say so once more", "after a session that nobody has seen")
		p.pass(10 * time.Second)
		a.wantDrained(u0, true, "when it has said so once more")
	})
}

// Where a config drains, all nodes must drain that have the upstream in a pool, or may have.
func TestDrainedByConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		each func(p *puppet)
		why  string // or nothing, if it is drained
	}{
		"it drains":                     {func(*puppet) {}, ""},
		"it does not":                   {says(func(a *record.Account) { a.Draining = false }), "its config does not drain the upstream"},
		"it does not have it":           {says(func(a *record.Account) { *a = record.Account{} }), ""},
		"it may have it":                {func(p *puppet) { p.r.Unsure, p.r.Upstreams = true, map[string]record.Account{} }, "it may have the upstream in a pool that it does not know yet"},
		"it may have it, and drains it": {func(p *puppet) { p.r.Unsure = true; p.account(func(a *record.Account) { a.InPool = false }) }, ""},
		"it has a session":              {says(func(a *record.Account) { *a = record.Account{Sessions: api.Counts{Connected: 1}} }), "it has 1 session"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, p := judged(t)
				u := a.s.get(u0)
				u.Drain.AddConfigs(1)
				p.pass(20*time.Second, tc.each)
				if tc.why == "" {
					a.wantDrained(u0, true, "after 20 s")
				} else {
					a.wantWait(u0, tc.why, "after 20 s")
				}
				u.Drain.AddConfigs(-1)
			})
		})
	}
}

// To sessions of a node that is gone browsers come back for as long as it has said, or as this one says if that is longer.
func TestGoneNodeHasSettled(t *testing.T) {
	for name, tc := range map[string]struct{ settles, want time.Duration }{
		"as long":  {32 * time.Second, 32 * time.Second},
		"for less": {time.Second, 32 * time.Second},
		"for more": {2 * time.Minute, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, p := judged(t)
				p.r.Settles = tc.settles
				p.account(func(a *record.Account) { a.Sessions.Connected = 1 })
				a.drain(u0)
				p.pass(20 * time.Second)
				a.wantWait(u0, "it has 1 session", "while it is there")
				if err := a.RemoveNode(t.Context(), p.r.Node, false); err != nil {
					t.Fatal(err)
				}
				pass(tc.want - 2*time.Second)
				a.wantWait(u0, "it is gone; browsers may come back", "before that time is over")
				pass(10 * time.Second)
				a.wantDrained(u0, true, "after that")
			})
		})
	}
}

// An upstream that is of one machine alone is no business of a node on another one.
func TestNodesThatAreConcerned(t *testing.T) {
	for name, tc := range map[string]struct {
		host string
		want bool // whether the upstream is drained though that node has not read the mark
	}{
		"of the same machine":          {thisHost, false},
		"of another machine":           {"another", true},
		"of which nothing can be read": {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const local = "127.0.0.1:5006"
				pool := testPool(3)
				pool[0] = local
				a := startNodeOn(t, thisHost, clustertest.NewVault().Door(), pool)
				p := newPuppet(a)
				p.r.Host, p.r.Upstreams = tc.host, map[string]record.Account{}
				reports := func(times int) {
					for range times {
						p.reports(p.hears())
						pass(time.Second)
					}
				}
				reports(60)
				if err := a.setDrain(t.Context(), a.s.get(local).Shared, record.Request{State: api.StateDraining}); err != nil {
					t.Fatal(err)
				}
				reports(30)
				if tc.want {
					a.wantDrained(local, true, "after half a minute")
				} else {
					a.wantWait(local, "it has not said that it has read the mark", "after half a minute")
				}
			})
		})
	}
}

// It is told once that an upstream is drained, not again because its node was not heard of for a while, and again when a session has been there.
func TestDrainedIsToldOnceAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := judged(t)
		want := func(when string, times int) {
			t.Helper()
			if got := a.logs.FilterMessageSnippet("upstream is drained").Len(); got != times {
				t.Errorf("%s: it was told %d times, want %d", when, got, times)
			}
		}
		a.drain(u0)
		p.pass(time.Minute)
		want("drained", 1)
		a.door.Fail(context.DeadlineExceeded)
		pass(20 * time.Second)
		a.wantDrained(u0, false, "while the storage fails")
		a.door.Fail(nil)
		p.pass(20 * time.Second)
		a.wantDrained(u0, true, "when it is well again")
		want("the storage was away", 1)
		p.account(func(a *record.Account) { a.Begun++ })
		p.pass(20 * time.Second)
		a.wantDrained(u0, true, "after another session")
		want("another session was there", 2)
	})
}

// That a drain has begun is told once, and not by a node that has found it there when it started.
func TestStartOfADrainIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		start := func() (c *caddyNode, started *atomic.Int64) {
			s, d := newTestPolicy(testPool(3)), v.Door()
			started = new(atomic.Int64)
			s.raise = func(event string, data map[string]any) {
				if event == eventStarted && data["upstream"] == u0 {
					started.Add(1)
				}
			}
			c = makeNode(t, d, s, testPool(3))
			c.door = d
			s.join(c.Cluster, d)
			return c, started
		}
		a, told := start()
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		if n := told.Load(); n != 1 {
			t.Errorf("that the drain has begun was told %d times, want 1", n)
		}
		a.kill()
		b, told := start()
		pass(time.Minute)
		if n := told.Load(); n != 0 {
			t.Errorf("after a restart it was told %d times, want 0", n)
		}
		b.tell(u0, record.Request{State: api.StateReady})
		pass(undrainQuarantine + time.Second)
		b.drain(u0)
		pass(time.Minute)
		if n := told.Load(); n != 1 {
			t.Errorf("another drain was told %d times, want 1", n)
		}
	})
}

// Of each drain it is told that it has come to its end, also where it follows another one at once: somebody may have waited for just that.
func TestEachDrainIsToldOf(t *testing.T) {
	grace := time.Minute
	for name, tc := range map[string]struct {
		said []record.Request
		want int
	}{
		"with another reason":               {[]record.Request{{State: api.StateDraining}, {State: api.StateDraining, Reason: "new"}}, 2},
		"a grace period that runs out":      {[]record.Request{{State: api.StateDraining, Grace: &grace}}, 2},
		"drained, and then one":             {[]record.Request{{State: api.StateDraining}, {State: api.StateDraining, Grace: &grace}}, 3},
		"said once more, which is the same": {[]record.Request{{State: api.StateDraining}, {State: api.StateDraining}}, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := startNode(t, clustertest.NewVault())
			var drained atomic.Int64
			a.s.raise = func(event string, _ map[string]any) {
				if event == eventDrained {
					drained.Add(1)
				}
			}
			pass(time.Minute)
			for _, said := range tc.said {
				a.tell(u0, said)
				pass(2 * time.Minute)
			}
			if got := int(drained.Load()); got != tc.want {
				t.Errorf("%s: it was told %d times, want %d", name, got, tc.want)
			}
		})
	}
}

// What a config drains as well begins to drain once, and drains all the while, though an operator takes back what he has said of it.
func TestDrainOfAConfigGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		s, d := newTestPolicy(testPool(3)), v.Door()
		var started atomic.Int64
		s.raise = func(event string, data map[string]any) {
			if event == eventStarted && data["upstream"] == u0 {
				started.Add(1)
			}
		}
		a := makeNode(t, d, s, testPool(3))
		a.door = d
		s.join(a.Cluster, d)
		b := startNode(t, v)
		pass(time.Minute)
		s.drain(u0)
		b.s.drain(u0)
		pass(10 * time.Second)
		a.drain(u0)
		pass(30 * time.Second)
		a.wantState(u0, api.StateDrained, "of config and operator")
		b.tell(u0, record.Request{State: api.StateReady})
		for range 10 {
			pass(time.Second)
			i := slices.IndexFunc(a.Upstreams(), func(st *api.Upstream) bool { return st.Address == u0 })
			if st := a.Upstreams()[i]; st.Drain == nil || !st.Drain.Config {
				t.Fatalf("it is %s, drain %+v", st.State, st.Drain)
			}
		}
		pass(30 * time.Second)
		a.wantState(u0, api.StateDrained, "of the config alone")
		if n := started.Load(); n != 1 {
			t.Errorf("it was told %d times that it has begun to drain", n)
		}
	})
}

// That an upstream is long empty is logged once an hour.
func TestLongDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		a.drain(u0)
		for hours, within := range []time.Duration{30 * time.Minute, time.Hour, time.Hour, time.Hour} {
			pass(within)
			if got := a.logs.FilterMessageSnippet("has been drained for long").Len(); got != hours {
				t.Errorf("after %d hours it was logged %d times", hours, got)
			}
		}
	})
}

// lame is a storage that stops doing one thing.
type lame struct {
	*clustertest.Door
	readOnly atomic.Bool
	hides    atomic.Pointer[string] // a key that it does not list
}

func (l *lame) Store(ctx context.Context, key string, value []byte) error {
	if l.readOnly.Load() {
		return errors.New("read-only file system")
	}
	return l.Door.Store(ctx, key, value)
}

func (l *lame) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	keys, err := l.Door.List(ctx, prefix, recursive)
	if hidden := l.hides.Load(); hidden != nil {
		keys = slices.DeleteFunc(keys, func(key string) bool { return key == *hidden })
	}
	return keys, err
}

// startLame starts a node whose storage may stop doing one thing.
func startLame(t *testing.T) (*caddyNode, *lame) {
	t.Helper()
	l := &lame{Door: clustertest.NewVault().Door()}
	c := makeNode(t, l, newTestPolicy(testPool(3)), testPool(3))
	c.door = l.Door
	c.s.join(c.Cluster, l)
	return c, l
}

// What this node knows by itself is the end of a verdict: that a session is there, and that the storage is not to be trusted.
func TestDrainedNotAgainstItself(t *testing.T) {
	for name, tc := range map[string]struct {
		then func(a *caddyNode, l *lame)
		why  string
	}{
		"a session":                {func(a *caddyNode, _ *lame) { a.s.get(u0).Slots.Sessions.Add(1) }, "it has 1 session"},
		"the storage is away":      {func(_ *caddyNode, l *lame) { l.Fail(errors.New("no route to host")) }, "it cannot read the storage"},
		"the storage is read-only": {func(_ *caddyNode, l *lame) { l.readOnly.Store(true) }, "it cannot write to the storage"},
		"its report is not listed": {func(a *caddyNode, l *lame) { l.hides.Store(new(record.NodeKey(a.name))) }, "it does not find its own report in the storage"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, l := startLame(t)
				pass(time.Minute)
				a.drain(u0)
				pass(20 * time.Second)
				a.wantDrained(u0, true, "at first")
				tc.then(a, l)
				pass(30 * time.Second)
				a.wantWait(u0, tc.why, "later")
			})
		})
	}
}

// Where a node has never found its own report, it may have found none of others either.
func TestReportWasNeverListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, l := startLame(t)
		l.hides.Store(new(record.NodeKey(a.name)))
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		a.wantWait(u0, "it does not find its own report in the storage", "after a minute")
	})
}

// A node that has just started says nothing of an upstream, nor is anything told of one whose mark is new.
func TestDrainedNotForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		a.drain(u0)
		pass(32*time.Second - 2*nodeInterval)
		a.wantWait(u0, "it has just started; browsers may come back for another", "before it is up for so long")
		pass(10 * time.Second)
		a.wantDrained(u0, true, "after that")
		a.drain("u1:80")
		pass(verdict.DrainQuarantine - time.Second)
		a.wantWait("u1:80", "the mark is new", "before every node that is starting has read it")
		pass(6 * time.Second)
		a.wantDrained("u1:80", true, "after that")
	})
}

// What a node reports of an upstream is what it has there: on that rests the verdict of the others.
func TestReportTellsWhatThereIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		want := func(when string, want record.Account) {
			t.Helper()
			pass(2 * reportInterval)
			last, err := store.Load[record.Report](t.Context(), a.door, record.NodeKey(a.name))
			if err != nil {
				t.Fatal(err)
			}
			got := last.Upstreams[u0]
			got.Keys, got.Oldest = nil, 0
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: it tells %+v, want %+v", when, got, want)
			}
		}
		want("nothing yet", record.Account{InPool: true})
		pass(time.Minute)
		_, hangUp := a.socket(a.visitAt(u0))
		want("a session", record.Account{InPool: true, Begun: 1, Sessions: api.Counts{Connected: 1}})
		u := a.s.get(u0)
		u.Drain.AddConfigs(1)
		want("its config drains", record.Account{InPool: true, Draining: true, Begun: 1, Sessions: api.Counts{Connected: 1}})
		hangUp()
		want("nobody is connected", record.Account{InPool: true, Draining: true, Begun: 1, Sessions: api.Counts{Unused: 1}})
		pass(sessionTTL)
		want("it has ended", record.Account{InPool: true, Draining: true, Begun: 1, Ended: 1})
		u.Drain.AddConfigs(-1)
		a.drain(u0)
		a.mu.Lock()
		id := a.recordOf(u).IDOrNone()
		a.mu.Unlock()
		want("an operator drains", record.Account{InPool: true, Draining: true, Mark: id, Begun: 1, Ended: 1})
	})
}

// A node that is about to end tells the others that it may be gone, when somebody has asked for that and nobody is at work there. It
// takes that back when nobody asks any more.
func TestNodeThatMayBeKilledSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		want := func(when string, asks, want bool) {
			t.Helper()
			for range 20 {
				if asks {
					a.MayBeKilled()
				}
				pass(time.Second)
			}
			last, err := store.Load[record.Report](t.Context(), a.door, record.NodeKey(a.name))
			if err != nil || last.Left != want {
				t.Errorf("%s: it may be gone: %v, want %v (%v)", when, last.Left, want, err)
			}
			if got := a.MayBeKilled(); asks && got != want {
				t.Errorf("%s: it may be killed: %v, want %v", when, got, want)
			}
		}
		_, hangUp := a.socket(a.visitAt(u0))
		a.ends()
		want("somebody is connected", true, false)
		hangUp()
		want("nobody is connected", true, true)
		pass(killTimeout)
		want("nobody asks any more", false, false)
		want("somebody asks again", true, true)
	})
}

// A node that has just started says so to the others: browsers may come back to it with sessions that nobody has counted.
func TestDrainedNotWhileAnotherNodeIsYoung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		b := startNode(t, v)
		a.drain(u0)
		pass(sessionTTL - 2*nodeInterval)
		a.wantWait(u0, b.name+" "+b.conf.Host+" it has just started; browsers may come back to it", "before it is up for so long")
		pass(15 * time.Second)
		a.wantDrained(u0, true, "after that")
	})
}

// Browsers may come back to a server that was closed until a moment ago, with sessions that were not counted any more.
func TestDrainedNotSoonAfterItWasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		soon := time.Second
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &soon})
		pass(time.Minute)
		a.wantDrained(u0, true, "when it is closed")
		a.tell(u0, record.Request{State: api.StateReady})
		pass(undrainQuarantine + time.Second)
		a.drain(u0)
		pass(sessionTTL - 10*time.Second)
		a.wantWait(u0, "it was closed until a moment ago; browsers may come back for another", "before that time is over")
		if last, err := store.Load[record.Report](t.Context(), a.door, record.NodeKey(a.name)); err != nil || !last.Upstreams[u0].Reopened {
			t.Errorf("it does not tell the others of it: %v", err)
		}
		pass(20 * time.Second)
		a.wantDrained(u0, true, "after that")
	})
}

// Nobody comes back to a server that is closed, so nodes that are young do not have to be waited for.
func TestClosedIsDrainedSooner(t *testing.T) {
	soon := time.Second
	synctest.Test(t, func(t *testing.T) {
		a, p := judged(t)
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &soon})
		p.account(func(a *record.Account) { a.Sessions.Connected = 1 })
		p.pass(20 * time.Second)
		a.wantWait(u0, "it has 1 session", "while somebody is there")
		p.account(func(a *record.Account) { a.Sessions.Connected = 0 })
		p.r.Settled = false
		p.pass(10 * time.Second)
		a.wantDrained(u0, true, "with another node that is young")
	})
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		a.tell(u0, record.Request{State: api.StateDraining, Grace: &soon})
		pass(15 * time.Second)
		a.wantDrained(u0, true, "at a node that is young itself")
	})
}

// The end of a verdict is known where requests are sent: what holds that an upstream is empty does not outlive what was read.
func TestEmptyIsNotForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		a.drain(u0)
		pass(20 * time.Second)
		d := &a.s.get(u0).Drain
		if !d.IsEmpty(a.s.table.Now()) {
			t.Fatal("it is not empty")
		}
		release := a.door.Hang()
		defer release()
		pass(verdict.StaleTimeout + 2*nodeInterval)
		if d.IsEmpty(a.s.table.Now()) || d.HasEnded(a.s.table.Now()) {
			t.Error("it is empty though nothing was read for longer than that holds")
		}
	})
}
