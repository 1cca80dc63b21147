// This file holds the choice among upstreams: the one where a new session is ready first, or the one that all nodes agree on.

package caddybokeh

import (
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// pick is what a choice comes to. Making it changes nothing of sessions and attempts.
type pick struct {
	*candidate // nil if there is none
	decision   decision
	from       *candidate // that the session leaves, or nil
	probes     bool       // the visit is to try whether the upstream is well again
	unwell     bool       // none of those that take new sessions is well
	startsOver bool       // all have been tried, so it starts over
}

// choose picks the upstream for this attempt, by where the visit's session is bound.
func (v *visit) choose(cs *candidates, home *candidate, tier bool) pick {
	switch {
	case v.isNoVisit():
		return v.chooseShared(cs, home)
	case v.ID == "" && v.Stamp == "":
		if c := v.ofItsBrowser(cs); c != nil {
			return pick{candidate: c, decision: decisionNew}
		}
		return v.fresh(cs)
	case home != nil && !cs.isLost(home):
		return pick{candidate: home, decision: decisionBound}
	case tier:
		return v.fresh(cs)
	}
	p := pick{candidate: v.elsewhere(cs, home), decision: decisionBound}
	switch {
	case home != nil && p.candidate == home:
	case home != nil || v.Stamp != "":
		p.decision, p.from = decisionMoved, home
	case v.Kind == bokeh.Page:
		p.decision = decisionNew
	}
	return p
}

// chooseShared picks the upstream that has what a session has made, if the request names one that is known. It binds nothing, and no
// session moves for it. Anything else is shared.
func (v *visit) chooseShared(cs *candidates, home *candidate) pick {
	if v.isForAnyServer() {
		return v.shared(cs)
	}
	if home != nil && !cs.isLost(home) {
		return pick{candidate: home, decision: decisionBound}
	}
	if c := v.ofItsBrowser(cs); c != nil {
		return pick{candidate: c, decision: decisionShared}
	}
	return v.shared(cs)
}

// fresh picks the upstream for a new session. A Bokeh server runs app code on one
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
func (v *visit) fresh(cs *candidates) pick {
	p := pick{candidate: v.ofItsGroup(cs)}
	if p.candidate == nil {
		room := v.room(cs)
		p = v.untried(cs, room.isFor, func(m *member) weight { return v.wait(m, cs.now) })
	}
	if p.candidate != nil && p.Breaker.Tripped() {
		p.probes = !p.Breaker.Blocks(cs.now) && !v.mayFail
		p.unwell = cs.allThatTake(func(c *candidate) bool { return c.Breaker.Tripped() })
	}
	p.decision = decisionNew
	return p
}

// avoids says whether this visit's new session should go elsewhere than to m, as long as there is another upstream. A
// request that may fail by its own fault tries nobody.
func (v *visit) avoids(m *member, now time.Duration) bool {
	return m.isToBeSpared(now) || v.mayFail && m.Breaker.Tripped()
}

// isToBeSpared says whether new sessions should go elsewhere, as long as there is another upstream.
func (m *member) isToBeSpared(now time.Duration) bool {
	return m.Breaker.Blocks(now) || m.noTLS.JustNow(now)
}

// wait weighs what this visit's new session would wait for at m. Sessions whose websocket has not come in time ask for nothing.
func (v *visit) wait(m *member, now time.Duration) weight {
	w := weight{queue: m.Backlog(), load: m.Slots.Holding()}
	if w.queue > 0 {
		w.queue = (w.queue + 1) * m.Slowness()
	}
	if v.avoids(m, now) {
		w.avoided = 1
	}
	return w
}

// ofItsBrowser returns the upstream where the browser's newest page is, if that is well and takes new
// sessions, or nil. A tag cannot be guessed, so nobody names an upstream that he was not given. A page goes where it is
// ready first; but what may be one, under a path that has never been a page's, is more likely a link to what a page has made.
func (v *visit) ofItsBrowser(cs *candidates) *candidate {
	if v.cookie == "" || v.Kind == bokeh.Page && (bokeh.IsEmbedded(path.Base(v.path)) || v.isAtApp()) {
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(v.cookie)
	if err != nil || len(raw) != stamp.TagLen {
		return nil
	}
	room := v.room(cs)
	for _, k := range *v.ring {
		c := cs.named(k, stamp.Tag(raw))
		if c == nil || c.gone {
			continue
		}
		if room.isFor(c) && !c.Breaker.Tripped() && !v.avoids(c.member, cs.now) && !slices.Contains(v.tried, c.member) {
			return c
		}
	}
	return nil
}

// ofItsGroup returns the upstream for a new session of this visit's group, or nil if it is in
// none, or the group has nowhere to be but where all others may go as well.
func (v *visit) ofItsGroup(cs *candidates) *candidate {
	if v.s.GroupBy == "" || v.repl == nil {
		return nil
	}
	group, err := v.repl.ReplaceOrErr(v.s.GroupBy, false, true)
	if err != nil {
		v.s.unknownGroup(cs.now, err)
		return nil
	}
	if group == "" {
		return nil
	}
	room := v.room(cs)
	return cs.first(group, func(c *candidate) bool {
		return room.isFor(c) && !v.avoids(c.member, cs.now) && !slices.Contains(v.tried, c.member)
	})
}

// room is which of the candidates take a visit's new session.
type room struct {
	v  *visit
	cs *candidates

	looked  bool // whether all may fail
	allFail bool
}

func (v *visit) room(cs *candidates) *room { return &room{v: v, cs: cs} }

// isFor says whether c takes the session. Whoever may still wait for a slot need not take one at an upstream that fails.
func (r *room) isFor(c *candidate) bool {
	v := r.v
	if !v.isCapped() || !r.cs.takesNew(c) {
		return r.cs.takesNew(c)
	}
	return (!v.avoids(c.member, r.cs.now) || v.lastChance || r.isWhereAllFail()) &&
		v.s.table.Waiting.Admits(v.waiter, &c.Slots, int64(v.s.MaxSessions), r.cs.now)
}

// isWhereAllFail says whether the session has nowhere to go but where it may fail. That is asked for every upstream that may.
func (r *room) isWhereAllFail() bool {
	if !r.looked {
		r.looked = true
		r.allFail = r.cs.allThatTake(func(c *candidate) bool { return r.v.avoids(c.member, r.cs.now) })
	}
	return r.allFail
}

// shared picks an upstream for what any server answers. One that is stalled gets nothing as long as
// there is another one; else the fewest pages being built decide, then how much is unanswered. The files of
// extensions are known to a server only once it has built a page. One that was asked for a file already, and does not
// have it, is asked again only if there is no other.
func (v *visit) shared(cs *candidates) pick {
	ease := func(m *member) weight { return v.ease(m, cs.now) }
	p := v.untried(cs, v.unasked(cs), ease)
	if p.candidate == nil && v.asked != nil {
		p.candidate = cs.least(cs.takesShared, ease)
	}
	p.decision = decisionShared
	return p
}

// unasked returns what says whether an upstream may be asked for what any server answers, and was not asked for it yet.
func (v *visit) unasked(cs *candidates) func(*candidate) bool {
	return func(c *candidate) bool { return cs.takesShared(c) && !v.asked.has(c.member) }
}

// ease weighs how soon m answers this visit's shared request.
func (v *visit) ease(m *member, now time.Duration) weight {
	w := weight{stall: int64(m.Unanswered.Stall(now) / sessions.StalledAfter), queue: m.Backlog(), load: m.Unanswered.Weight(now)}
	switch {
	case m.Breaker.Tripped() || m.isToBeSpared(now): // a visit tries it, and not all that a page asks for besides
		w.avoided = 3
	case strings.Contains(v.path, "/static/extensions/") && !m.IsWarm():
		w.avoided = 2
	case m.Drain.On():
		w.avoided = 1
	}
	return w
}

// untried picks the least of the upstreams that may be taken and that this visit has
// not tried. When all have been tried it starts over, so that a pool of one can ride out a restart.
func (v *visit) untried(cs *candidates, may func(*candidate) bool, weigh func(*member) weight) pick {
	p := pick{candidate: cs.least(func(c *candidate) bool {
		return !slices.Contains(v.tried, c.member) && may(c)
	}, weigh)}
	if p.candidate == nil && len(v.tried) > 0 {
		p.candidate, p.startsOver = cs.least(may, weigh), true
	}
	return p
}

// least returns the one that weighs least among those that may be taken, ties at random, or nil.
func (cs *candidates) least(may func(*candidate) bool, weigh func(*member) weight) (best *candidate) {
	least, lot := weight{}, uint64(0)
	seed := rand.Uint64()
	for i := range cs.all {
		c := &cs.all[i]
		w := weigh(c.member)
		// Among equals the highest lot wins: one random number serves for all.
		draw := mix(seed + uint64(i))
		if best != nil {
			if more := w.beyond(&least); more > 0 || more == 0 && draw < lot {
				continue
			}
		}
		if !may(c) {
			continue
		}
		best, least, lot = c, w, draw
	}
	return best
}

// weight orders members: what they suffer from, then how long they have stalled, then what waits for them, then
// what they carry.
type weight struct{ avoided, stall, queue, load int64 }

// beyond is above 0 if w weighs more than another one, below 0 if it weighs less, and 0 if they are equal.
func (w *weight) beyond(other *weight) int64 {
	if d := w.avoided - other.avoided; d != 0 {
		return d
	}
	if d := w.stall - other.stall; d != 0 {
		return d
	}
	if d := w.queue - other.queue; d != 0 {
		return d
	}
	return w.load - other.load
}

// lesson returns how long a page took that its upstream is to be judged by, or 0. Only new sessions tell: those whose page names
// one may go where somebody wants to have them. And each client tells once a second.
func (v *visit) lesson(a *attempt, now time.Duration) time.Duration {
	if v.mayFail || !v.hasTurn(&a.m.History.Lessons, lessonInterval, now) {
		return 0
	}
	return a.took
}

// first returns the one that comes first in the rendezvous order of an id
// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998) among those
// that may be taken, or nil. Nodes that know the same upstreams agree on it without talking.
func (cs *candidates) first(id string, may func(*candidate) bool) (best *candidate) {
	digest := cs.ring.Digest(id)
	seed := binary.BigEndian.Uint64(digest[:8])
	highest := uint64(0)
	for i := range cs.all {
		c := &cs.all[i]
		if !may(c) {
			continue
		}
		if s := mix(seed ^ c.keyedBy(cs.ring).order); best == nil || s > highest {
			best, highest = c, s
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
