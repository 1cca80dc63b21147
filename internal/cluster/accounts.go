// This file holds what this node has of each upstream, and the report that it makes of that.

package cluster

import (
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// makeReport returns what there is to tell, given what there is of the upstreams.
func (n *state) makeReport(now time.Duration, accounts map[string]record.Account) *record.Report {
	r := &record.Report{
		Node: n.name, Host: n.conf.Host, Process: n.conf.Process,
		Seq: n.seq, Heard: make(map[string]uint64), Settles: n.sessionTTL(),
		Upstreams: accounts,
	}
	r.Settled = now-n.start >= r.Settles
	r.Unsure = n.unsure()
	r.Left = n.conf.Exiting() && n.sessionCounts().AtWork() == 0 && n.awaited != 0 && now < n.awaited+killTimeout
	for _, p := range n.peers {
		r.Heard[p.Node] = p.Seq
	}
	return r
}

// unsure says whether a policy does not know all upstreams of its pool.
func (n *state) unsure() (unsure bool) {
	for p := range n.policies() {
		unsure = unsure || !p.KnowsPool()
	}
	return unsure
}

// accounts returns what there is to tell of the upstreams.
func (n *state) accounts(now time.Duration) map[string]record.Account {
	as := make(map[string]record.Account)
	n.conf.Table.Each(func(u *sessions.Upstream) {
		a := accountOf(u, now)
		a.Mark = n.recordOf(u).IDOrNone()
		a.Reopened = n.reopened(u, now) > 0
		as[u.Shared] = a
	})
	for p := range n.policies() {
		keys := p.StampKeys()
		for _, m := range p.Pool() {
			a := as[m.Upstream.Shared]
			a.InPool = a.InPool || m.InPool
			if len(keys) > 0 && !slices.Contains(a.Keys, keys[0]) {
				a.Keys = append(a.Keys, keys[0])
			}
			as[m.Upstream.Shared] = a
		}
	}
	for u, began := range n.conf.Table.Oldest() {
		a := as[u.Shared]
		a.Oldest = (now - began).Seconds()
		as[u.Shared] = a
	}
	return as
}

// reopened returns how long browsers may still come back to sessions that u had when it was closed, if it
// was opened again.
func (n *state) reopened(u *sessions.Upstream, now time.Duration) time.Duration {
	if at := u.Drain.ReopenedAt(); at != 0 {
		return max(at+n.sessionTTL()-now, 0)
	}
	return 0
}

// accountOf returns what there is to tell of u alone.
func accountOf(u *sessions.Upstream, now time.Duration) record.Account {
	return record.Account{Begun: u.TotalStarted(), Sessions: countsOf(u), Ended: u.History.Ended.Count(now), Draining: u.Drain.On()}
}
