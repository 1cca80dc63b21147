// This file holds the other nodes, as their reports show them.

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// peer is another node as its reports show it.
type peer struct {
	*report
	share    *share        // where that was read
	changed  time.Duration // when its report changed last, on our table's clock: the clocks of two nodes are never compared
	gone     time.Duration // when it was found to be gone; 0 if it may be alive
	told     time.Duration // when we told the others so; 0 if it did itself
	strayKey bool          // it was logged that it signs with a key that we cannot verify
}

// updatePeers takes note of what the other nodes report; all says whether every report could be read. Those
// who reported in the storage before this one may be slow to follow.
func (n *state) updatePeers(sh *share, reports map[string]*report, all bool, now time.Duration) {
	for key, r := range reports {
		if r == nil || r.Node == n.name || key != nodeKey(r.Node) {
			continue
		}
		p := n.peers[key]
		if p == nil && len(n.peers) >= store.MaxRecords {
			continue
		}
		if p == nil {
			p = &peer{report: r, changed: now}
			n.peers[key] = p
		}
		if p.Seq != r.Seq {
			p.changed = now
		}
		p.report, p.share = r, sh
	}
	for key, p := range n.peers {
		silent := now - p.changed
		lost := all && reports[key] == nil && p.share == sh && p.Left ||
			silent > leftTimeout && p.Left || silent > silentTimeout && p.Process.isGone(n.conf.Process) || silent > deadTimeout
		switch {
		case !lost && reports[key] != nil:
			p.gone = 0
		case lost && p.gone == 0:
			p.gone = now
		}
		if all && reports[key] == nil && p.gone != 0 && n.mayReturnFor(p, now) <= 0 {
			delete(n.peers, key)
		}
	}
	n.compareKeys()
}

// crowd returns an error where there are more nodes than are remembered.
func (n *state) crowd(reports map[string]*report) error {
	if len(n.peers) >= store.MaxRecords {
		for key := range reports {
			if n.peers[key] == nil && key != nodeKey(n.name) {
				return errCrowd
			}
		}
	}
	return nil
}

// errCrowd is that of a storage in which more nodes have reported than are remembered.
var errCrowd = fmt.Errorf("more than %d Caddys have reported in %s, and the others are passed over (look who writes there, and delete the records of those"+
	" that are gone; a restart of this Caddy forgets those whose records are deleted)", store.MaxRecords, store.NodesFolder)

// overdue says whether p is missed.
func (p *peer) overdue(now time.Duration) bool { return now-p.changed > overdueTimeout }

// mayReturnFor returns how long browsers may still come back to sessions that p had, which is gone.
func (n *state) mayReturnFor(p *peer, now time.Duration) time.Duration {
	return p.mayReturnFor(n.sessionTTL(), now)
}

// mayReturnFor is the same, where a session lives for so long here.
func (p *peer) mayReturnFor(ttl, now time.Duration) time.Duration {
	return p.gone + max(p.Settles, ttl) - now
}

// forget drops what need not be known any more, and returns the keys of the records to delete and the last
// reports of nodes that did not say themselves that they are gone: those are told to all others first, for
// not everyone can see it, and a record that is missing says nothing. sure says whether all was read just
// now.
func (n *state) forget(now time.Duration, sure bool, accounts func() map[string]account) (keys []string, dead []*report) {
	if !sure {
		return nil, nil
	}
	for key, p := range n.peers {
		if p.gone == 0 || n.mayReturnFor(p, now) > 0 {
			continue
		}
		if !p.Left {
			last := *p.report
			last.Left, p.told = true, now
			dead = append(dead, &last)
		}
		if now-p.told > leftTimeout {
			keys = append(keys, key) // until that has worked
		}
	}
	for shared, md := range n.drains {
		switch {
		case n.wanted(shared, accounts()[shared], now):
			md.lonelySince = 0
		case md.lonelySince == 0:
			md.lonelySince = now
		case now-md.lonelySince > md.lonelyFor() && (n.here(shared) != "" || now-md.lonelySince > readyTimeout):
			// No node of another machine can have a loopback address of that one in its pool; it may be down.
			n.forgetDrain(shared)
			keys = append(keys, drainKey(shared))
		}
	}
	return keys, dead
}

// wanted says whether an upstream may be in the pool of a node, or have sessions.
func (n *state) wanted(shared string, own account, now time.Duration) bool {
	if own.wanted() || n.unsure() {
		return true
	}
	for _, p := range n.peers {
		if p.Upstreams[shared].wanted() || p.overdue(now) || p.Unsure {
			return true
		}
	}
	return false
}

// RemoveNode says for a node that it is dead, and with forget that nobody comes back to its sessions either, whatever it has said of
// that. If it is not dead, its next report says so. Its errors are ErrUnknownNode, ErrUnsure, api.ErrNoPolicy, or those of the storage.
func (n *Cluster) RemoveNode(ctx context.Context, name string, forget bool) error {
	sh, err := n.activeShare()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, operatorTimeout)
	defer cancel()
	last, err := n.lastOf(ctx, sh, name)
	if err != nil {
		return err
	}
	last.Left = true
	if forget {
		last.Settles = 0
	}
	if err := store.Put(ctx, sh.st, nodeKey(name), last); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsure, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[nodeKey(name)]; p != nil && p.gone == 0 {
		p.gone = n.conf.Table.Now()
	}
	return nil
}

// lastOf returns what a node has reported last, or no more than its name where that cannot be read.
func (n *Cluster) lastOf(ctx context.Context, sh *share, name string) (*report, error) {
	n.mu.Lock()
	p := n.peers[nodeKey(name)]
	n.mu.Unlock()
	switch {
	case p != nil:
		last := *p.report
		return &last, nil
	case name == n.name || !store.RecordName.MatchString(name+store.Suffix):
		return nil, ErrUnknownNode
	}
	if _, err := store.Load[report](ctx, sh.st, nodeKey(name)); !errors.Is(err, store.ErrBroken) {
		return nil, cmp.Or(err, ErrUnknownNode)
	}
	return &report{Node: name}, nil
}

// ErrUnknownNode is that of a name that no other node has, as far as this one has read.
var ErrUnknownNode = errors.New("no such node")

func nodeKey(name string) string { return store.NodesFolder + name + store.Suffix }
