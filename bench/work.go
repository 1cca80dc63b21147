// This file holds the works: who comes when, for which page, to which servers, and what happens meanwhile.

package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

const (
	meanPage = 100 * time.Millisecond / scale
	spread   = 0.5 // of the pages' costs: standard deviation over mean
	meanStay = 2 * time.Second
	// longestStay keeps the end of a run near.
	longestStay = 3 * meanStay
)

// work is a kind of work.
type work struct {
	name  string
	title string
	load  float64   // of the servers that are there from the start: 1 is all that they can do
	paces []float64 // of the servers; four alike if empty
	pages []page    // one kind if empty
	crowd crowd
	burst int      // how many visits come at once, every burstEvery, beside the load
	end   events   // what happens to the servers while it is measured
	extra []string // peers beside the usual ones
	late  bool     // the last server joins when the measuring begins
	real  bool     // before bokeh serve, not simulated servers
	idle  bool     // no load: sessions that are only there, and what they take of the proxy's memory
	pair  bool     // the two that are compared in what they cost, both at the same time

	attack attack // beside the load
}

// page is a kind of page.
type page struct {
	app   string
	share float64 // of the visits
	cost  float64 // in parts of meanPage
}

// crowd is who comes.
type crowd int

const (
	strangers     crowd = iota // each from an address of its own, with cookies
	behindOne                  // all from one address
	withTabs                   // a few people who open several tabs at once
	withoutCookie              // strangers whose cookies are blocked
)

// events happen to the first server.
type events []event

type event struct {
	after time.Duration // since the measuring began
	what  happening
}

type happening int

const (
	dies happening = iota
	comesBack
	beginsToFail
)

const (
	burstEvery = 2 * time.Second
	people     = 20 // with tabs
	tabs       = 5  // that they open at once, on average
	tabEvery   = 20 * time.Millisecond
)

// works are in the order of the tables.
var works = []work{
	{name: "steady-50", title: "Steady, 50 % load", load: 0.5},
	{name: "steady-70", title: "Steady, 70 % load", load: 0.7},
	{name: "steady-80", title: "Steady, 80 % load", load: 0.8, extra: []string{"haproxy-two-backends", "caddy-cookie-least_conn"}},
	{name: "steady-90", title: "Steady, 90 % load", load: 0.9},
	{name: "burst", title: "30 % load, and 50 visits at once every 2 s", load: 0.3, burst: 50},
	{
		name: "heavy", title: "One page in ten is ten times as heavy, 80 % load", load: 0.8,
		pages: []page{{"/app", 0.9, 1 / 1.9}, {"/app", 0.1, 10 / 1.9}},
		extra: []string{"haproxy-two-backends"},
	},
	{
		name: "two-apps", title: "Two apps, one five times as heavy as the other, 80 % load", load: 0.8,
		pages: []page{{"/light", 5. / 6, 0.5}, {"/heavy", 1. / 6, 2.5}},
	},
	{name: "tabs", title: "20 people who open many tabs, 80 % load", load: 0.8, crowd: withTabs, extra: []string{"haproxy-two-backends"}},
	{name: "cookies-blocked", title: "Cookies are blocked, 80 % load", load: 0.8, crowd: withoutCookie, extra: []string{"haproxy-two-backends"}},
	{name: "one-address", title: "Everybody from one address, 80 % load", load: 0.8, crowd: behindOne},
	{name: "uneven", title: "Two servers are fast, two are slow, 80 % load", load: 0.8, paces: []float64{1.4, 1.4, 0.6, 0.6}},
	{name: "join", title: "A fourth server joins three at 87 % load", load: 0.87, late: true, extra: []string{"haproxy-two-backends", "haproxy-slowstart"}},
	{
		name: "dies", title: "A server dies and is back after 3 s, 60 % load", load: 0.6,
		end:   events{{time.Second, dies}, {4 * time.Second, comesBack}},
		extra: []string{"caddy-cookie-fail_duration"},
	},
	{
		name: "black-hole", title: "A server is dead and refuses at once, 60 % load", load: 0.6,
		end:   events{{0, dies}},
		extra: append(unretried(), "caddy-cookie-fail_duration"),
	},
	{
		name: "failing", title: "A server answers 500 at once, 60 % load", load: 0.6,
		end:   events{{0, beginsToFail}},
		extra: []string{"caddy-cookie-fail_duration"},
	},
	{
		name: "real", title: "Three real servers, an app that sleeps for 300 ms, 70 % load", load: 0.7, real: true,
		paces: []float64{1, 1, 1},
		pages: []page{{"/app", 1, float64(realPage) / float64(meanPage)}},
	},
	{
		name: "idle-requests", title: "300 requests whose bodies never come in full, beside 60 % load", load: 0.6,
		attack: attack{held: 300},
		extra:  []string{"caddy-cookie-least_conn"},
	},
	{
		name: "aborted-requests", title: "45 pages a second that are aborted at once, 22.5 % load beside 60 %", load: 0.6,
		attack: attack{pages: 9 * scale, abort: true},
	},
	{
		name: "errors", title: "200 requests a second that any server answers with 500, beside 60 % load", load: 0.6,
		attack: attack{errors: 40 * scale},
		extra:  []string{"caddy-cookie-fail_duration"},
	},
	{name: "cost", title: "80 % load, two at the same time, for what each takes of the processor", load: 0.8, pair: true},
	{name: "memory", title: "1000 sessions that do nothing", idle: true},
}

func (w *work) speeds() []float64 {
	if len(w.paces) > 0 {
		return w.paces
	}
	return []float64{1, 1, 1, 1}
}

// comparesCost says whether a work is there for what a peer costs, not for when pages are ready.
func (w *work) comparesCost() bool { return w.idle || w.pair }

// comparesPeers says whether a work is there for when pages are ready behind one peer and another.
func (w *work) comparesPeers() bool { return !w.comparesCost() && w.attack.empty() }

// suits says whether a peer can do a work: nothing can be said of what the central queue costs, nor has it real servers.
func (w *work) suits(peer string) bool {
	if w.pair {
		return peer == ours || peer == cookiePeer
	}
	return peer != ideal || !w.idle && !w.real
}

// atOnce is how many peers do a work at the same time.
func (w *work) atOnce() int {
	if w.pair {
		return 2
	}
	return 1
}

// span returns how long something takes that takes d with simulated pages. Real ones are slower, and all else with them:
// people who stayed for a few pages only would make sockets as good a measure as pages.
func (w *work) span(d time.Duration) time.Duration {
	if !w.real {
		return d
	}
	return time.Duration(float64(d) * float64(realPage) / float64(meanPage))
}

// lifetimes returns how long the servers keep a session that nobody uses, and how often they look for such: real ones as
// they come. There a page that waits behind others for as long as that would lose its session, and its app run twice.
func (w *work) lifetimes() (unused, check time.Duration) {
	if w.real {
		return unusedLifetime * scale, checkUnused * scale
	}
	return unusedLifetime, checkUnused
}

// rate is how many visits come in a second, but for bursts. A visit is a page and two messages.
func (w *work) rate() float64 {
	power := 0.0
	for _, p := range w.speeds() {
		power += p
	}
	if w.late {
		power--
	}
	cost := 1.0
	if len(w.pages) > 0 {
		cost = 0
		for _, p := range w.pages {
			cost += p.share * p.cost
		}
	}
	return w.load * power / (meanPage.Seconds()*cost + 2*messageCost.Seconds())
}

// arrival is a visit that is to come.
type arrival struct {
	at   time.Duration
	app  string
	cost time.Duration
	stay time.Duration
	who  int // which of the visitors
}

// arrivals returns the visits of a span of time, the same ones for the same seed.
func (w *work) arrivals(seed uint64, span time.Duration) []arrival {
	rnd := rand.New(rand.NewPCG(seed, 0))
	times := w.times(rnd, span)
	next := 0
	all := make([]arrival, 0, len(times))
	for _, t := range times {
		a := w.draw(rnd)
		a.at = t.at
		if t.who < 0 {
			t.who = next
			next++
		}
		a.who = t.who
		all = append(all, a)
	}
	return all
}

// coming is when somebody comes; who is -1 for a stranger.
type coming struct {
	at  time.Duration
	who int
}

func (w *work) times(rnd *rand.Rand, span time.Duration) (all []coming) {
	rate := w.rate()
	if w.crowd == withTabs {
		rate /= tabs
	}
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	for at := seconds(rnd.ExpFloat64() / rate); at < span; at += seconds(rnd.ExpFloat64() / rate) {
		if w.crowd != withTabs {
			all = append(all, coming{at, -1})
			continue
		}
		who := rnd.IntN(people)
		for t := at; t < span; t += tabEvery {
			all = append(all, coming{t, who})
			if rnd.Float64() < 1./tabs {
				break
			}
		}
	}
	for at := burstEvery / 2; w.burst > 0 && at < span; at += burstEvery {
		all = append(all, slices.Repeat([]coming{{at, -1}}, w.burst)...)
	}
	slices.SortStableFunc(all, func(a, b coming) int { return cmp.Compare(a.at, b.at) })
	return all
}

// draw returns a visit at no time in particular.
func (w *work) draw(rnd *rand.Rand) arrival {
	p := page{"/app", 1, 1}
	lot := rnd.Float64()
	for _, p = range w.pages {
		if lot -= p.share; lot < 0 {
			break
		}
	}
	sigma2 := math.Log(1 + spread*spread)
	factor := distuv.LogNormal{Mu: -sigma2 / 2, Sigma: math.Sqrt(sigma2), Src: rnd}.Rand()
	return arrival{
		app:  p.app,
		cost: time.Duration(float64(meanPage) * p.cost * factor),
		stay: w.span(min(longestStay, time.Duration(rnd.ExpFloat64()*float64(meanStay)))),
	}
}

// visitors returns who comes. Addresses differ in their first bytes, the ones that nginx hashes, and by chance: in
// a row, they would come to nginx's servers in turns.
func (w *work) visitors(arrivals []arrival, seed uint64) []visitor {
	const nets = 250
	count := 0
	for _, a := range arrivals {
		count = max(count, a.who+1)
	}
	all := make([]visitor, count)
	places := rand.New(rand.NewPCG(seed, 2)).Perm(nets * nets)
	for i := range all {
		at := places[i]
		if w.crowd == behindOne {
			at = 0
		}
		addr := netip.AddrFrom4([4]byte{127, byte(1 + at/nets), byte(1 + at%nets), 1})
		all[i] = newVisitor(addr, w.crowd != withoutCookie)
	}
	return all
}

// query says what a visit costs, so that all peers get the very same work: every proxy passes it on.
func (a arrival) query(visit string) string { return fmt.Sprintf("cost=%d&visit=%s", a.cost, visit) }
