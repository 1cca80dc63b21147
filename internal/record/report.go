// This file holds what a node tells the others: itself, and what it has of each upstream.

package record

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// Report is what a node tells of itself.
type Report struct {
	Node    string  `json:"node"` // a random name for each process
	Host    string  `json:"host"`
	Process Process `json:"process"`

	Seq     uint64            `json:"seq"`             // counts its reports
	Heard   map[string]uint64 `json:"heard,omitempty"` // the last report of each other node that it had read before it made this one
	Settles time.Duration     `json:"settles"`         // how long browsers come back to sessions that it had
	Settled bool              `json:"settled"`         // whether it is up for longer than that
	Left    bool              `json:"left,omitempty"`  // whether this is its last report, unless there is another one

	Unsure    bool               `json:"unsure,omitempty"` // whether it may have upstreams in a pool that it does not know yet
	Upstreams map[string]Account `json:"upstreams"`        // by their names between nodes
}

// Account is what a node tells of an upstream.
type Account struct {
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

// Wanted says whether the upstream is in use.
func (a Account) Wanted() bool { return a.InPool || a.Sessions.All() > 0 }

// Size is how many bytes a stored report may have.
func (*Report) Size() int { return maxReport }

// Memory is how many bytes r takes, about: what a few bytes of JSON become may be large.
func (r *Report) Memory() int {
	size := 1024
	for node := range r.Heard {
		size += 64 + len(node)
	}
	for shared, a := range r.Upstreams {
		size += 256 + len(shared) + len(a.Mark)
		for _, print := range a.Keys {
			size += 24 + len(print)
		}
	}
	return size
}

// Check returns an error if no Caddy writes such a report.
func (r *Report) Check() error {
	switch {
	case r.Node == "" || max(len(r.Node), len(r.Host), len(r.Process.Boot), len(r.Process.Namespace), len(r.Process.Started)) > maxName:
		return errors.New("malformed name of a node, a host or a process")
	case r.Settles < 0 || r.Settles > 2*MaxLifetime:
		return fmt.Errorf("its sessions settle in %v", r.Settles)
	case len(r.Upstreams) > MaxAccounts || len(r.Heard) > store.MaxRecords:
		return fmt.Errorf("it tells of %d upstreams and %d nodes", len(r.Upstreams), len(r.Heard))
	}
	for shared, a := range r.Upstreams {
		if len(shared) > maxShared { // versions before this one named what nobody can dial, too
			delete(r.Upstreams, shared)
			continue
		}
		if err := a.check(); err != nil {
			return fmt.Errorf("upstream %q: %w", printable.Cut(shared, maxName), err)
		}
		a.Oldest = min(max(a.Oldest, 0), maxCount)
		r.Upstreams[shared] = a
	}
	return nil
}

// check returns an error if no Caddy tells that of an upstream.
func (a Account) check() error {
	for _, count := range []int64{a.Sessions.Building, a.Sessions.Waiting, a.Sessions.Connected, a.Sessions.Unused, a.Begun, a.Ended} {
		if count < 0 || count > maxCount {
			return fmt.Errorf("it has had %d sessions", count)
		}
	}
	if len(a.Mark) > maxName || slices.ContainsFunc(a.Keys, func(print string) bool { return len(print) > maxName }) {
		return errors.New("malformed id of a mark or a key")
	}
	return nil
}

// Fit leaves out of r what makes it longer than others read, first that which matters least: where the address of an upstream depends
// on the request, visitors may have made many up. The others take r for unsure then, and call nothing drained that it does not tell of.
func (r *Report) Fit() {
	if r.atMost() <= maxReport && len(r.Upstreams) <= MaxAccounts {
		return
	}
	value, _ := json.Marshal(r)
	size := len(value) + len(`"unsure":true,`) + len(",")
	r.Upstreams = maps.Clone(r.Upstreams)
	for _, shared := range r.leastFirst() {
		if size <= maxReport && len(r.Upstreams) <= MaxAccounts {
			return
		}
		one, _ := json.Marshal(map[string]Account{shared: r.Upstreams[shared]})
		size -= len(one) - len("{}") + len(",")
		delete(r.Upstreams, shared)
		r.Unsure = true
	}
}

// atMost is how many bytes r has at most as JSON, which may make six of one.
func (r *Report) atMost() int {
	size := 4<<10 + 64*len(r.Heard)
	for shared, a := range r.Upstreams {
		size += 512 + 6*(len(shared)+len(a.Mark)) + 24*len(a.Keys)
	}
	return size
}

// leastFirst returns the upstreams of r, first those that it has no session at, last those that drain: of these first the ones that
// are in no pool of its, which somebody may have made up.
func (r *Report) leastFirst() []string {
	matters := func(shared string) (weight int) {
		a := r.Upstreams[shared]
		if a.Draining {
			weight += 2
		}
		if a.Draining && a.Wanted() || a.Sessions.All() > 0 {
			weight++
		}
		return weight
	}
	return slices.SortedFunc(maps.Keys(r.Upstreams), func(a, b string) int {
		return cmp.Or(cmp.Compare(matters(a), matters(b)), -cmp.Compare(a, b))
	})
}

// Outline returns what must not be forgotten of a node: that it is there, and until when browsers may come back to it. What it has told
// of upstreams is unknown then, and who does not know that it has read a drain record calls nothing drained.
func (r *Report) Outline() *Report {
	o := *r
	o.Heard, o.Upstreams, o.Unsure = nil, nil, true
	return &o
}

// Concerns says whether r tells of a session, or of an upstream that is in use here.
func (r *Report) Concerns(own map[string]Account) bool {
	for shared, a := range r.Upstreams {
		if a.Sessions.All() > 0 || own[shared].Wanted() {
			return true
		}
	}
	return false
}

func NodeKey(name string) string { return store.NodesFolder + name + store.Suffix }
