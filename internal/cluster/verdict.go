// This file holds the verdict on a draining upstream: whether it is certainly empty, and if not, what speaks against it.

package cluster

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// verdict says whether a draining upstream is certainly empty.
//
// Every node must have read the mark, so that no session begins, and all must have had no session
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

// aloneQuarantine is how long after it has read the storage a node knows that there is no other. One that has
// started since has no session yet that has ended here.
const aloneQuarantine = 5 * time.Second

// judgeAll passes the verdict on every draining upstream. n.mu is locked.
func (n *Cluster) judgeAll(now time.Duration) {
	verdicts, all := make(map[*sessions.Upstream]verdict), n.peersByName()
	n.Table.Each(func(u *sessions.Upstream) {
		if u.Drain.On() && !n.isOpening(u) {
			before, known := n.verdicts[u]
			peers := n.concerned(u, all, now)
			v := n.judge(u, peers, before, now)
			if !known {
				n.publishStarted(u)
			}
			if v.drained {
				n.publishDrained(u, &v, now)
			}
			verdicts[u] = v
			until := int64(0)
			if v.drained {
				until = int64(n.sure() + staleTimeout)
			}
			u.Drain.SetEmpty(until)
			if n.sure() != 0 && len(peers) == 0 {
				u.Drain.SetAlone(int64(n.sure() + aloneQuarantine))
			}
		}
	})
	n.verdicts = verdicts
}

// reminderInterval is how often it is logged that an upstream drains which is long empty.
const reminderInterval = time.Hour

// publishStarted raises the event that u has begun to drain, unless it did before this process started.
func (n *Cluster) publishStarted(u *sessions.Upstream) {
	if !n.witness {
		return
	}
	data := map[string]any{"upstream": u.Name, "config": u.Drain.ByConfig(), "by": "", "reason": ""}
	if m := n.recordOf(u); m.drains() {
		data["by"], data["reason"] = m.By, m.Reason
	}
	n.Publish(eventStarted, data)
}

// publishDrained raises the event that u is drained, and logs from time to time that it still is. What was
// told is told again only if a session may have been there since: while the storage fails nothing is
// called drained, and nobody needs to hear of that when it is over.
func (n *Cluster) publishDrained(u *sessions.Upstream, v *verdict, now time.Duration) {
	switch {
	case v.told == nil || grew(v.told, v.moment.begun):
		n.Logger.Info("upstream is drained; its server can be stopped", zap.String("upstream", u.Name))
		n.Publish(eventDrained, map[string]any{"upstream": u.Name})
		v.nagged = now
	case now-v.nagged >= reminderInterval:
		n.Logger.Warn("upstream has been drained for long and gets no new session (take the drain back if that is not meant)",
			zap.String("upstream", u.Name), zap.Time("draining_since", u.Drain.Since()))
		v.nagged = now
	}
	v.told = v.moment.begun
}

// judge passes the verdict on a draining upstream, given the peers that may dial it and the verdict
// before. n.mu is locked.
func (n *Cluster) judge(u *sessions.Upstream, peers []*peer, v verdict, now time.Duration) verdict {
	m := n.recordOf(u)
	if id := m.id(); v.mark != id || v.begun == 0 {
		v = verdict{mark: id, begun: now}
	}
	v.waits = n.waitsHere(u, v.begun, now)
	v.waits = append(v.waits, n.waitsForAll(peers, u, m, v.drained && !isCertain(v.waits), now)...)
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
	begun := n.begun(u, peers, last)
	if v.drained && !grew(v.moment.begun, begun) {
		return v
	}
	if v.drained || v.moment == nil || !maps.Equal(v.moment.begun, begun) {
		v.moment, v.drained = &moment{now, n.seq + 1, begun}, false
	}
	// Where sessions live for short, one may have gone to a node that nobody had read of then.
	if left := v.moment.at + drainQuarantine - now; left > 0 && n.sessionTTL() < 2*drainQuarantine {
		v.waits = append(v.waits, newWait(n.name, n.Host, "it must say so once more", false))
	}
	for _, p := range peers {
		if heard := p.Heard[n.name]; heard < v.moment.seq || heard > n.seq { // nobody has heard what was not said yet
			v.waits = append(v.waits, newWait(p.Node, p.Host, "it must say so once more", false))
		}
	}
	v.drained = len(v.waits) == 0
	return v
}

// begun returns how many sessions each node has had at u. Of those that have had none, as last time, nothing is kept: there may be
// thousands of nodes and drains. n.mu is locked.
func (n *Cluster) begun(u *sessions.Upstream, peers []*peer, last map[string]int64) map[string]int64 {
	begun := map[string]int64{n.name: u.TotalStarted()}
	for _, p := range peers {
		if c := p.Upstreams[u.Shared].Begun; c != last[p.Node] || c != 0 {
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

// peersByName returns the peers in the order of their names. n.mu is locked.
func (n *Cluster) peersByName() (peers []*peer) {
	for _, key := range slices.Sorted(maps.Keys(n.peers)) {
		peers = append(peers, n.peers[key])
	}
	return peers
}

// concerned returns those of some peers that may dial u, or to which browsers may come back that they sent there. n.mu is locked.
func (n *Cluster) concerned(u *sessions.Upstream, all []*peer, now time.Duration) (peers []*peer) {
	for _, p := range all {
		over := p.gone != 0 && n.mayReturnFor(p, now) <= 0
		if !over && (u.Shared == u.Name || p.Host == n.Host || p.Host == "") { // of which nothing could be read
			peers = append(peers, p)
		}
	}
	return peers
}

// staleTimeout is how long after a node has last read the storage, or could not write to it any more, it calls nothing drained:
// somebody may have taken the drain back, or not hear of the sessions that this node begins.
const staleTimeout = 3 * nodeInterval

// sure returns when all was read last, and its own report was found in it; 0 if never. n.mu is locked.
func (n *Cluster) sure() time.Duration { return min(n.round, n.listed) }

// drainQuarantine is how long after a mark was set no upstream is called drained: a node that was starting
// at that moment has read no mark, and nobody has read of it yet.
const drainQuarantine = 5 * time.Second

// waitsHere returns what this node waits for by itself, where the mark has been known since a time.
// n.mu is locked.
func (n *Cluster) waitsHere(u *sessions.Upstream, since, now time.Duration) (waits []wait) {
	say := func(certain bool, format string, args ...any) {
		waits = append(waits, newWait(n.name, n.Host, fmt.Sprintf(format, args...), certain))
	}
	if c := u.Slots.Sessions.Load(); c > 0 {
		say(true, "it has %s", api.InWords(c))
	}
	// Browsers that come back to a closed upstream are sent elsewhere.
	if left := n.start + n.sessionTTL() - now; left > 0 && !u.Drain.IsClosed() {
		say(true, "it has just started; browsers may come back for another %s", api.Seconds(left))
	}
	if left := n.reopened(u, now); left > 0 {
		say(true, "it was closed until a moment ago; browsers may come back for another %s", api.Seconds(left))
	}
	if left := since + drainQuarantine - now; left > 0 {
		say(true, "the mark is new; a node that is starting reads it within %s", api.Seconds(left))
	}
	switch {
	case now-n.round > staleTimeout:
		say(true, "it cannot read the storage")
	case n.unheard != 0 && now-n.unheard > staleTimeout:
		say(true, "it cannot write to the storage, so the others do not hear of it")
	case n.listed == 0 || now-n.listed > staleTimeout:
		say(true, "it does not find its own report in the storage, nor may it find those of others (caddy bokeh storage-check)")
	case !n.used.trusted: // since a reload a moment ago, which changes nothing about what was certain
		say(false, "it has not found its own report in the storage that its config names now")
	}
	return waits
}

// maxWaits is for how many things is told that an upstream is not called drained. There may be thousands of nodes and drains.
const maxWaits = 32

// waitsForAll returns what is to be waited for from some peers. Where what is certain matters, it looks until it has found that.
// n.mu is locked.
func (n *Cluster) waitsForAll(peers []*peer, u *sessions.Upstream, m *drainRecord, certain bool, now time.Duration) (waits []wait) {
	left := 0
	for i, p := range peers {
		if len(waits) >= maxWaits && (!certain || isCertain(waits)) {
			left = len(peers) - i
			break
		}
		ws := n.waitsFor(p, p.Upstreams[u.Shared], m, now)
		if len(waits) >= maxWaits && len(ws) > 0 && !isCertain(ws) {
			left++
			continue
		}
		waits = append(waits, ws...)
	}
	if left > 0 {
		waits = append(waits, newWait(n.name, n.Host, fmt.Sprintf("%d other Caddys are still to be looked at", left), false))
	}
	return waits
}

// isCertain says whether one of some things that are waited for shows that the upstream is not empty, or may not be.
func isCertain(waits []wait) bool {
	return slices.ContainsFunc(waits, func(w wait) bool { return w.certain })
}

// waitsFor returns what is to be waited for from a peer, given its account of the upstream and the
// mark of that, which is nil where a config drains it.
func (n *Cluster) waitsFor(p *peer, a account, m *drainRecord, now time.Duration) (waits []wait) {
	say := func(certain bool, format string, args ...any) {
		waits = append(waits, newWait(p.Node, p.Host, fmt.Sprintf(format, args...), certain))
	}
	if p.gone != 0 && m.closes() {
		return nil
	}
	if p.gone != 0 {
		if left := n.mayReturnFor(p, now); left > 0 {
			say(false, "it is gone; browsers may come back for another %s%s", api.Seconds(left), n.unlessForgotten(p, left))
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
	if p.overdue(now) {
		say(false, "it has not reported for %s; if it is dead, say so (DELETE %s/%s), else mend its storage",
			api.Seconds(now-p.changed), api.NodesPath, p.Node)
	}
	if !p.Settled && !m.closes() {
		say(false, "it has just started; browsers may come back to it")
	}
	return waits
}

// unlessForgotten says what to do where a node that is gone has said that browsers come back to it for longer than this one waits.
func (n *Cluster) unlessForgotten(p *peer, left time.Duration) string {
	if left <= n.sessionTTL() {
		return ""
	}
	return fmt.Sprintf(" (if nobody does, say so: DELETE %s/%s?force=true)", api.NodesPath, p.Node)
}
