// This file holds how long things take and last among nodes. Where one depends on another, nodes of other versions go by that too.

package cluster

import (
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

const (
	// nodeInterval is how often a node reads what the others wrote. So a drain holds everywhere within 5 s, if the storage is not slow,
	// and two looks may fail before nothing is called drained.
	nodeInterval = verdict.StaleTimeout / 3

	// judgeInterval is how often it is looked whether an upstream that drains is empty: somebody may wait for that.
	judgeInterval = time.Second

	// loadInterval is how often a node reads and writes while its first config is loading: when that runs, the others must know.
	loadInterval = 100 * time.Millisecond

	// killTimeout is how long after it was told so somebody may take to kill a process that is about to end.
	killTimeout = 30 * time.Second

	// reportInterval is how often a node reports while nothing drains.
	reportInterval = 10 * time.Second

	// attachTimeout is how long a config load waits for the storage.
	attachTimeout = 5 * time.Second

	// operatorTimeout is how long an operator waits for the storage, and so does the end of the process.
	operatorTimeout = 5 * time.Second

	// lonelyTimeout is how long an upstream is in no pool until it is forgotten that it drains, so that
	// the next server at its address is ready.
	lonelyTimeout = 10 * time.Minute

	// readyTimeout is how long an upstream is in no pool until it is forgotten that a drain was taken back. That keeps nobody out, and a
	// node that was cut off for long may still know of the drain.
	readyTimeout = 24 * time.Hour

	// undrainQuarantine is how long a node goes on sending no new session to an upstream whose drain was taken back, where
	// there are others: one that has not read of it yet may take the upstream for empty, and would send the websocket of a new session elsewhere.
	undrainQuarantine = nodeInterval + nodeInterval/2

	// defaultSpan is over which the requests to a closed upstream are ended, most of which are websockets: browsers reconnect at
	// once, and every one of them lets another server run the app.
	defaultSpan = 30 * time.Second

	// aloneQuarantine is how long after it has read the storage a node knows that there is no other. One that has
	// started since has no session yet that has ended here.
	aloneQuarantine = 5 * time.Second

	// reminderInterval is how often it is logged that an upstream drains which is long empty.
	reminderInterval = time.Hour

	// leftTimeout is when a node is gone that has said so, for it may have something to say after all:
	// one that may be killed still serves whoever comes.
	leftTimeout = 3 * nodeInterval

	// silentTimeout is when it is looked whether the process of a node of this machine is there.
	silentTimeout = reportInterval + nodeInterval

	// deadTimeout is when a node that is missed is taken for dead. It may be cut off from the storage
	// and well otherwise, so this is long.
	deadTimeout = time.Hour

	// rivalTimeout is how long a drain waits for a newer one to give way, and for the next.
	rivalTimeout = 2 * time.Second

	// rivalInterval is how often a drain looks whether newer ones have given way.
	rivalInterval = 100 * time.Millisecond

	// redialTimeout is how long it is tried to reach upstreams before one is called the last.
	redialTimeout = time.Second
)
