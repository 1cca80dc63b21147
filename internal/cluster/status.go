// This file holds what is told of upstreams and nodes to whoever asks.

package cluster

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// Upstreams returns what there is to tell of every known upstream, in the order of their addresses. What it returns is the caller's. It
// changes nothing: what is told of drains was found by the loop, not long ago.
func (n *Cluster) Upstreams() []*api.Upstream {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.conf.Table.Now()
	all := make(statuses)
	n.addShares(all, now)
	n.addHealth(all)
	peers := n.peersByName()
	n.conf.Table.Each(func(u *sessions.Upstream) {
		if st := all[u.Name]; st != nil {
			addWork(st, u.History, now)
		}
		if n.drainsOn(u) {
			addDrain(all.of(u.Name), u, n.recordOf(u), n.verdictToTell(u, peers, now))
		}
	})
	for _, st := range all {
		switch {
		case st.State != "":
		case n.round == 0 || !n.reached && n.failure != nil:
			st.State = api.StateUnknown
		case !st.InPool():
			st.State = api.StateGone
		default:
			st.State = api.StateReady
		}
	}
	sorted := slices.AppendSeq(make([]*api.Upstream, 0, len(all)), maps.Values(all)) // in JSON a list though it is empty
	slices.SortFunc(sorted, func(a, b *api.Upstream) int { return cmp.Compare(a.Address, b.Address) })
	return sorted
}

// statuses are what is told of upstreams, by their addresses.
type statuses map[string]*api.Upstream

// of returns what is told of an upstream.
func (all statuses) of(address string) *api.Upstream {
	st := all[address]
	if st == nil {
		st = &api.Upstream{Address: address, Healthy: true}
		all[address] = st
	}
	return st
}

// verdictToTell returns the verdict on u as it is now. What the loop has not found drained is not told to be: who is sent there goes by what
// that has found.
func (n *state) verdictToTell(u *sessions.Upstream, peers []*peer, now time.Duration) verdict.Verdict {
	kept := n.verdicts[u]
	if v := n.snapshotOf(u, n.concerned(u, peers, now), now).Judge(kept.Verdict); kept.Drained || !v.Drained {
		return v
	}
	return kept.Verdict
}

// addShares adds what each node has.
func (n *state) addShares(all statuses, now time.Duration) {
	count := func(name, host, shared string, a record.Account) {
		address := n.here(shared)
		if address == "" {
			return
		}
		addShare(all.of(address), api.NodeShare{Node: name, Host: host, InPool: a.InPool, Holding: api.Holding{
			Sessions: a.Sessions, Total: a.Sessions.All(), Oldest: a.Oldest, EndedRecently: a.Ended,
		}})
	}
	for shared, a := range n.accounts(now) {
		count(n.name, n.conf.Host, shared, a)
	}
	for _, p := range n.peersByName() {
		for shared, a := range p.Upstreams {
			if p.Gone == 0 || a.Sessions.All() > 0 {
				count(p.Node, p.Host, shared, a)
			}
		}
	}
}

// addHealth adds what the reverse proxies of this Caddy say of their upstreams.
func (n *state) addHealth(all statuses) {
	for p := range n.policies() {
		for _, m := range p.PoolHealth() {
			addHealthOf(all, &m)
		}
	}
}

// addHealthOf adds what one of them says of an upstream.
func addHealthOf(all statuses, m *MemberHealth) {
	if !m.Told {
		return
	}
	st := all.of(m.Upstream.Name)
	if n := int(m.Upstream.Addresses.Load()); n > 1 {
		st.Addresses = n
	}
	st.NumRequests = max(st.NumRequests, m.NumRequests)
	st.Fails = max(st.Fails, m.Fails)
	if m.InPool {
		st.Healthy = st.Healthy && m.Healthy
		st.Full = st.Full || m.Full
		st.Unreachable = st.Unreachable || m.Unreachable
		st.Failing = st.Failing || m.Upstream.Breaker.Tripped()
	}
}

// addShare counts what one node has.
func addShare(st *api.Upstream, share api.NodeShare) {
	st.Nodes = append(st.Nodes, share)
	st.Sessions = st.Sessions.Plus(share.Sessions)
	st.Total += share.Total
	st.Oldest = max(st.Oldest, share.Oldest)
	st.EndedRecently += share.EndedRecently
}

// addWork says how much an upstream has to do.
func addWork(st *api.Upstream, h *sessions.History, now time.Duration) {
	st.Busy = math.Round(1000*h.Busy.Share(now)) / 1000
	if p := h.Waits.Quantiles(now, .5, .95); p[0] > 0 {
		st.Click = &api.Click{P50: p[0].Round(time.Millisecond / 10).Seconds(), P95: p[1].Round(time.Millisecond / 10).Seconds()}
	}
}

// addDrain says in what state a draining upstream is.
func addDrain(st *api.Upstream, u *sessions.Upstream, m *record.Drain, v verdict.Verdict) {
	switch {
	case v.Drained && st.Total == 0: // unless a session has come since the verdict
		st.State = api.StateDrained
	case u.Drain.IsClosed():
		st.State = api.StateClosed
	default:
		st.State = api.StateDraining
	}
	st.Drain = &api.Drain{Config: u.Drain.ByConfig()}
	if since := u.Drain.Since(); !since.IsZero() {
		st.Drain.Since = &since
	}
	if m.Drains() {
		st.Drain.Marked, st.Drain.By, st.Drain.Reason = true, m.By, m.Reason
		st.Drain.Deadline = m.Deadline()
	}
	if st.State != api.StateDrained {
		for _, w := range v.Waits {
			st.WaitingFor = append(st.WaitingFor, w.Wait)
		}
	}
}

// Nodes returns what there is to tell of the nodes, this one first and then by their names.
func (n *Cluster) Nodes() []api.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.conf.Table.Now()
	all := make([]api.Node, 0, 1+len(n.peers))
	all = append(all, n.self(now))
	for _, key := range slices.Sorted(maps.Keys(n.peers)) {
		p := n.peers[key]
		st := api.Node{Node: p.Node, Host: p.Host, State: api.NodeUp, Heard: (now - p.Changed).Seconds()}
		for _, a := range p.Upstreams {
			st.Sessions = st.Sessions.Plus(a.Sessions)
		}
		switch {
		case p.Gone != 0:
			st.State = api.NodeGone
		case p.Overdue(now):
			st.State = api.NodeOverdue
		case !p.Settled:
			st.State = api.NodeSettling
		}
		all = append(all, st)
	}
	return all
}

// Self returns what there is to tell of this node.
func (n *Cluster) Self() api.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.self(n.conf.Table.Now())
}

// self returns what there is to tell of this node.
func (n *state) self(now time.Duration) api.Node {
	st := api.Node{Node: n.name, Host: n.conf.Host, Self: true, State: api.NodeUp, Heard: (now - n.round).Seconds()}
	if now-n.start < n.sessionTTL() {
		st.State = api.NodeSettling
	}
	if n.failure != nil {
		st.Storage = n.failure.Error()
	}
	for range n.policies() {
		st.Policies++
	}
	st.Waiting = n.conf.Table.Waiting.Len(now)
	st.Sessions = n.sessionCounts()
	return st
}

// sessionCounts returns what there is of sessions here.
func (n *state) sessionCounts() (c api.Counts) {
	n.conf.Table.Each(func(u *sessions.Upstream) { c = c.Plus(countsOf(u)) })
	return c
}

func countsOf(u *sessions.Upstream) api.Counts {
	return api.Counts{
		Building: u.Count(sessions.Building), Waiting: u.Count(sessions.Waiting),
		Connected: u.Count(sessions.Connected), Unused: u.Count(sessions.Unused),
	}
}
