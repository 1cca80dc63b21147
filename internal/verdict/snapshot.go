// This file holds what is known of an upstream that drains when the verdict on it is passed.

package verdict

import (
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
)

// Snapshot is what is known at a moment of an upstream that drains. Judging it changes nothing in it, so it may be shared. Times are on
// the clock of this node, which is monotonic.
type Snapshot struct {
	Now     time.Duration
	Node    string        // this one
	Host    string        // of this machine
	UpSince time.Duration // this node
	Seq     uint64        // of its last report
	TTL     time.Duration // how long a session lives without a socket
	Shared  string        // the name of the upstream between nodes
	Record  *record.Drain // what an operator has said last; nil where configs alone drain it
	Here    Here
	Storage Storage
	Peers   []*Peer // that may dial it, or to which browsers may come back that they sent there
}

// Here is what this node has of the upstream.
type Here struct {
	Sessions int64
	Started  int64         // sessions so far
	Closed   bool          // nothing goes there
	Reopened time.Duration // how long browsers may still come back, since it was closed until a moment ago
}

// Storage is what this node knows of its storage.
type Storage struct {
	Read    time.Duration // when all was read last; 0 if never
	Listed  time.Duration // when this node's own report was last among that; 0 if never
	Unheard time.Duration // since when no report could be written; 0 if the last one could
	Trusted bool          // it has shown that report once
}

// Peer is another node as its reports show it. Times are on the clock of the node that judges.
type Peer struct {
	*record.Report
	Changed time.Duration // when its report changed last: the clocks of two nodes are never compared
	Gone    time.Duration // when it was found to be gone; 0 if it may be alive
}

// Overdue says whether p is missed.
func (p *Peer) Overdue(now time.Duration) bool { return now-p.Changed > OverdueTimeout }

// MayReturnFor returns how long browsers may still come back to sessions that p had, which is gone, where a session lives for so long here.
func (p *Peer) MayReturnFor(ttl, now time.Duration) time.Duration {
	return p.Gone + max(p.Settles, ttl) - now
}
