// This file holds the verdict on a draining upstream: whether it is certainly empty, and if not, what speaks against it. It asks no clock
// and no storage, and changes nothing.

package cluster

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

// verdict says whether a draining upstream is certainly empty.
//
// Every node must have read the drain record, so that no session begins, and all must have had no session
// at one and the same moment, so that none was on its way from one to another. That moment is when
// we find that every last report shows none. What a node said of it we know from a report that it
// made after it had read one of ours that is younger: if that shows none either, and that none has
// begun, there was none in between.
type verdict struct {
	mark    string        // that it is about; empty if configs alone drain the upstream
	begun   time.Duration // when that was first seen here, on the table's clock
	moment  *moment
	drained bool
	waits   []wait // for what, where it is not drained

	told   map[string]int64 // sessions that each node had until it was told that it is drained; nil if it was not
	nagged time.Duration    // when that was, or when it was last logged that it still is
}

// moment is when no node showed a session.
type moment struct {
	at    time.Duration
	seq   uint64           // of our next report
	begun map[string]int64 // sessions that each node had until then
}

// wait is why an upstream is not called drained.
type wait struct {
	api.Wait
	certain bool // whether this shows that the upstream is not empty, or may not be
}

func newWait(node, host, reason string, certain bool) wait {
	return wait{api.Wait{Node: node, Host: host, Reason: reason}, certain}
}

// snapshot is what is known at a moment of an upstream that drains. Times are on the table's clock.
type snapshot struct {
	now     time.Duration
	node    string        // this one
	host    string        // of this machine
	upSince time.Duration // this node
	seq     uint64        // of its last report
	ttl     time.Duration // how long a session lives without a socket
	shared  string        // the name of the upstream between nodes
	record  *drainRecord  // what an operator has said last; nil where configs alone drain it
	here    hereAt
	storage storageAt
	peers   []*peer // that may dial it, or to which browsers may come back that they sent there
}

// hereAt is what this node has of the upstream.
type hereAt struct {
	sessions int64
	started  int64         // sessions so far
	closed   bool          // nothing goes there
	reopened time.Duration // how long browsers may still come back, since it was closed until a moment ago
}

// storageAt is what this node knows of its storage.
type storageAt struct {
	read    time.Duration // when all was read last; 0 if never
	listed  time.Duration // when this node's own report was last among that; 0 if never
	unheard time.Duration // since when no report could be written; 0 if the last one could
	trusted bool          // it has shown that report once
}

// judge passes the verdict, given the one before.
func (s *snapshot) judge(v verdict) verdict {
	if id := s.record.id(); v.mark != id || v.begun == 0 {
		v = verdict{mark: id, begun: s.now}
	}
	v.waits = s.waitsHere(v.begun)
	v.waits = append(v.waits, s.waitsForAll(v.drained && !isCertain(v.waits))...)
	if len(v.waits) > 0 {
		// What was certain stays so while a node is late, or young.
		if !v.drained || isCertain(v.waits) {
			v.moment, v.drained = nil, false
		}
		return v
	}
	var last map[string]int64
	if v.moment != nil {
		last = v.moment.begun
	}
	begun := s.begun(last)
	if v.drained && !grew(v.moment.begun, begun) {
		return v
	}
	if v.drained || v.moment == nil || !maps.Equal(v.moment.begun, begun) {
		v.moment, v.drained = &moment{s.now, s.seq + 1, begun}, false
	}
	// Where sessions live for short, one may have gone to a node that nobody had read of then.
	if left := v.moment.at + drainQuarantine - s.now; left > 0 && s.ttl < 2*drainQuarantine {
		v.waits = append(v.waits, newWait(s.node, s.host, "it must say so once more", false))
	}
	for _, p := range s.peers {
		if heard := p.Heard[s.node]; heard < v.moment.seq || heard > s.seq { // nobody has heard what was not said yet
			v.waits = append(v.waits, newWait(p.Node, p.Host, "it must say so once more", false))
		}
	}
	v.drained = len(v.waits) == 0
	return v
}

// begun returns how many sessions each node has had there. Of those that have had none, as last time, nothing is kept: there may be
// thousands of nodes and drains.
func (s *snapshot) begun(last map[string]int64) map[string]int64 {
	begun := map[string]int64{s.node: s.here.started}
	for _, p := range s.peers {
		if c := p.Upstreams[s.shared].Begun; c != last[p.Node] || c != 0 {
			begun[p.Node] = c
		}
	}
	return begun
}

// grew says whether a node has had a session since. One that was not known before had none then.
func grew(before, now map[string]int64) bool {
	for name, begun := range now {
		if begun != before[name] {
			return true
		}
	}
	return false
}

// waitsHere returns what this node waits for by itself, where the drain record has been known since a time.
func (s *snapshot) waitsHere(since time.Duration) (waits []wait) {
	say := func(certain bool, format string, args ...any) {
		waits = append(waits, newWait(s.node, s.host, fmt.Sprintf(format, args...), certain))
	}
	if c := s.here.sessions; c > 0 {
		say(true, "it has %s", api.InWords(c))
	}
	// Browsers that come back to a closed upstream are sent elsewhere.
	if left := s.upSince + s.ttl - s.now; left > 0 && !s.here.closed {
		say(true, "it has just started; browsers may come back for another %s", api.Seconds(left))
	}
	if left := s.here.reopened; left > 0 {
		say(true, "it was closed until a moment ago; browsers may come back for another %s", api.Seconds(left))
	}
	if left := since + drainQuarantine - s.now; left > 0 {
		say(true, "the mark is new; a node that is starting reads it within %s", api.Seconds(left))
	}
	switch {
	case s.now-s.storage.read > staleTimeout:
		say(true, "it cannot read the storage")
	case s.storage.unheard != 0 && s.now-s.storage.unheard > staleTimeout:
		say(true, "it cannot write to the storage, so the others do not hear of it")
	case s.storage.listed == 0 || s.now-s.storage.listed > staleTimeout:
		say(true, "it does not find its own report in the storage, nor may it find those of others (caddy bokeh storage-check)")
	case !s.storage.trusted: // since a reload a moment ago, which changes nothing about what was certain
		say(false, "it has not found its own report in the storage that its config names now")
	}
	return waits
}

// maxWaits is for how many things is told that an upstream is not called drained. There may be thousands of nodes and drains.
const maxWaits = 32

// waitsForAll returns what is to be waited for from some peers. Where what is certain matters, it looks until it has found that.
func (s *snapshot) waitsForAll(certain bool) (waits []wait) {
	left := 0
	for i, p := range s.peers {
		if len(waits) >= maxWaits && (!certain || isCertain(waits)) {
			left = len(s.peers) - i
			break
		}
		ws := s.waitsFor(p)
		if len(waits) >= maxWaits && len(ws) > 0 && !isCertain(ws) {
			left++
			continue
		}
		waits = append(waits, ws...)
	}
	if left > 0 {
		waits = append(waits, newWait(s.node, s.host, fmt.Sprintf("%d other Caddys are still to be looked at", left), false))
	}
	return waits
}

// isCertain says whether one of some things that are waited for shows that the upstream is not empty, or may not be.
func isCertain(waits []wait) bool {
	return slices.ContainsFunc(waits, func(w wait) bool { return w.certain })
}

// waitsFor returns what is to be waited for from a peer, given its account of the upstream and the
// record of that, which is nil where a config drains it.
func (s *snapshot) waitsFor(p *peer) (waits []wait) {
	m, a := s.record, p.Upstreams[s.shared]
	say := func(certain bool, format string, args ...any) {
		waits = append(waits, newWait(p.Node, p.Host, fmt.Sprintf(format, args...), certain))
	}
	if p.gone != 0 && m.closes() {
		return nil
	}
	if p.gone != 0 {
		if left := p.mayReturnFor(s.ttl, s.now); left > 0 {
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
	if p.overdue(s.now) {
		say(false, "it has not reported for %s; if it is dead, say so (DELETE %s/%s), else mend its storage",
			api.Seconds(s.now-p.changed), api.NodesPath, p.Node)
	}
	if !p.Settled && !m.closes() {
		say(false, "it has just started; browsers may come back to it")
	}
	return waits
}

// unlessForgotten says what to do where a node that is gone has said that browsers come back to it for longer than this one waits.
func (s *snapshot) unlessForgotten(p *peer, left time.Duration) string {
	if left <= s.ttl {
		return ""
	}
	return fmt.Sprintf(" (if nobody does, say so: DELETE %s/%s?force=true)", api.NodesPath, p.Node)
}
