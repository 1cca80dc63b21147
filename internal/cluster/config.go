// This file holds what a node is told: of the process that it is, and of the policies in it.

package cluster

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// Policy is one by which this Caddy chooses upstreams, as far as nodes tell each other of it. It is told apart from others by ==.
// All but Emit are called with the node locked, from any goroutine: they return at once, and call nothing of the node.
type Policy interface {
	// Pool returns every upstream that the policy knows, in no order. What it returns is the caller's.
	Pool() []PoolMember

	// PoolHealth returns the same upstreams, with what the policy's handler says of them. It is asked for when somebody wants to know.
	PoolHealth() []MemberHealth

	// KnowsPool says whether all upstreams of its pool are among them.
	KnowsPool() bool

	// StampKeys returns the fingerprints of the keys of its stamps, that which signs first; none where it has no key yet.
	StampKeys() []string

	// SessionTTL returns how long a session lives without a websocket.
	SessionTTL() time.Duration

	// Emit raises an event. It may take its time: what subscribes to the event runs meanwhile.
	Emit(name string, data map[string]any)
}

// PoolMember is an upstream as a policy sees it at a moment.
type PoolMember struct {
	Upstream *sessions.Upstream
	InPool   bool // or it is kept for its sessions
}

// MemberHealth is what a policy's handler says of an upstream at a moment.
type MemberHealth struct {
	PoolMember
	Unreachable bool // the last connection that it tried to make failed

	// Told says whether the handler has told of it yet. The rest is what it says.
	Told        bool
	Healthy     bool // also where nothing was told
	Full        bool // it has its limit of requests
	NumRequests int
	Fails       int
}

// Config is what a node needs to know of the process that it is, all of it.
type Config struct {
	Table   *sessions.Table
	Host    string         // of this machine. What is its own, as a loopback address, has this in its name between nodes
	Process record.Process // that which this is; empty where others shall not look whether it is there

	// StartedAt is when the process began, on the table's clock; 0 for now. Browsers may come back to sessions from before.
	StartedAt time.Duration

	// SessionTTL is how long a session lives without a websocket while no policy says so.
	SessionTTL time.Duration

	// SharedName returns the name between nodes of an upstream, of a machine with the given host.
	SharedName func(name, host string) string

	// Running returns the storage of the config that runs, or nil if none does. It is called with the node locked, and returns at once.
	Running func() store.Storage

	// Exiting says whether the process is about to end. It is called with the node locked, and returns at once.
	Exiting func() bool

	// Dial tries whether the named upstream can be reached, until ctx ends.
	Dial func(ctx context.Context, name string) error

	Logger *zap.Logger
}
