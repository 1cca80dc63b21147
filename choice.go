// This file holds the choice among upstreams: the one where a new session is ready first, or the one that all nodes agree on.

package caddybokeh

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// fresh returns the place of the upstream for a new session. A Bokeh server runs app code on one
// thread, so the pages building there are its queue, and the sessions what it carries: the shortest
// wait wins, then the fewest sessions, then chance.
//
// How long the queue takes is the number of pages times how slow the server has been lately (the
// shortest expected delay of Weinrib and Shenker, 1987), and nothing where there is none: among idle
// ones, slow or fast, the sessions decide. Where all servers are alike that is as good as the number
// alone; where some are slow or carry more, p99 until ready is a third less (TestLearningPays). Slow is
// who takes longer than usual for the same app, or the last heavy page would decide (TestUnlikePages).
//
// Tried and thrown away, measured in a simulation of the same work without Caddy: an average for each app, so that a
// light page may wait behind light ones (at most 16 % of p99 with usual mixes); to hold visits here until
// a server is idle (20 % less with one page in ten heavy, but four times more at 90 % load as soon as a turn
// costs 5 % of a page); the least time since the last choice to break ties (nothing, and the sessions
// drift apart). A cold server is taken like any other: its first page is slow, and weighs as one.
func (rn *run) fresh(v *view) int {
	for {
		i := rn.ofItsGroup(v)
		if i < 0 {
			i = rn.untried(v, func(i int) bool { return rn.takes(v, i) }, func(m *member) weight { return rn.wait(m, v.now) })
		}
		if i < 0 || !v.members[i].Breaker.Tripped() {
			return i
		}
		m := v.members[i]
		if !m.Breaker.Blocks(v.now) && !rn.mayFail {
			if !m.Breaker.BeginProbe(v.now) {
				v.avoided = nil
				continue // another visit tries it already, so it weighs more now than it did
			}
			rn.probe = m
		}
		if v.allThatTake(func(m *member) bool { return m.Breaker.Tripped() }) {
			rn.noneIsWell = v.members[:v.present]
		}
		return i
	}
}

// allThatTake says whether something is true of all upstreams that take new sessions.
func (v *view) allThatTake(is func(*member) bool) bool {
	for i, m := range v.members[:v.present] {
		if v.takesNew(i) && !is(m) {
			return false
		}
	}
	return true
}

// avoids says whether this run's new session should go elsewhere than to m, as long as there is another upstream. A
// request that may fail by its own fault tries nobody.
func (rn *run) avoids(m *member, now time.Duration) bool {
	return m.troubled(now) || rn.mayFail && m.Breaker.Tripped()
}

// wait weighs what this run's new session would wait for at m. Sessions whose websocket has not come in time ask for nothing.
func (rn *run) wait(m *member, now time.Duration) weight {
	w := weight{queue: m.Backlog(), load: m.Slots.Holding()}
	if w.queue > 0 {
		w.queue = (w.queue + 1) * m.Slowness()
	}
	if rn.avoids(m, now) {
		w.trouble = 1
	}
	return w
}

// ofItsGroup returns the place of the upstream for a new session of this run's group, or -1 if it is in
// none, or the group has nowhere to be but where all others may go as well.
func (rn *run) ofItsGroup(v *view) int {
	if rn.s.GroupBy == "" || rn.repl == nil {
		return -1
	}
	group, err := rn.repl.ReplaceOrErr(rn.s.GroupBy, false, true)
	if err != nil {
		rn.s.unknownGroup(v.now, err)
		return -1
	}
	if group == "" {
		return -1
	}
	return v.first(group, func(i int) bool {
		m := v.members[i]
		return rn.takes(v, i) && !rn.avoids(m, v.now) && !slices.Contains(rn.tried, m)
	})
}

// any returns the place of an upstream for what any server answers. One that is stalled gets nothing as long as
// there is another one; else the fewest pages being built decide, then how much is unanswered. The files of
// extensions are known to a server only once it has built a page. One that was asked for a file already, and does not
// have it, is asked again only if there is no other.
func (rn *run) any(v *view) int {
	ease := func(m *member) weight { return rn.ease(m, v.now) }
	asked := askedOf(rn.ctx)
	unasked := func(i int) bool { return v.takesShared(i) && !asked.has(v.members[i]) }
	i := rn.untried(v, unasked, ease)
	if i < 0 && asked != nil {
		i = rn.untried(v, v.takesShared, ease)
	}
	if i >= 0 && asked != nil {
		asked.members = append(asked.members, v.members[i])
		asked.left = v.any(unasked)
	}
	return i
}

// any says whether one of the upstreams may be taken.
func (v *view) any(may func(int) bool) bool {
	for i := range v.present {
		if may(i) {
			return true
		}
	}
	return false
}

// ease weighs how soon m answers this run's shared request.
func (rn *run) ease(m *member, now time.Duration) weight {
	w := weight{stall: int64(m.Unanswered.Stall(now) / sessions.StalledAfter), queue: m.Backlog(), load: m.Unanswered.Weight(now)}
	switch {
	case m.Breaker.Tripped() || m.troubled(now): // a visit tries it, and not all that a page asks for besides
		w.trouble = 3
	case strings.Contains(rn.path, "/static/extensions/") && !m.IsWarm():
		w.trouble = 2
	case m.Drain.On():
		w.trouble = 1
	}
	return w
}

// untried returns the place of the least of the upstreams that may be taken and that this run has
// not tried. When all have been tried it starts over, so that a pool of one can ride out a restart.
func (rn *run) untried(v *view, may func(int) bool, weigh func(*member) weight) int {
	i := v.least(func(i int) bool {
		return !slices.Contains(rn.tried, v.members[i]) && may(i)
	}, weigh)
	if i < 0 && len(rn.tried) > 0 {
		rn.tried = rn.tried[:0]
		i = v.least(may, weigh)
	}
	return i
}

// least returns the place of the member that weighs least among those that may be taken, ties
// at random, or -1.
func (v *view) least(may func(int) bool, weigh func(*member) weight) int {
	best, least, lot := -1, weight{}, uint64(0)
	seed := rand.Uint64()
	for i, m := range v.members[:v.present] {
		w := weigh(m)
		// Among equals the highest lot wins: one random number serves for all.
		draw := mix(seed + uint64(i))
		if best >= 0 && (least.less(w) || w == least && draw < lot) || !may(i) {
			continue
		}
		best, least, lot = i, w, draw
	}
	return best
}

// weight orders members: what they suffer from, then how long they have stalled, then what waits for them, then
// what they carry.
type weight struct{ trouble, stall, queue, load int64 }

func (w weight) less(than weight) bool {
	if w.trouble != than.trouble {
		return w.trouble < than.trouble
	}
	if w.stall != than.stall {
		return w.stall < than.stall
	}
	if w.queue != than.queue {
		return w.queue < than.queue
	}
	return w.load < than.load
}

// lesson returns how long a page took that its upstream is to be judged by, or 0. Only new sessions tell: those whose page names
// one may go where somebody wants to have them. And each client tells once a second.
func (rn *run) lesson(a *attempt, now time.Duration) time.Duration {
	if rn.mayFail || !rn.hasTurn(&a.m.History.Lessons, time.Second, now) {
		return 0
	}
	return a.took
}

// first returns the place of the member that comes first in the rendezvous order of an id
// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998) among those
// that may be taken, or -1. Nodes that know the same upstreams agree on it without talking.
func (v *view) first(id string, may func(int) bool) int {
	digest := v.ring.Digest(id)
	seed := binary.BigEndian.Uint64(digest[:8])
	best, highest := -1, uint64(0)
	for i, m := range v.members[:v.present] {
		if !may(i) {
			continue
		}
		if s := mix(seed ^ m.keyedBy(v.ring).order); best < 0 || s > highest {
			best, highest = i, s
		}
	}
	return best
}

// mix is the finalizer of SplitMix64: every bit of x decides about every bit of the result.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
