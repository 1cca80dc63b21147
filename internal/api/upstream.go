// Package api holds what goes over Caddy's admin API between a Caddy with this module and whoever asks it, as its command line
// does: paths, bodies, answers, and the words in them. Numbers of sessions are of now; times are in seconds where their name says
// so. All is plain values: whoever shares one between goroutines takes care of that.
//
// This file holds what is told of an upstream.
package api

import (
	"slices"
	"time"
)

// States of an upstream. The first two and StateClosed are what its record in the storage says as well.
const (
	StateReady    = "ready"
	StateDraining = "draining" // it gets no new session and keeps its own
	StateClosed   = "closed"   // past its grace period: nothing goes there
	StateDrained  = "drained"  // draining, and certainly empty
	StateGone     = "gone"     // in no pool, kept for its sessions
	StateUnknown  = "unknown"  // the storage could not be read since Caddy started
)

// Upstream is what is told of an upstream: of all nodes together, and of each.
type Upstream struct {
	Address string `json:"address"`

	// State is ready, draining, drained, closed (past its grace period), gone (in no pool, kept for its sessions), or unknown: the
	// storage could not be read since Caddy started.
	State string `json:"state"`

	// Unreachable says whether the last connection that a reverse proxy of this Caddy tried to make failed.
	Unreachable bool `json:"unreachable"`

	// Failing says whether one visit at a time tries it, after such a connection or after several pages in a row that failed.
	Failing bool `json:"failing"`

	// Healthy, Full, NumRequests and Fails are what the reverse proxies of this Caddy say.
	Healthy     bool `json:"healthy"`
	Full        bool `json:"full"`
	NumRequests int  `json:"num_requests"`
	Fails       int  `json:"fails"`

	// Busy is the share of the last minute for which it had something to do, as far as this Caddy asked for it: a page to build, or
	// something on a websocket to answer.
	Busy float64 `json:"busy"`

	// Click is how long answers on websockets have taken in the last five minutes, of what was asked through this Caddy, as clicks; nil if
	// there was none.
	Click *Click `json:"click,omitempty"`

	// Addresses is how many addresses of one family its name had when this Caddy looked it up last, where those are several:
	// a page and its websocket meet by luck then.
	Addresses int `json:"addresses,omitempty"`

	Holding // of all nodes

	Drain *Drain      `json:"drain,omitempty"` // while it drains
	Nodes []NodeShare `json:"nodes"`           // this one first

	// WaitingFor is why it is not called drained while it drains.
	WaitingFor []Wait `json:"waiting_for,omitempty"`
}

// Click says within how many seconds half of the answers came, and 95 % of them.
type Click struct {
	P50 float64 `json:"p50_seconds"`
	P95 float64 `json:"p95_seconds"`
}

// InPool says whether any Caddy has the upstream in a pool.
func (u *Upstream) InPool() bool {
	return slices.ContainsFunc(u.Nodes, func(share NodeShare) bool { return share.InPool })
}

// Drain says since when an upstream drains, by what and why.
type Drain struct {
	Config bool `json:"config"` // a config of this Caddy drains it
	Marked bool `json:"marked"` // an operator has said so

	// Since is when that was said, by the clock of the node that wrote it. Where configs alone drain the upstream it is when this
	// Caddy loaded the first of them, by its own clock.
	Since  *time.Time `json:"since,omitempty"`
	By     string     `json:"by,omitempty"`
	Reason string     `json:"reason,omitempty"`

	// Deadline is when the upstream is closed, by the clock of the node that wrote that.
	Deadline *time.Time `json:"deadline,omitempty"`
}

// Holding is the sessions at an upstream.
type Holding struct {
	Sessions      Counts  `json:"sessions"`
	Total         int64   `json:"total_sessions"`
	Oldest        float64 `json:"oldest_session_seconds"` // 0 if there is none
	EndedRecently int64   `json:"sessions_ended_in_5m"`
}

// NodeShare is what one node has of an upstream.
type NodeShare struct {
	Node   string `json:"node"`
	Host   string `json:"host"`
	InPool bool   `json:"in_pool"`
	Holding
}

// Wait is why an upstream is not called drained, and which node is the reason.
type Wait struct {
	Node   string `json:"node"`
	Host   string `json:"host"`
	Reason string `json:"reason"`
}

// Counts are sessions by what they are doing. Records in the storage have them in the same form.
type Counts struct {
	Building  int64 `json:"building"`
	Waiting   int64 `json:"waiting"`
	Connected int64 `json:"connected"`
	Unused    int64 `json:"unused"`
}

// All is how many there are.
func (c Counts) All() int64 { return c.Building + c.Waiting + c.Connected + c.Unused }

// AtWork are those that have a websocket or a page being built.
func (c Counts) AtWork() int64 { return c.Building + c.Connected }

// Plus returns the sessions of both.
func (c Counts) Plus(d Counts) Counts {
	return Counts{c.Building + d.Building, c.Waiting + d.Waiting, c.Connected + d.Connected, c.Unused + d.Unused}
}
