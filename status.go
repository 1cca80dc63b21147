// This file holds what is told of upstreams and nodes to whoever asks.

package caddybokeh

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// States of an upstream that no mark says, and states of a node.
const (
	stateDrained = "drained" // draining, and certainly empty
	stateGone    = "gone"    // in no pool, kept for its sessions
	stateUnknown = "unknown" // the marks have not been read since Caddy started

	nodeUp       = "up"
	nodeSettling = "settling" // browsers may come back to sessions from before it started
	nodeOverdue  = "overdue"  // not heard of for too long; it may be alive
	nodeGone     = "gone"     // dead, or said to be; its sessions may come back elsewhere
)

// upstreamStatus is what is told of an upstream: of all nodes together, and of each.
type upstreamStatus struct {
	Address string `json:"address"`

	// State is ready, draining, drained, closed (past its grace period), gone (in no pool, kept for its sessions), or unknown: the
	// storage could not be read since Caddy started.
	State string `json:"state"`

	// Unreachable says whether the last connection that a reverse proxy of this Caddy tried to make failed, Failing
	// whether it is tried by one visit at a time after that, or after several pages in a row that failed. Healthy, Full, NumRequests and Fails are what they say of it.
	Unreachable bool `json:"unreachable"`
	Failing     bool `json:"failing"`
	Healthy     bool `json:"healthy"`
	Full        bool `json:"full"`
	NumRequests int  `json:"num_requests"`
	Fails       int  `json:"fails"`

	// Addresses is how many addresses of one family its name had when this Caddy looked it up last, where those are several:
	// a page and its websocket meet by luck then.
	Addresses int `json:"addresses,omitempty"`

	holding // of all nodes

	Drain *drainStatus `json:"drain,omitempty"` // while it drains
	Nodes []nodeShare  `json:"nodes"`           // this one first

	// WaitingFor is why it is not called drained while it drains.
	WaitingFor []wait `json:"waiting_for,omitempty"`
}

// drainStatus says since when an upstream drains, by what and why.
type drainStatus struct {
	Config bool       `json:"config"`          // a config of this Caddy drains it
	Marked bool       `json:"marked"`          // an operator has said so
	Since  *time.Time `json:"since,omitempty"` // of the mark, by the clock of the node that wrote it; without one, of the config, by ours
	By     string     `json:"by,omitempty"`
	Reason string     `json:"reason,omitempty"`

	Deadline *time.Time `json:"deadline,omitempty"` // when it is closed, by the same clock
}

// holding is the sessions at an upstream.
type holding struct {
	Sessions      counts  `json:"sessions"`
	Total         int64   `json:"total_sessions"`
	Oldest        float64 `json:"oldest_session_seconds"` // 0 if there is none
	EndedRecently int64   `json:"sessions_ended_in_5m"`
}

// nodeShare is what one node has of an upstream.
type nodeShare struct {
	Node   string `json:"node"`
	Host   string `json:"host"`
	InPool bool   `json:"in_pool"`
	holding
}

// nodeStatus is what is told of a node.
type nodeStatus struct {
	Node     string  `json:"node"`
	Host     string  `json:"host"`
	Self     bool    `json:"self"`               // whether it is the one that tells
	State    string  `json:"state"`              // up, settling, overdue or gone
	Heard    float64 `json:"last_heard_seconds"` // how long ago its report changed last
	Sessions counts  `json:"sessions"`
	Storage  string  `json:"storage_error,omitempty"` // why this node cannot use the storage
	Policies int     `json:"policies,omitempty"`      // like this in its configs, where it is the one that tells
	Waiting  int64   `json:"visits_waiting"`          // for a place under max_sessions, where it is the one that tells
}

// upstreams returns what there is to tell of every known upstream, in the order of their addresses.
func (n *node) upstreams() []*upstreamStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.t.Now()
	n.judgeAll(now)
	all := make(map[string]*upstreamStatus)
	of := func(address string) *upstreamStatus {
		st := all[address]
		if st == nil {
			st = &upstreamStatus{Address: address, Healthy: true}
			all[address] = st
		}
		return st
	}
	count := func(name, host, shared string, a account) {
		address := n.here(shared)
		if address == "" {
			return
		}
		of(address).add(nodeShare{name, host, a.InPool, holding{a.Sessions, a.Sessions.all(), a.Oldest, a.Ended}})
	}
	for shared, a := range n.accounts(now) {
		count(n.name, n.host, shared, a)
	}
	for _, key := range slices.Sorted(maps.Keys(n.peers)) {
		p := n.peers[key]
		for shared, a := range p.Upstreams {
			if p.gone == 0 || a.Sessions.all() > 0 {
				count(p.Node, p.Host, shared, a)
			}
		}
	}
	n.addHealth(of)
	n.t.Each(func(u *sessions.Upstream) {
		if u.Drain.On() && !n.opens(u) {
			of(u.Name).judge(u, n.markOf(u), n.verdicts[u])
		}
	})
	for _, st := range all {
		switch {
		case st.State != "":
		case n.round == 0 || !n.reached && n.failure != nil:
			st.State = stateUnknown
		case !st.inPool():
			st.State = stateGone
		default:
			st.State = stateReady
		}
	}
	sorted := slices.AppendSeq(make([]*upstreamStatus, 0, len(all)), maps.Values(all)) // in JSON a list though it is empty
	slices.SortFunc(sorted, func(a, b *upstreamStatus) int { return cmp.Compare(a.Address, b.Address) })
	return sorted
}

// inPool says whether any Caddy has the upstream in a pool.
func (st *upstreamStatus) inPool() bool {
	return slices.ContainsFunc(st.Nodes, func(share nodeShare) bool { return share.InPool })
}

// addHealth adds what the reverse proxies of this Caddy say of their upstreams. n.mu is locked.
func (n *node) addHealth(of func(address string) *upstreamStatus) {
	n.eachPool(func(p pool) {
		p.each(func(m *member, inPool bool) {
			u := m.last.Load()
			if u == nil || u.Host == nil {
				return
			}
			st := of(m.Name)
			if n := int(m.Addresses.Load()); n > 1 {
				st.Addresses = n
			}
			st.NumRequests = max(st.NumRequests, u.NumRequests())
			st.Fails = max(st.Fails, u.Fails())
			if inPool {
				st.Healthy = st.Healthy && u.Healthy()
				st.Full = st.Full || full(u)
				st.Unreachable = st.Unreachable || m.unreachable()
				st.Failing = st.Failing || m.Breaker.Tripped()
			}
		})
	})
}

// add counts what one node has.
func (st *upstreamStatus) add(share nodeShare) {
	st.Nodes = append(st.Nodes, share)
	st.Sessions = st.Sessions.plus(share.Sessions)
	st.Total += share.Total
	st.Oldest = max(st.Oldest, share.Oldest)
	st.EndedRecently += share.EndedRecently
}

// judge says in what state a draining upstream is.
func (st *upstreamStatus) judge(u *sessions.Upstream, m *mark, v verdict) {
	switch {
	case v.drained && st.Total == 0: // unless a session has come since the verdict
		st.State = stateDrained
	case u.Drain.IsClosed():
		st.State = stateClosed
	default:
		st.State = stateDraining
	}
	st.Drain = &drainStatus{Config: u.Drain.ByConfig()}
	if since := u.Drain.Since(); !since.IsZero() {
		st.Drain.Since = &since
	}
	if m.drains() {
		st.Drain.Marked, st.Drain.By, st.Drain.Reason = true, m.By, m.Reason
		st.Drain.Deadline = m.deadline()
	}
	if st.State != stateDrained {
		st.WaitingFor = v.waits
	}
}

// nodes returns what there is to tell of the nodes, this one first.
func (n *node) nodes() []nodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.t.Now()
	all := make([]nodeStatus, 0, 1+len(n.peers))
	all = append(all, n.self(now))
	for _, key := range slices.Sorted(maps.Keys(n.peers)) {
		p := n.peers[key]
		st := nodeStatus{Node: p.Node, Host: p.Host, State: nodeUp, Heard: (now - p.changed).Seconds()}
		for _, a := range p.Upstreams {
			st.Sessions = st.Sessions.plus(a.Sessions)
		}
		switch {
		case p.gone != 0:
			st.State = nodeGone
		case p.overdue(now):
			st.State = nodeOverdue
		case !p.Settled:
			st.State = nodeSettling
		}
		all = append(all, st)
	}
	return all
}

// status returns what there is to tell of this node.
func (n *node) status() nodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.self(n.t.Now())
}

// self returns what there is to tell of this node. n.mu is locked.
func (n *node) self(now time.Duration) nodeStatus {
	st := nodeStatus{Node: n.name, Host: n.host, Self: true, State: nodeUp, Heard: (now - n.round).Seconds()}
	if now-n.start < n.settles() {
		st.State = nodeSettling
	}
	if n.failure != nil {
		st.Storage = n.failure.Error()
	}
	n.eachPool(func(pool) { st.Policies++ })
	st.Waiting = n.t.Waiting.Len(now)
	st.Sessions = n.sessionCounts()
	return st
}

// claim takes note that the named upstream is about to drain. Unless forced it refuses that to one which takes new sessions and is
// the only one that does in a pool of this Caddy. Two who drain one of two each at once must not both be told that there is another.
func (n *node) claim(name string, force bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	md := n.marked[sharedNameAt(name, n.host)]
	drains := md != nil && md.drains()
	if !force && !drains && n.last(name, nil, nil) {
		return lastError(name)
	}
	n.pending[name]++
	return nil
}

// unclaim takes that note back.
func (n *node) unclaim(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending[name]--; n.pending[name] == 0 {
		delete(n.pending, name)
	}
}
