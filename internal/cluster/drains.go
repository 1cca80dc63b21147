// This file holds what operators have said of upstreams: written to the storage, read from it, made to hold.

package cluster

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// drain is an upstream that an operator has said something of.
type drain struct {
	*record.Drain
	share       *share             // where it was read or written last
	u           *sessions.Upstream // held while it drains; nil where it is another machine's
	closesAt    time.Duration      // when it is closed, on the table's clock; 0 if never
	lonelySince time.Duration      // since when it is in no pool, on the table's clock; 0 if it is in one
	heldSince   time.Duration      // since when u is, on the table's clock
	opensAt     time.Duration      // when a drain that was taken back is over here, on the table's clock; 0 if there is none
}

// loadDrainRecords returns the drain records in a storage by their keys. Where it is not known that it lists them, or more than are read, it is
// asked for those of each known upstream too.
func (n *Cluster) loadDrainRecords(ctx context.Context, sh *share) (map[string]*record.Drain, error) {
	records, err := store.LoadAll[record.Drain](ctx, sh.records, record.DrainsFolder)
	if sh.records.KnowsWay() && !errors.Is(err, store.ErrTooMuch) {
		return records, err
	}
	n.mu.Lock()
	known := n.accounts(n.conf.Table.Now())
	n.mu.Unlock()
	names := slices.DeleteFunc(slices.Collect(maps.Keys(known)), func(shared string) bool {
		_, listed := records[record.DrainKey(shared)]
		return listed
	})
	found := make([]*record.Drain, len(names))
	ctx = store.OneLook(ctx)
	store.Severally(len(names), func(i int) {
		found[i], _ = record.LoadDrain(ctx, sh.st, names[i]) // most have none, for which some storages have errors of their own
	})
	for i, m := range found {
		if m != nil {
			records[record.DrainKey(names[i])] = m
		}
	}
	return records, err
}

// holdRecord makes a drain record hold here, unless something was said since.
func (n *Cluster) holdRecord(sh *share, m *record.Drain) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	switch md := n.drains[m.Upstream]; {
	case md == nil || m.Newer(md.Drain):
		n.apply(m)
	case md.ID == m.ID:
		md.Drain = m // it has settled
	}
	n.drains[m.Upstream].share = sh
	n.judgeAll(n.conf.Table.Now()) // who has said so reads at once what it waits for
	n.notify()
}

// closeDue closes the upstreams whose grace period is over.
func (n *state) closeDue(now time.Duration) {
	for _, md := range n.drains {
		if md.closesAt != 0 && now >= md.closesAt {
			n.apply(md.Closed())
		}
	}
}

// mergeRecords makes the drain records in the storage what holds here, as far as they are newer than what does, and
// returns those that it lacks, as far as is known. read says whether they were read just now, and all whether these
// are certainly all.
func (n *state) mergeRecords(sh *share, records map[string]*record.Drain, read, all bool, accounts func() map[string]record.Account) (lacking []*record.Drain) {
	for key, m := range records {
		if m == nil || record.DrainKey(m.Upstream) != key || !n.mayName(m.Upstream) {
			continue
		}
		if md := n.drains[m.Upstream]; md == nil || m.Newer(md.Drain) {
			n.apply(m)
		}
		n.drains[m.Upstream].share = sh
	}
	for shared, md := range n.drains {
		m, listed := records[record.DrainKey(shared)]
		switch {
		case listed && (m == nil || m.ID != md.ID):
			lacking = append(lacking, md.Drain) // that in the storage is older, or broken
		case listed || !read || !md.Drains():
		case md.share != sh:
			lacking = append(lacking, md.Drain) // the storage is another one since a reload
		case accounts()[shared].Wanted():
			lacking = append(lacking, md.Drain) // it has lost it, or does not list it: then it is not written again
		case all && md.lonelySince != 0:
			n.forgetDrain(shared) // another node has deleted it
		}
	}
	return lacking
}

// apply makes m what an operator has said last of its upstream.
func (n *state) apply(m *record.Drain) {
	md := n.drains[m.Upstream]
	if md == nil {
		md = new(drain)
		n.drains[m.Upstream] = md
	}
	if md.Drain != nil && md.ID == m.ID {
		return
	}
	before := md.Drain
	md.Drain, md.closesAt, md.lonelySince = m, 0, 0
	if m.State == api.StateDraining && m.Left != 0 {
		md.closesAt = n.conf.Table.Now() + m.Left
		if m.Clock == n.clock && !m.Written.IsZero() {
			md.closesAt -= min(max(time.Since(m.Written), 0), m.Left)
		}
	}
	name := n.here(m.Upstream)
	known := n.conf.Table.Knows(name, md.u)
	if before.Closes() && !m.Closes() && md.u != nil {
		md.u.Drain.SetReopened(n.conf.Table.Now())
	}
	switch {
	case name == "":
		return
	case m.Drains():
		if md.u == nil {
			md.u, md.heldSince = n.conf.Table.Hold(name), n.conf.Table.Now()
		}
		md.opensAt = 0
		md.u.Drain.Set(&sessions.DrainOrder{Closed: m.Closes(), Since: m.Since})
	case md.u != nil && before.Drains() && n.mayBeTakenForEmpty(md):
		md.opensAt = n.conf.Table.Now() + undrainQuarantine
		md.u.Drain.Set(&sessions.DrainOrder{Since: before.Since}) // it is not closed any more, and not certainly empty
		n.later(undrainQuarantine, func() { n.finishOpening(md) })
	case md.u != nil:
		n.releaseDrain(md)
	}
	if m.Closes() && !before.Closes() {
		n.evict(md)
	}
	if before.Drains() != m.Drains() || before.Closes() != m.Closes() {
		level := zapcore.InfoLevel
		if !known {
			level = zapcore.DebugLevel // there may be thousands
		}
		n.conf.Logger.Log(level, "upstream is marked "+m.State, zap.String("upstream", name), zap.String("by", m.By), zap.String("reason", m.Reason))
	}
}

// mayBeTakenForEmpty says whether another node may call an upstream drained, of which something else was just said. One that gives way to
// a rival has not drained for long enough, but for a moment.
func (n *state) mayBeTakenForEmpty(md *drain) bool {
	now := n.conf.Table.Now()
	return now-md.heldSince > verdict.DrainQuarantine-undrainQuarantine && !md.IsWithdrawn() && len(n.concerned(md.u, n.peersByName(), now)) > 0
}

// finishOpening ends a drain that was taken back, unless it is over already, or the upstream drains again.
func (n *state) finishOpening(md *drain) {
	if md.u == nil || md.opensAt == 0 || n.conf.Table.Now() < md.opensAt {
		return
	}
	md.opensAt = 0
	n.releaseDrain(md)
	n.notify()
}

// evict ends what a closed upstream still has.
func (n *state) evict(md *drain) {
	n.conf.Table.Abandon(md.u)
	span := cmp.Or(md.Span, defaultSpan)
	if all, tunnels := md.u.Drain.Requests.EndAll(span); all > 0 {
		n.conf.Logger.Warn("grace period is over; closing the remaining websockets, and ending other requests",
			zap.String("upstream", md.u.Name), zap.Int("websockets", tunnels), zap.Int("others", all-tunnels), zap.Duration("over", span))
	}
}

// releaseDrain takes a drain off its upstream.
func (n *state) releaseDrain(md *drain) {
	md.u.Drain.Set(nil)
	n.conf.Table.Release(md.u)
	md.u = nil
}

// forgetDrain forgets what was said of an upstream.
func (n *state) forgetDrain(shared string) {
	if md := n.drains[shared]; md.u != nil {
		n.releaseDrain(md)
	}
	delete(n.drains, shared)
}

// lonelyFor is how long an upstream is in no pool until what was said of it is forgotten.
func (md *drain) lonelyFor() time.Duration {
	if md.State == api.StateReady {
		return readyTimeout
	}
	return lonelyTimeout
}
