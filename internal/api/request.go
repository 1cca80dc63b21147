// This file holds where the API is, and what is said to it.

package api

import "time"

// Where the API is. Behind UpstreamsPath and DrainingPath may stand a slash and the address of an upstream, and behind NodesPath
// the name of a node, each escaped as one part of a path.
const (
	UpstreamsPath    = "/bokeh/upstreams"
	DrainingPath     = "/bokeh/draining"
	NodePath         = "/bokeh/node"
	NodesPath        = "/bokeh/nodes"
	StorageCheckPath = "/bokeh/storage-check"
)

// AnswerTimeout is how long the command line waits for an answer. Caddy answers earlier, if only that a thing could not be done.
const AnswerTimeout = 15 * time.Second

// DrainRequest is what an operator may say beside that an upstream drains, or drains no more. D is a duration: as text where that is
// written, and where it is read as Caddy reads durations, of which this package knows nothing.
type DrainRequest[D any] struct {
	Reason string `json:"reason,omitempty"`

	// GracePeriod is after what time the upstream is closed, counted from when this is said: nothing goes there any more, and its
	// websockets are closed over Span. 0 means never. What is left out stays as it was.
	GracePeriod *D `json:"grace_period,omitempty"`
	Span        *D `json:"span,omitempty"`
}
