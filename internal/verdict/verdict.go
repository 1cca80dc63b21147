// Package verdict says whether an upstream that drains is certainly empty, and if not, what speaks against it. It asks no clock and no
// storage, and changes nothing: what is known comes in as a Snapshot, and the verdict before it. All of it may be called by any goroutine.
//
// This file holds the verdict.
package verdict

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

// Verdict says whether a draining upstream is certainly empty.
//
// Every node must have read the drain record, so that no session begins, and all must have had no session
// at one and the same moment, so that none was on its way from one to another. That moment is when
// we find that every last report shows none. What a node said of it we know from a report that it
// made after it had read one of ours that is younger: if that shows none either, and that none has
// begun, there was none in between.
type Verdict struct {
	Mark    string        // that it is about: the id of the drain record; empty if configs alone drain the upstream
	since   time.Duration // when that was first seen here
	Moment  *Moment       // when no node showed a session; nil while that is not so
	Drained bool
	Waits   []Wait // for what, where it is not drained
}

// Moment is when no node showed a session.
type Moment struct {
	at      time.Duration
	seq     uint64           // of our next report
	Started map[string]int64 // sessions of each node until then, those that have ended too
}

// Wait is why an upstream is not called drained.
type Wait struct {
	api.Wait
	certain bool // whether this shows that the upstream is not empty, or may not be
}

func newWait(node, host, reason string, certain bool) Wait {
	return Wait{api.Wait{Node: node, Host: host, Reason: reason}, certain}
}

// Judge passes the verdict, given the one before, which is the zero Verdict at first.
func (s *Snapshot) Judge(v Verdict) Verdict {
	if id := s.Record.IDOrNone(); v.Mark != id || v.since == 0 {
		v = Verdict{Mark: id, since: s.Now}
	}
	v.Waits = s.waitsHere(v.since)
	v.Waits = append(v.Waits, s.waitsForAll(v.Drained && !isCertain(v.Waits))...)
	if len(v.Waits) > 0 {
		// What was certain stays so while a node is late, or young.
		if !v.Drained || isCertain(v.Waits) {
			v.Moment, v.Drained = nil, false
		}
		return v
	}
	var last map[string]int64
	if v.Moment != nil {
		last = v.Moment.Started
	}
	started := s.started(last)
	if v.Drained && !Grew(v.Moment.Started, started) {
		return v
	}
	if v.Drained || v.Moment == nil || !maps.Equal(v.Moment.Started, started) {
		v.Moment = &Moment{s.Now, s.Seq + 1, started}
	}
	// Where sessions live for short, one may have gone to a node that nobody had read of then.
	if left := v.Moment.at + DrainQuarantine - s.Now; left > 0 && s.TTL < 2*DrainQuarantine {
		v.Waits = append(v.Waits, newWait(s.Node, s.Host, "it must say so once more", false))
	}
	for _, p := range s.Peers {
		if heard := p.Heard[s.Node]; heard < v.Moment.seq || heard > s.Seq { // nobody has heard what was not said yet
			v.Waits = append(v.Waits, newWait(p.Node, p.Host, "it must say so once more", false))
		}
	}
	v.Drained = len(v.Waits) == 0
	return v
}

// started returns how many sessions each node has had there. Of those that have had none, as last time, nothing is kept: there may be
// thousands of nodes and drains.
func (s *Snapshot) started(last map[string]int64) map[string]int64 {
	started := map[string]int64{s.Node: s.Here.Started}
	for _, p := range s.Peers {
		if c := p.Upstreams[s.Shared].Begun; c != last[p.Node] || c != 0 {
			started[p.Node] = c
		}
	}
	return started
}

// Grew says whether a node has had a session since. One that was not known before had none then.
func Grew(before, now map[string]int64) bool {
	for name, started := range now {
		if started != before[name] {
			return true
		}
	}
	return false
}

// waitsHere returns what this node waits for by itself, where the drain record has been known since a time.
func (s *Snapshot) waitsHere(since time.Duration) (waits []Wait) {
	say := func(certain bool, format string, args ...any) {
		waits = append(waits, newWait(s.Node, s.Host, fmt.Sprintf(format, args...), certain))
	}
	if c := s.Here.Sessions; c > 0 {
		say(true, "it has %s", api.InWords(c))
	}
	// Browsers that come back to a closed upstream are sent elsewhere.
	if left := s.UpSince + s.TTL - s.Now; left > 0 && !s.Here.Closed {
		say(true, "it has just started; browsers may come back for another %s", api.Seconds(left))
	}
	if left := s.Here.Reopened; left > 0 {
		say(true, "it was closed until a moment ago; browsers may come back for another %s", api.Seconds(left))
	}
	if left := since + DrainQuarantine - s.Now; left > 0 {
		say(true, "the mark is new; a node that is starting reads it within %s", api.Seconds(left))
	}
	switch {
	case s.Now-s.Storage.Read > StaleTimeout:
		say(true, "it cannot read the storage")
	case s.Storage.Unheard != 0 && s.Now-s.Storage.Unheard > StaleTimeout:
		say(true, "it cannot write to the storage, so the others do not hear of it")
	case s.Storage.Listed == 0 || s.Now-s.Storage.Listed > StaleTimeout:
		say(true, "it does not find its own report in the storage, nor may it find those of others (caddy bokeh storage-check)")
	case !s.Storage.Trusted: // since a reload a moment ago, which changes nothing about what was certain
		say(false, "it has not found its own report in the storage that its config names now")
	}
	return waits
}

// MaxWaits is for how many things is told that an upstream is not called drained. There may be thousands of nodes and drains.
const MaxWaits = 32

// waitsForAll returns what is to be waited for from some peers. Where what is certain matters, it looks until it has found that.
func (s *Snapshot) waitsForAll(certain bool) (waits []Wait) {
	left := 0
	for i, p := range s.Peers {
		if len(waits) >= MaxWaits && (!certain || isCertain(waits)) {
			left = len(s.Peers) - i
			break
		}
		ws := s.waitsFor(p)
		if len(waits) >= MaxWaits && len(ws) > 0 && !isCertain(ws) {
			left++
			continue
		}
		waits = append(waits, ws...)
	}
	if left > 0 {
		waits = append(waits, newWait(s.Node, s.Host, fmt.Sprintf("%d other Caddys are still to be looked at", left), false))
	}
	return waits
}

// isCertain says whether one of some things that are waited for shows that the upstream is not empty, or may not be.
func isCertain(waits []Wait) bool {
	return slices.ContainsFunc(waits, func(w Wait) bool { return w.certain })
}

// waitsFor returns what is to be waited for from a peer, given its account of the upstream and the
// record of that, which is nil where a config drains it.
func (s *Snapshot) waitsFor(p *Peer) (waits []Wait) {
	m, a := s.Record, p.Upstreams[s.Shared]
	say := func(certain bool, format string, args ...any) {
		waits = append(waits, newWait(p.Node, p.Host, fmt.Sprintf(format, args...), certain))
	}
	if p.Gone != 0 && m.Closes() {
		return nil
	}
	if p.Gone != 0 {
		if left := p.MayReturnFor(s.TTL, s.Now); left > 0 {
			say(false, "it is gone; browsers may come back for another %s%s", api.Seconds(left), s.unlessForgotten(p, left))
		}
		return waits
	}
	switch {
	case m != nil && a.Mark != m.ID:
		say(true, "it has not said that it has read the mark")
	case m == nil && a.InPool && !a.Draining:
		say(true, "its config does not drain the upstream")
	case m == nil && p.Unsure && !a.Draining:
		say(true, "it may have the upstream in a pool that it does not know yet")
	}
	if c := a.Sessions.All(); c > 0 {
		say(true, "it has %s", api.InWords(c))
	}
	if a.Reopened {
		say(true, "it was closed there until a moment ago; browsers may come back")
	}
	if p.Overdue(s.Now) {
		say(false, "it has not reported for %s; if it is dead, say so (DELETE %s/%s), else mend its storage",
			api.Seconds(s.Now-p.Changed), api.NodesPath, p.Node)
	}
	if !p.Settled && !m.Closes() {
		say(false, "it has just started; browsers may come back to it")
	}
	return waits
}

// unlessForgotten says what to do where a node that is gone has said that browsers come back to it for longer than this one waits.
func (s *Snapshot) unlessForgotten(p *Peer, left time.Duration) string {
	if left <= s.TTL {
		return ""
	}
	return fmt.Sprintf(" (if nobody does, say so: DELETE %s/%s?force=true)", api.NodesPath, p.Node)
}
