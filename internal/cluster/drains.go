// This file holds what operators have said of upstreams: written to the storage, read from it, made to hold.

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// drain is an upstream that an operator has said something of.
type drain struct {
	*drainRecord
	share       *share             // where it was read or written last
	u           *sessions.Upstream // held while it drains; nil where it is another machine's
	closesAt    time.Duration      // when it is closed, on the table's clock; 0 if never
	lonelySince time.Duration      // since when it is in no pool, on the table's clock; 0 if it is in one
	heldSince   time.Duration      // since when u is, on the table's clock
	opensAt     time.Duration      // when a drain that was taken back is over here, on the table's clock; 0 if there is none
}

// readDrainRecords reads what was said through other nodes since they were read last, as far as that is possible: the
// last upstream but one may drain since a moment ago.
func (n *Cluster) readDrainRecords(ctx context.Context) {
	sh, err := n.activeShare()
	if err != nil {
		return
	}
	_ = n.within(ctx, func(ctx context.Context) error {
		records, _ := n.loadDrainRecords(ctx, sh)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.used == sh {
			n.mergeRecords(sh, records, false, false, nil)
		}
		return nil
	})
}

// loadDrainRecords returns the drain records in a storage by their keys. Where it is not known that it lists them, or more than are read, it is
// asked for those of each known upstream too.
func (n *Cluster) loadDrainRecords(ctx context.Context, sh *share) (map[string]*drainRecord, error) {
	records, err := store.LoadAll[drainRecord](ctx, sh.records, drainsFolder)
	if sh.records.KnowsWay() && !errors.Is(err, store.ErrTooMuch) {
		return records, err
	}
	n.mu.Lock()
	known := n.accounts(n.conf.Table.Now())
	n.mu.Unlock()
	names := slices.DeleteFunc(slices.Collect(maps.Keys(known)), func(shared string) bool {
		_, listed := records[drainKey(shared)]
		return listed
	})
	found := make([]*drainRecord, len(names))
	ctx = store.OneLook(ctx)
	store.Severally(len(names), func(i int) {
		found[i], _ = loadDrainRecord(ctx, sh.st, names[i]) // most have none, for which some storages have errors of their own
	})
	for i, m := range found {
		if m != nil {
			records[drainKey(names[i])] = m
		}
	}
	return records, err
}

// setDrain writes what an operator says of an upstream, and makes it hold here. Nothing changes if the
// storage has that already, or fails.
func (n *Cluster) setDrain(ctx context.Context, shared string, w DrainRequest) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	_, m, err := n.writeRequest(ctx, sh, shared, w)
	if err != nil {
		return err
	}
	n.holdRecord(sh, m)
	return nil
}

// writeRequest writes what an operator says of an upstream, and returns the drain record that held before and the new one. With an error, and a
// record, it is not known whether that was written.
func (n *Cluster) writeRequest(ctx context.Context, sh *share, shared string, w DrainRequest) (before, m *drainRecord, err error) {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	stored, err := loadDrainRecord(ctx, sh.st, shared)
	if err == nil {
		err = ctx.Err() // nobody waits any more: what was said is not what is said now
	}
	if err != nil {
		return nil, nil, err
	}
	before, left := n.stands(shared, stored)
	if before != nil && stored != nil && before.ID == stored.ID {
		before = stored // which may have settled since it was read here
	}
	if m = w.record(before, shared, n.clock(), left); stored != nil && m.ID == stored.ID {
		return before, m, nil
	}
	if err := store.Put(ctx, sh.st, drainKey(shared), m); err != nil {
		return before, m, fmt.Errorf("%w: %w", ErrUnsure, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	return before, m, nil
}

// holdRecord makes a drain record hold here, unless something was said since.
func (n *Cluster) holdRecord(sh *share, m *drainRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	switch md := n.drains[m.Upstream]; {
	case md == nil || m.newer(md.drainRecord):
		n.apply(m)
	case md.ID == m.ID:
		md.drainRecord = m // it has settled
	}
	n.drains[m.Upstream].share = sh
	n.judgeAll(n.conf.Table.Now()) // who has said so reads at once what it waits for
	n.notify()
}

// ErrUnsure is that of a storage that failed to say whether it has written.
var ErrUnsure = errors.New("the storage failed while it was written to")

// clock returns what tells this machine's clock from others.
func (n *state) clock() string { return cmp.Or(n.conf.Process.Boot, n.conf.Host) }

// stands returns the drain record that holds of an upstream, or nil, where the storage has one that may be nil; and
// how much is left of its grace period, 0 if it has none.
func (n *Cluster) stands(shared string, stored *drainRecord) (*drainRecord, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	md := n.drains[shared]
	switch {
	case md == nil && stored == nil:
		return nil, 0
	case md == nil || stored != nil && stored.newer(md.drainRecord):
		return stored, stored.Left // it is not read here yet
	case md.closesAt == 0:
		return md.drainRecord, md.Left
	}
	return md.drainRecord, max(md.closesAt-n.conf.Table.Now(), 1)
}

// closeDue closes the upstreams whose grace period is over.
func (n *state) closeDue(now time.Duration) {
	for _, md := range n.drains {
		if md.closesAt != 0 && now >= md.closesAt {
			n.apply(md.closed())
		}
	}
}

// within lets f use the storage for as long as an operator waits, until the node is closed. Not every storage heeds a context.
func (n *Cluster) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	done := make(chan error, 1)
	if !n.loops.start(func() { done <- f(ctx) }) {
		return ErrInterrupted
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return store.ErrUnanswered
	}
}

// mergeRecords makes the drain records in the storage what holds here, as far as they are newer than what does, and
// returns those that it lacks, as far as is known. read says whether they were read just now, and all whether these
// are certainly all.
func (n *state) mergeRecords(sh *share, records map[string]*drainRecord, read, all bool, accounts func() map[string]account) (lacking []*drainRecord) {
	for key, m := range records {
		if m == nil || drainKey(m.Upstream) != key || !n.mayName(m.Upstream) {
			continue
		}
		if md := n.drains[m.Upstream]; md == nil || m.newer(md.drainRecord) {
			n.apply(m)
		}
		n.drains[m.Upstream].share = sh
	}
	for shared, md := range n.drains {
		m, listed := records[drainKey(shared)]
		switch {
		case listed && (m == nil || m.ID != md.ID):
			lacking = append(lacking, md.drainRecord) // that in the storage is older, or broken
		case listed || !read || !md.drains():
		case md.share != sh:
			lacking = append(lacking, md.drainRecord) // the storage is another one since a reload
		case accounts()[shared].wanted():
			lacking = append(lacking, md.drainRecord) // it has lost it, or does not list it: then it is not written again
		case all && md.lonelySince != 0:
			n.forgetDrain(shared) // another node has deleted it
		}
	}
	return lacking
}

// apply makes m what an operator has said last of its upstream.
func (n *state) apply(m *drainRecord) {
	md := n.drains[m.Upstream]
	if md == nil {
		md = new(drain)
		n.drains[m.Upstream] = md
	}
	if md.drainRecord != nil && md.ID == m.ID {
		return
	}
	before := md.drainRecord
	md.drainRecord, md.closesAt, md.lonelySince = m, 0, 0
	if m.State == stateDraining && m.Left != 0 {
		md.closesAt = n.conf.Table.Now() + m.Left
		if m.Clock == n.clock() && !m.Written.IsZero() {
			md.closesAt -= min(max(time.Since(m.Written), 0), m.Left)
		}
	}
	name := n.here(m.Upstream)
	known := n.conf.Table.Knows(name, md.u)
	if before.closes() && !m.closes() && md.u != nil {
		md.u.Drain.SetReopened(n.conf.Table.Now())
	}
	switch {
	case name == "":
		return
	case m.drains():
		if md.u == nil {
			md.u, md.heldSince = n.conf.Table.Hold(name), n.conf.Table.Now()
		}
		md.opensAt = 0
		md.u.Drain.Set(&sessions.DrainOrder{Closed: m.closes(), Since: m.Since})
	case md.u != nil && before.drains() && n.mayBeTakenForEmpty(md):
		md.opensAt = n.conf.Table.Now() + undrainQuarantine
		md.u.Drain.Set(&sessions.DrainOrder{Since: before.Since}) // it is not closed any more, and not certainly empty
		n.later(undrainQuarantine, func() { n.finishOpening(md) })
	case md.u != nil:
		n.releaseDrain(md)
	}
	if m.closes() && !before.closes() {
		n.evict(md)
	}
	if before.drains() != m.drains() || before.closes() != m.closes() {
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
	return now-md.heldSince > drainQuarantine-undrainQuarantine && !strings.HasSuffix(md.ID, withdrawnSuffix) && len(n.concerned(md.u, n.peersByName(), now)) > 0
}

// isOpening says whether a drain of u was taken back and is about to be over.
func (n *state) isOpening(u *sessions.Upstream) bool {
	md := n.drainOf(u)
	return md != nil && md.opensAt != 0
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

// drainOf returns what holds u because an operator drains it, or did until a moment ago; or nil.
func (n *state) drainOf(u *sessions.Upstream) *drain {
	if md := n.drains[u.Shared]; md != nil && md.u == u {
		return md
	}
	return nil
}

// recordOf returns what an operator has said last of u, which drains for that or did until a moment ago; or nil.
func (n *state) recordOf(u *sessions.Upstream) *drainRecord {
	if md := n.drainOf(u); md != nil {
		return md.drainRecord
	}
	return nil
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

// mayName says whether a name between nodes is that of one upstream alone: without the host, that of one which belongs to a machine
// would be a second name of ours, under which it drains and cannot be undrained.
func (n *state) mayName(shared string) bool {
	name := n.here(shared)
	return name == "" || n.sharedName(name) == shared
}

// sharedName returns the name between nodes of an upstream of this process.
func (n *state) sharedName(name string) string { return n.conf.SharedName(name, n.conf.Host) }

// here returns the name in this process of an upstream that nodes call by its shared name, or
// nothing if it is another machine's.
func (n *state) here(shared string) string {
	// Only what belongs to a machine has the machine's name with it.
	i := strings.LastIndex(shared, "@")
	switch {
	case i < 0:
		return shared
	case shared[i+1:] == n.conf.Host:
		return shared[:i]
	}
	return ""
}
