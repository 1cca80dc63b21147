// This file holds the other nodes, as their reports show them.

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// peer is another node as its reports show it.
type peer struct {
	verdict.Peer
	share    *share        // where its report was read
	told     time.Duration // when we told the others so; 0 if it did itself
	strayKey bool          // it was logged that it signs with a key that we cannot verify
}

// updatePeers takes note of what the other nodes report; all says whether every report could be read. Those
// who reported in the storage before this one may be slow to follow.
func (n *state) updatePeers(sh *share, reports map[string]*record.Report, all bool, now time.Duration) {
	for key, r := range reports {
		if r == nil || r.Node == n.name || key != record.NodeKey(r.Node) {
			continue
		}
		p := n.peers[key]
		if p == nil && len(n.peers) >= store.MaxRecords {
			continue
		}
		if p == nil {
			p = &peer{Peer: verdict.Peer{Report: r, Changed: now}}
			n.peers[key] = p
		}
		if p.Seq != r.Seq {
			p.Changed = now
		}
		p.Report, p.share = r, sh
	}
	for key, p := range n.peers {
		silent := now - p.Changed
		lost := all && reports[key] == nil && p.share == sh && p.Left ||
			silent > leftTimeout && p.Left || silent > silentTimeout && p.Process.IsGone(n.conf.Process) || silent > deadTimeout
		switch {
		case !lost && reports[key] != nil:
			p.Gone = 0
		case lost && p.Gone == 0:
			p.Gone = now
		}
		if all && reports[key] == nil && p.Gone != 0 && n.mayReturnFor(p, now) <= 0 {
			delete(n.peers, key)
		}
	}
	n.compareKeys()
}

// crowd returns an error where there are more nodes than are remembered.
func (n *state) crowd(reports map[string]*record.Report) error {
	if len(n.peers) >= store.MaxRecords {
		for key := range reports {
			if n.peers[key] == nil && key != record.NodeKey(n.name) {
				return errCrowd
			}
		}
	}
	return nil
}

// errCrowd is that of a storage in which more nodes have reported than are remembered.
var errCrowd = fmt.Errorf("more than %d Caddys have reported in %s, and the others are passed over (look who writes there, and delete the records of those"+
	" that are gone; a restart of this Caddy forgets those whose records are deleted)", store.MaxRecords, store.NodesFolder)

// mayReturnFor returns how long browsers may still come back to sessions that p had, which is gone.
func (n *state) mayReturnFor(p *peer, now time.Duration) time.Duration {
	return p.MayReturnFor(n.sessionTTL(), now)
}

// forget drops what need not be known any more, and returns the keys of the records to delete and the last
// reports of nodes that did not say themselves that they are gone: those are told to all others first, for
// not everyone can see it, and a record that is missing says nothing. sure says whether all was read just
// now.
func (n *state) forget(now time.Duration, sure bool, accounts func() map[string]record.Account) (keys []string, dead []*record.Report) {
	if !sure {
		return nil, nil
	}
	for key, p := range n.peers {
		if p.Gone == 0 || n.mayReturnFor(p, now) > 0 {
			continue
		}
		if !p.Left {
			last := *p.Report
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
			keys = append(keys, record.DrainKey(shared))
		}
	}
	return keys, dead
}

// wanted says whether an upstream may be in the pool of a node, or have sessions.
func (n *state) wanted(shared string, own record.Account, now time.Duration) bool {
	if own.Wanted() || n.unsure() {
		return true
	}
	for _, p := range n.peers {
		if p.Upstreams[shared].Wanted() || p.Overdue(now) || p.Unsure {
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
	if err := store.Put(ctx, sh.st, record.NodeKey(name), last); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsure, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[record.NodeKey(name)]; p != nil && p.Gone == 0 {
		p.Gone = n.conf.Table.Now()
	}
	return nil
}

// lastOf returns what a node has reported last, or no more than its name where that cannot be read.
func (n *Cluster) lastOf(ctx context.Context, sh *share, name string) (*record.Report, error) {
	n.mu.Lock()
	p := n.peers[record.NodeKey(name)]
	n.mu.Unlock()
	switch {
	case p != nil:
		last := *p.Report
		return &last, nil
	case name == n.name || !store.RecordName.MatchString(name+store.Suffix):
		return nil, ErrUnknownNode
	}
	if _, err := store.Load[record.Report](ctx, sh.st, record.NodeKey(name)); !errors.Is(err, store.ErrBroken) {
		return nil, cmp.Or(err, ErrUnknownNode)
	}
	return &record.Report{Node: name}, nil
}

// ErrUnknownNode is that of a name that no other node has, as far as this one has read.
var ErrUnknownNode = errors.New("no such node")
