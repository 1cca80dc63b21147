// This file holds how long things count for the verdict.

package verdict

import "time"

const (
	// StaleTimeout is how long after a node has last read the storage, or could not write to it any more, it calls nothing
	// drained: somebody may have taken the drain back, or not hear of the sessions that this node begins.
	StaleTimeout = 6 * time.Second

	// DrainQuarantine is how long after a drain began no upstream is called drained: a node that was starting at that moment has read
	// no record of it, and nobody has read of that node yet.
	DrainQuarantine = 5 * time.Second

	// OverdueTimeout is when a node is missed whose report does not change.
	OverdueTimeout = 30 * time.Second
)
