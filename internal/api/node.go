// This file holds what is told of a node.

package api

// States of a node.
const (
	NodeUp       = "up"
	NodeSettling = "settling" // browsers may come back to sessions from before it started
	NodeOverdue  = "overdue"  // not heard of for too long; it may be alive
	NodeGone     = "gone"     // dead, or said to be; its sessions may come back elsewhere
)

// Node is what is told of a node, which is a process that runs Caddy.
type Node struct {
	Node     string  `json:"node"` // its name, which is another one whenever it starts
	Host     string  `json:"host"`
	Self     bool    `json:"self"`               // whether it is the one that tells
	State    string  `json:"state"`              // up, settling, overdue or gone
	Heard    float64 `json:"last_heard_seconds"` // how long ago its report changed last
	Sessions Counts  `json:"sessions"`
	Storage  string  `json:"storage_error,omitempty"` // why this node cannot use the storage
	Policies int     `json:"policies,omitempty"`      // like this in its configs, where it is the one that tells
	Waiting  int64   `json:"visits_waiting"`          // for a place under max_sessions, where it is the one that tells
}
