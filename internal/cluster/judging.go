// This file holds when upstreams that drain are judged, and who is told.

package cluster

import (
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// judgment is the verdict on an upstream, and what was told of it.
type judgment struct {
	verdict.Verdict
	told   map[string]int64 // sessions that each node had until it was told that the upstream is drained; nil if it was not
	nagged time.Duration    // when that was, or when it was last logged that it still is
}

// judgeAll passes the verdict on every draining upstream, keeps it, and tells of what is new.
func (n *state) judgeAll(now time.Duration) {
	verdicts, all := make(map[*sessions.Upstream]judgment), n.peersByName()
	n.conf.Table.Each(func(u *sessions.Upstream) {
		if n.drainsOn(u) {
			before, known := n.verdicts[u]
			peers := n.concerned(u, all, now)
			v := judgment{Verdict: n.snapshotOf(u, peers, now).Judge(before.Verdict)}
			if v.Mark == before.Mark { // of another drain nothing was told
				v.told, v.nagged = before.told, before.nagged
			}
			if !known {
				n.publishStarted(u)
			}
			if v.Drained {
				n.publishDrained(u, &v, now)
			}
			verdicts[u] = v
			until := int64(0)
			if v.Drained {
				until = int64(n.sure() + verdict.StaleTimeout)
			}
			u.Drain.SetEmpty(until)
			if n.sure() != 0 && len(peers) == 0 {
				u.Drain.SetAlone(int64(n.sure() + aloneQuarantine))
			}
		}
	})
	n.verdicts = verdicts
}

// publishStarted raises the event that u has begun to drain, unless it did before this process started.
func (n *state) publishStarted(u *sessions.Upstream) {
	if !n.witness {
		return
	}
	data := map[string]any{"upstream": u.Name, "config": u.Drain.ByConfig(), "by": "", "reason": ""}
	if m := n.recordOf(u); m.Drains() {
		data["by"], data["reason"] = m.By, m.Reason
	}
	n.publish(eventStarted, data)
}

// publishDrained raises the event that u is drained, and logs from time to time that it still is. What was
// told is told again only if a session may have been there since: while the storage fails nothing is
// called drained, and nobody needs to hear of that when it is over.
func (n *state) publishDrained(u *sessions.Upstream, v *judgment, now time.Duration) {
	switch {
	case v.told == nil || verdict.Grew(v.told, v.Moment.Started):
		n.conf.Logger.Info("upstream is drained; its server can be stopped", zap.String("upstream", u.Name))
		n.publish(eventDrained, map[string]any{"upstream": u.Name})
		v.nagged = now
	case now-v.nagged >= reminderInterval:
		n.conf.Logger.Warn("upstream has been drained for long and gets no new session (take the drain back if that is not meant)",
			zap.String("upstream", u.Name), zap.Time("draining_since", u.Drain.Since()))
		v.nagged = now
	}
	v.told = v.Moment.Started
}

// concerned returns those of some peers that may dial u, or to which browsers may come back that they sent there.
func (n *state) concerned(u *sessions.Upstream, all []*peer, now time.Duration) (peers []*verdict.Peer) {
	for _, p := range all {
		over := p.Gone != 0 && n.mayReturnFor(p, now) <= 0
		if !over && (u.Shared == u.Name || p.Host == n.conf.Host || p.Host == "") { // of which nothing could be read
			peers = append(peers, &p.Peer)
		}
	}
	return peers
}

// sure returns when all was read last, and its own report was found in it; 0 if never.
func (n *state) sure() time.Duration { return min(n.round, n.listed) }

// snapshotOf returns what is known of u at a moment, given the peers that may dial it.
func (n *state) snapshotOf(u *sessions.Upstream, peers []*verdict.Peer, now time.Duration) *verdict.Snapshot {
	return &verdict.Snapshot{
		Now: now, Node: n.name, Host: n.conf.Host, Seq: n.seq, TTL: n.sessionTTL(), UpSince: n.start,
		Shared: u.Shared, Record: n.recordOf(u), Peers: peers,
		Here: verdict.Here{
			Sessions: u.Slots.Sessions.Load(), Started: u.TotalStarted(), Closed: u.Drain.IsClosed(), Reopened: n.reopened(u, now),
		},
		Storage: verdict.Storage{Read: n.round, Listed: n.listed, Unheard: n.unheard, Trusted: n.used != nil && n.used.trusted},
	}
}
