// This file holds what a node tells the others: itself, and what it has of each upstream.

package cluster

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// report is what a node tells of itself.
type report struct {
	Node    string  `json:"node"` // a random name for each process
	Host    string  `json:"host"`
	Process Process `json:"process"`

	Seq     uint64            `json:"seq"`             // counts its reports
	Heard   map[string]uint64 `json:"heard,omitempty"` // the last report of each other node that it had read before it made this one
	Settles time.Duration     `json:"settles"`         // how long browsers come back to sessions that it had
	Settled bool              `json:"settled"`         // whether it is up for longer than that
	Left    bool              `json:"left,omitempty"`  // whether this is its last report, unless there is another one

	Unsure    bool               `json:"unsure,omitempty"` // whether it may have upstreams in a pool that it does not know yet
	Upstreams map[string]account `json:"upstreams"`        // by their names between nodes
}

// account is what a node tells of an upstream.
type account struct {
	InPool   bool       `json:"in_pool,omitempty"`
	Draining bool       `json:"draining,omitempty"`
	Mark     string     `json:"mark,omitempty"` // the id of the drain record that it has read
	Sessions api.Counts `json:"sessions"`
	Begun    int64      `json:"begun"`            // sessions so far, so that none is overlooked between two reports
	Ended    int64      `json:"ended,omitempty"`  // in the last five minutes
	Oldest   float64    `json:"oldest,omitempty"` // age of its oldest session in seconds
	Keys     []string   `json:"keys,omitempty"`   // fingerprints of those that sign its stamps

	// Reopened says that it was closed until a moment ago: browsers may come back to sessions that were
	// not counted any more.
	Reopened bool `json:"reopened,omitempty"`
}

// wanted says whether the upstream is in use.
func (a account) wanted() bool { return a.InPool || a.Sessions.All() > 0 }

// makeReport returns what there is to tell, given what there is of the upstreams.
func (n *state) makeReport(now time.Duration, accounts map[string]account) *report {
	r := &report{
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

// sessionCounts returns what there is of sessions here.
func (n *state) sessionCounts() (c api.Counts) {
	n.conf.Table.Each(func(u *sessions.Upstream) { c = c.Plus(countsOf(u)) })
	return c
}

// unsure says whether a policy does not know all upstreams of its pool.
func (n *state) unsure() (unsure bool) {
	for p := range n.policies() {
		unsure = unsure || !p.KnowsPool()
	}
	return unsure
}

// accounts returns what there is to tell of the upstreams.
func (n *state) accounts(now time.Duration) map[string]account {
	as := make(map[string]account)
	n.conf.Table.Each(func(u *sessions.Upstream) {
		a := accountOf(u, now)
		a.Mark = n.recordOf(u).id()
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
func accountOf(u *sessions.Upstream, now time.Duration) account {
	return account{Begun: u.TotalStarted(), Sessions: countsOf(u), Ended: u.History.Ended.Count(now), Draining: u.Drain.On()}
}

func countsOf(u *sessions.Upstream) api.Counts {
	return api.Counts{
		Building: u.Count(sessions.Building), Waiting: u.Count(sessions.Waiting),
		Connected: u.Count(sessions.Connected), Unused: u.Count(sessions.Unused),
	}
}

// verifiable returns the fingerprints of the keys that can be verified here, by upstream.
func (n *state) verifiable() map[string][]string {
	prints := make(map[string][]string)
	for p := range n.policies() {
		own := p.StampKeys()
		if len(own) == 0 {
			continue
		}
		for _, m := range p.Pool() {
			prints[m.Upstream.Shared] = append(prints[m.Upstream.Shared], own...)
		}
	}
	return prints
}

// compareKeys looks at the keys of all other nodes.
func (n *state) compareKeys() {
	if len(n.peers) == 0 {
		return
	}
	verifiable := n.verifiable()
	for _, p := range n.peers {
		n.compareKeysOf(p, verifiable)
	}
}

// compareKeysOf logs when another node signs with a key that cannot be verified here: its sessions
// would not be found through this one.
func (n *state) compareKeysOf(p *peer, verifiable map[string][]string) {
	stray := ""
	for shared, a := range p.Upstreams {
		prints, ok := verifiable[shared]
		for _, print := range a.Keys {
			if ok && !slices.Contains(prints, print) {
				stray = shared
			}
		}
	}
	if stray != "" && !p.strayKey && p.gone == 0 {
		n.conf.Logger.Error("another node signs its stamps with a key that this one does not have; each takes the other's sessions for strange ones"+
			" (give all the same secret_key, or the same storage)", zap.String("node", p.Node), zap.String("host", p.Host), zap.String("upstream", stray))
	}
	p.strayKey = stray != ""
}

// KeysAgree says whether this node can verify the stamps of all others.
func (n *Cluster) KeysAgree() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		if p.strayKey && p.gone == 0 {
			return false
		}
	}
	return true
}
