// This file holds how long things last here.

package sessions

import "time"

const (
	// DialBackoff is how long an upstream that did not take a connection is passed over. BokehJS tries again 2 s after a first failed
	// reconnect, so a session whose dial is not retried finds another upstream on its second request.
	DialBackoff = 10 * time.Second

	// UnhealthyGrace is how long a session stays with an upstream that health checks call down, or that takes no connection in time.
	// The browser gives up reconnecting after about 30 s; a server may be busy with somebody else's page for longer than any health
	// check waits.
	UnhealthyGrace = time.Minute

	// ExpiryTick is what the ends of sessions that wait are put off to, so that many end at one awakening of the process. With a
	// moment for each, awakenings were half of what this policy cost.
	ExpiryTick = 250 * time.Millisecond

	// SlotTimeout is how long after its answer a page holds a slot though no socket has come. Browsers open theirs within a second or
	// two, on a slow line in five. Whoever asks for pages alone must not keep others out for as long as a server keeps a session;
	// a socket that comes later takes the slot again, though there may be one too many then.
	SlotTimeout = 5 * time.Second

	// TunnelRest is how long a websocket is let be after its answer: before the browser has that, the end of it would be a failed
	// request.
	TunnelRest = time.Second

	// FailedPageWeight is how long a page counts as being built that a server has failed at, when upstreams are compared: one that
	// fails fast must not look idle. It bounds as well how long one counts whose visitor has gone.
	FailedPageWeight = 10 * time.Second

	// UnknownPage is what a page is taken to take as long as none of its app has come.
	UnknownPage = time.Second

	// StalledAfter is how long an upstream may answer nothing before it counts as stalled. Files take a few milliseconds, most pages
	// less than this.
	StalledAfter = 250 * time.Millisecond

	// longestDoubt bounds how long an upstream counts as stalled though nobody waits for it any more.
	longestDoubt = 10 * time.Second

	// provenFor is how long an answer shows that an upstream answers. One that has given none for so long may be busy with what came
	// by a websocket, which nobody sees here.
	provenFor = time.Second

	// seenPrecision is how sharp it is kept when something was last seen: to write it at every request would cost more than it says.
	seenPrecision = time.Minute

	// lentPrecision is how long an upstream that is in no pool of a config's own is taken to have stayed in the one that a request had
	// it in.
	lentPrecision = time.Second

	// recentSlot is how sharp Recent tells when something happened.
	recentSlot = 10 * time.Second
)
