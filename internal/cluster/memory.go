// This file holds how much is remembered of what others have written to the storage, and what is forgotten first where that is more.

package cluster

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// Somebody who writes to the storage may give his records new names again and again. What he has deleted is remembered all the same:
// a record that is missing says nothing, so its node may be alive, and a drain that was taken back may be unknown to a node that is
// cut off. So not only what is read at once is bounded, but also what is remembered of it.
const (
	maxStrangers = store.MaxRecords // drain records of upstreams that are in no pool here and have no session
)

// bound forgets what is too much of what the others have written, where these are the records that were just read.
func (n *state) bound(records map[string]*record.Drain, reports map[string]*record.Report, now time.Duration, accounts func() map[string]record.Account) {
	outlined, forgotten := n.boundReports(reports, accounts), n.boundDrains(records, accounts)
	if outlined+forgotten == 0 || n.overfull != 0 && now-n.overfull < reminderInterval {
		return
	}
	n.overfull = now
	n.conf.Logger.Warn("the storage has held more of other Caddys, and of servers that are in no pool here, than is remembered; what matters least"+
		" is forgotten, and no upstream is called drained for it (look who writes to "+store.Folder+" in the storage, and delete the records of nodes"+
		" and servers that are gone; a restart of this Caddy forgets those whose records are deleted)",
		zap.Int("reports_forgotten", outlined), zap.Int("marks_forgotten", forgotten))
}

// boundReports leaves the outlines of some reports where all take too much memory, and returns of how many. First go those that tell of
// no upstream in a pool here and of no session, and of these those that the storage does not hold any more, the oldest first.
func (n *state) boundReports(reports map[string]*record.Report, accounts func() map[string]record.Account) (outlined int) {
	size := 0
	for _, p := range n.peers {
		size += p.Memory()
	}
	if size <= store.MaxMemory {
		return 0
	}
	worth := make(map[*peer]int)
	for key, p := range n.peers {
		worth[p] = rank(p.Concerns(accounts()), reports[key] != nil)
	}
	for _, p := range slices.SortedFunc(maps.Values(n.peers), func(a, b *peer) int {
		return cmp.Or(cmp.Compare(worth[a], worth[b]), cmp.Compare(a.Changed, b.Changed), cmp.Compare(a.Node, b.Node))
	}) {
		if size <= store.MaxMemory {
			break
		}
		size -= p.Memory()
		p.Report = p.Outline()
		size += p.Memory()
		outlined++
	}
	return outlined
}

// boundDrains forgets drain records of upstreams that are not in use here, where those are too many, and returns how many. First go those that
// no other node has in use either, and of these those that the storage does not hold any more, and those that keep nobody out. One that
// it holds is read again when its upstream comes into a pool.
func (n *state) boundDrains(records map[string]*record.Drain, accounts func() map[string]record.Account) (forgotten int) {
	if len(n.drains) <= maxStrangers {
		return 0
	}
	strangers := slices.DeleteFunc(slices.Sorted(maps.Keys(n.drains)), func(shared string) bool { return accounts()[shared].Wanted() })
	forgotten = max(len(strangers)-maxStrangers, 0)
	if forgotten == 0 {
		return 0
	}
	elsewhere, worth := n.wantedElsewhere(), make(map[string]int)
	for _, shared := range strangers {
		worth[shared] = rank(elsewhere[shared], records[record.DrainKey(shared)] != nil, n.drains[shared].Drains())
	}
	slices.SortStableFunc(strangers, func(a, b string) int { return cmp.Compare(worth[a], worth[b]) })
	for _, shared := range strangers[:forgotten] {
		n.forgetDrain(shared)
	}
	return forgotten
}

// wantedElsewhere returns the upstreams that other nodes have in use.
func (n *state) wantedElsewhere() map[string]bool {
	wanted := make(map[string]bool)
	for _, p := range n.peers {
		for shared, a := range p.Upstreams {
			if a.Wanted() {
				wanted[shared] = true
			}
		}
	}
	return wanted
}

// rank returns a number by which things are compared of which something is so or not, the most important first.
func rank(is ...bool) (number int) {
	for _, so := range is {
		number *= 2
		if so {
			number++
		}
	}
	return number
}
