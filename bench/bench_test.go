// This file holds the tests of the harness: that it can tell a good balancer from a bad one, and that every peer serves.

package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// newBench returns a bench whose runs are short.
func newBench(t *testing.T, warmUp, measured time.Duration) *bench {
	t.Helper()
	root, err := stack.Root()
	if err != nil {
		t.Fatal(err)
	}
	program, err := stack.BuildCaddy(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{root: root, caddy: program, warmUp: warmUp, measured: measured}
}

const (
	// tellingLag is what p99 of the lag may be in a run of which a test says something: well below what the tests compare.
	tellingLag = 5 * meanPage
	// testTries is how often a test runs at most until the machine is calm enough.
	testTries = 3
)

// calm returns what came of a run in which the machine could do the work. If there is none the test says nothing:
// scripts/test tells such a skip from others.
func calm(t *testing.T, run func() ([]numbers, error)) []numbers {
	t.Helper()
	all, lag, err := calmest(testTries, tellingLag, run)
	if err != nil {
		t.Fatal(err)
	}
	if lag > tellingLag {
		t.Skipf("SKIP-REASON: the machine was too busy: %d times what was due began up to %v late, where %v would do", testTries, lag.Round(time.Millisecond), tellingLag)
	}
	return all
}

// calmRun is calm with one peer at a work.
func (b *bench) calmRun(t *testing.T, w *work, p peer) numbers {
	t.Helper()
	return calm(t, func() ([]numbers, error) {
		n, err := b.run(t.Context(), w, p, 1)
		return []numbers{n}, err
	})[0]
}

// A run on a machine that is busy is done again, and of several the calmest counts.
func TestCalmest(t *testing.T) {
	const limit = time.Second
	for _, c := range []struct {
		lags []float64
		runs int
		want float64
	}{
		{[]float64{1, 0}, 1, 1},
		{[]float64{3, 0.5, 0}, 2, 0.5},
		{[]float64{3, 2, 4}, 3, 2},
	} {
		runs := 0
		all, lag, err := calmest(3, limit, func() ([]numbers, error) {
			runs++
			return []numbers{{}, {Lag: c.lags[runs-1]}}, nil
		})
		if err != nil || runs != c.runs || all[1].Lag != c.want || lag.Seconds() != c.want {
			t.Errorf("lags of %v: after %d runs %v, %v, %v", c.lags, runs, all, lag, err)
		}
	}
}

func workNamed(t *testing.T, name string) *work {
	t.Helper()
	chosen, err := chooseWorks(name)
	if err != nil {
		t.Fatal(err)
	}
	return chosen[0]
}

// All to one server, which can do two thirds of it, is worse than any other policy, whatever else the machine has to do.
func TestHarnessCanFail(t *testing.T) {
	b := newBench(t, 200*time.Millisecond, 2*time.Second)
	steady := *workNamed(t, "steady-80")
	steady.load = 0.4 // of four servers
	bad := "caddy-first"
	chosen, err := choosePeers("central-queue caddy-cookie " + bad)
	if err != nil {
		t.Fatal(err)
	}
	var records []record
	for _, p := range chosen {
		records = append(records, record{Work: steady.name, Peer: p.name, numbers: b.calmRun(t, &steady, p)})
	}
	missed := 0
	for _, f := range verdict(summarize(&steady, records), bad) {
		t.Log(f)
		if strings.Contains(f.what, "p99") && f.got.n > 0 && !f.reached {
			missed++
		}
	}
	if missed != 2 {
		t.Errorf("of the best peer and the central queue, %s is said to be worse than %d; want both", bad, missed)
	}
}

// Where an attack harms honest visitors the harness says so: at a policy that counts requests, when idle ones hide the server that
// has none, and at one that believes every 500, when all servers answer with it.
func TestAttacksHarm(t *testing.T) {
	b := newBench(t, 200*time.Millisecond, 2*time.Second)
	for work, bad := range map[string]string{"idle-requests": "caddy-cookie-least_conn", "errors": "caddy-cookie-fail_duration"} {
		t.Run(work, func(t *testing.T) {
			w := workNamed(t, work)
			n := b.calmPair(t, w, bad)
			missed := slices.ContainsFunc(verdict(summarize(w, []record{{Peer: bad, numbers: n}}), bad), func(f finding) bool {
				t.Log(f)
				return strings.Contains(f.what, "p99") && f.got.n > 0 && !f.reached
			})
			if !missed || n.Without.Failed > 0 {
				t.Errorf("with the attack %+v, without %+v", n, *n.Without)
			}
		})
	}
}

// An attack that fails visits leaves no ratio.
func TestAttackTables(t *testing.T) {
	without := &calmNumbers{Ready99: 0.1}
	s := summarize(workNamed(t, "errors"), []record{
		{Peer: ours, numbers: numbers{Ready99: 0.11, Without: without}},
		{Peer: "caddy-random", numbers: numbers{Ready99: visitLimit.Seconds(), Failed: 0.5, Without: without}},
	})
	for table, want := range map[string][]string{
		attacks([]*summary{s}).RenderMarkdown(): {"| 50 % failed | 1.10, 110ms |"},
		s.table().RenderMarkdown():              {"| 110ms (110ms–110ms) | 1.10 (1.10–1.10) |", "| — | 0.0 % | 50.0 % |"},
	} {
		for _, cells := range want {
			if !strings.Contains(table, cells) {
				t.Errorf("no %s in\n%s", cells, table)
			}
		}
	}
}

// A page that is aborted makes as much work as one that comes in full.
func TestAbortedPagesAreBuilt(t *testing.T) {
	w := *workNamed(t, "aborted-requests")
	w.load = 0.2
	n := newBench(t, 200*time.Millisecond, 2*time.Second).calmPair(t, &w, cookiePeer)
	if n.Without.Hostile < 50 || 10*n.Hostile < 9*n.Without.Hostile {
		t.Errorf("%d pages were built that were aborted, %d that were not", n.Hostile, n.Without.Hostile)
	}
}

// calmPair is calm with one peer at a work that has an attack.
func (b *bench) calmPair(t *testing.T, w *work, peer string) numbers {
	t.Helper()
	chosen, err := choosePeers(peer)
	if err != nil {
		t.Fatal(err)
	}
	return calm(t, func() ([]numbers, error) {
		n, err := b.attacked(t.Context(), w, chosen[0], 1)
		return []numbers{n}, err
	})[0]
}

// Every peer serves visits, and takes a server that joins.
func TestPeers(t *testing.T) {
	b := newBench(t, 200*time.Millisecond, 2200*time.Millisecond)
	join := *workNamed(t, "join")
	join.load = 0.2
	for _, p := range peers {
		if p.extra {
			continue // it is one of the others with less
		}
		t.Run(p.name, func(t *testing.T) {
			if _, err := p.version(b); err != nil {
				if p.name != "nginx-sticky" && os.Getenv("E2E_REQUIRE") != "" {
					t.Fatal(err)
				}
				t.Skip("SKIP-REASON:", err)
			}
			n := b.calmRun(t, &join, p)
			if n.Visits < 20 || n.Failed > 0.05 || n.Runs < 1 {
				t.Errorf("%d visits, %v failed: %v; the app ran %v times a visit", n.Visits, n.Failed, n.Why, n.Runs)
			}
		})
	}
}

func TestArrivalsAreTheSameForASeed(t *testing.T) {
	for _, w := range works {
		if w.idle {
			continue
		}
		const span = time.Minute
		a, b := w.arrivals(1, span), w.arrivals(1, span)
		if !slices.Equal(a, b) {
			t.Errorf("%s differs from itself", w.name)
		}
		if slices.Equal(a, w.arrivals(2, span)) {
			t.Errorf("%s is the same for another seed", w.name)
		}
		if !slices.IsSortedFunc(a, func(a, b arrival) int { return int(a.at - b.at) }) {
			t.Errorf("%s is not in the order of time", w.name)
		}
		work := time.Duration(0)
		for _, v := range a {
			work += v.cost + 2*messageCost
		}
		power := 0.0
		for _, pace := range w.speeds() {
			power += pace
		}
		if w.late {
			power--
		}
		if got := work.Seconds() / span.Seconds() / power; w.burst == 0 && (got < 0.9*w.load || got > 1.1*w.load) {
			t.Errorf("%s is a load of %.2f, want %.2f", w.name, got, w.load)
		}
	}
}

func TestQuantile(t *testing.T) {
	var sorted []float64
	for i := range 200 {
		sorted = append(sorted, float64(i+1))
	}
	for p, want := range map[float64]float64{0.5: 100, 0.9: 180, 0.99: 198} {
		if got := quantile(sorted, p); got != want {
			t.Errorf("p%v of 1 to 200 is %v, want %v", 100*p, got, want)
		}
	}
}

// A visit that failed was never ready; a peer that fails more than one in a hundred is never the best.
func TestFailuresCount(t *testing.T) {
	var good, bad numbers
	for i := range 100 {
		good.add(outcome{ready: time.Second}, 1)
		o := outcome{ready: time.Millisecond}
		if i < 2 {
			o = outcome{failed: "page: 502"}
		}
		bad.add(o, 1)
	}
	good.finish()
	bad.finish()
	if bad.Failed != 0.02 || bad.Ready99 != visitLimit.Seconds() || bad.Ready90 != 0.001 {
		t.Errorf("two of a hundred failed: %+v", bad)
	}
	s := summarize(workNamed(t, "steady-80"), []record{{Peer: "caddy-random", numbers: bad}, {Peer: "caddy-cookie", numbers: good}})
	if best := s.best(ours); best != "caddy-cookie" {
		t.Errorf("the best is %s", best)
	}
}

func TestVerdict(t *testing.T) {
	steady := workNamed(t, "steady-80")
	var records []record
	for peer, p99 := range map[string]float64{ideal: 0.2, "haproxy-leastconn": 0.5, ours: 0.26} {
		for i := range 3 {
			records = append(records, record{Peer: peer, Repetition: i, numbers: numbers{Ready99: p99, Runs: 1.0002}})
		}
	}
	want := []string{
		"reached  steady-80: app runs a visit is 1 (1 to 1 in 3 runs), at most 1",
		"reached  steady-80: p99 until ready is 0.52 of haproxy-leastconn's (0.52 to 0.52 in 3 runs), at most 0.55; the central queue's is 0.4",
		"reached  steady-80: p99 until ready is 1.3 of central-queue's (1.3 to 1.3 in 3 runs), at most 1.4",
		"NOT MEASURED  cost: CPU a visit",
	}
	var got []string
	for _, s := range []*summary{summarize(steady, records), summarize(workNamed(t, "cost"), nil)} {
		for _, f := range verdict(s, ours) {
			got = append(got, f.String())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// An app that runs twice in one run of five is not made up for by the others.
func TestWorstRun(t *testing.T) {
	var records []record
	for i, runs := range []float64{1, 1, 1, 1, 1.3} {
		records = append(records, record{Peer: ours, Repetition: i, numbers: numbers{Ready99: 1, Runs: runs}})
	}
	if f := verdict(summarize(workNamed(t, "tabs"), records), ours)[0]; f.reached {
		t.Error(f)
	}
}

// Two peers do the same work at the same time, each before servers of its own.
func TestTwoAtTheSameTime(t *testing.T) {
	group, err := choosePeers(cookiePeer + " " + ours)
	if err != nil {
		t.Fatal(err)
	}
	c := comparison{bench: newBench(t, 200*time.Millisecond, 2*time.Second)}
	w := *workNamed(t, "cost")
	w.load = 0.3 // two at the same time, under the race detector, on a small machine
	all := calm(t, func() ([]numbers, error) { return c.together(t.Context(), &w, group, 1) })
	if a, b := all[0], all[1]; a.Visits == 0 || a.Visits != b.Visits || a.CPU == 0 || b.CPU == 0 || a.Runs != 1 || b.Runs != 1 {
		t.Errorf("%+v and %+v", a, b)
	}
}

// An interrupted run leaves nothing behind.
func TestInterrupt(t *testing.T) {
	b := newBench(t, time.Second, time.Minute)
	chosen, err := choosePeers(ours)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	started := time.Now()
	if _, err := b.run(ctx, workNamed(t, "steady-50"), chosen[0], 1); err == nil || time.Since(started) > stack.Stretch(20*time.Second) {
		t.Errorf("ended with %v after %v", err, time.Since(started))
	}
}
