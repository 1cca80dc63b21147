// This file holds how long things last in the way of a request, and what of it a config may say.

package caddybokeh

import (
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
)

// What the options say where the config does not: Bokeh's own defaults (bokeh/server/core.py), which Bokeh counts in milliseconds; and what
// they may say.
const (
	defaultUnusedSessionLifetime = 15 * time.Second
	defaultCheckUnusedSessions   = 17 * time.Second

	maxLifetime   = record.MaxLifetime // of both, so that their sum cannot overflow
	minHedgeAfter = 100 * time.Millisecond
)

// What bokeh_proxy sets where nothing else is said.
const (
	proxyTryDuration      = 5 * time.Second        // a server that has just gone is noticed by nobody
	proxyTryInterval      = 250 * time.Millisecond // as by Caddy, but to be seen
	proxyHedgeAfter       = time.Second            // a page waits no longer for a file whose server is busy
	proxyStreamCloseDelay = 24 * time.Hour         // a reload closes no websocket
)

const (
	// healthInterval is how long after an upstream was found unhealthy we look again.
	healthInterval = 5 * time.Second

	// slotInterval is how long a visit waits for a slot before it looks again: an upstream may have joined, become
	// healthy or been taken back meanwhile, of which the queue does not hear.
	slotInterval = time.Second

	// memberTTL is how long a policy remembers an upstream that is in no pool of its.
	memberTTL = 10 * time.Minute

	// failureInterval is how long a client that has met a failure at an upstream says no more of it by the next ones.
	failureInterval = 10 * time.Second

	// failureTTL is how long it is known that a client has met one. It is so much longer that no client is new again between two
	// that count.
	failureTTL = 6 * failureInterval

	// lessonInterval is how long a client that has told how slow an upstream is says no more of that.
	lessonInterval = time.Second

	// huntTimeout is how long requests wait until further servers may be asked for their file. A page asks for several files at
	// once, and needs all of them.
	huntTimeout = 5 * time.Second

	// nowhereTTL is how long it is believed that no server has a file, after all were asked: or whoever asks for what there is not
	// has every server asked, each time.
	nowhereTTL = 5 * time.Second

	// adviceInterval is how often the same mistake is logged at most.
	adviceInterval = time.Minute

	// socketAnswerTimeout is how long a server may think about a websocket with a longer header before we say what may be wrong.
	socketAnswerTimeout = 5 * time.Second
)
