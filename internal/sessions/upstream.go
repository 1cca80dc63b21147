// This file holds one server: what it has, what it has had, and how slow it is.

package sessions

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
)

// Upstream is one server by its name, in whatever handler or config it appears.
type Upstream struct {
	Name   string
	Shared string // the name in what nodes share

	// What is compared for every new session comes first, and together.

	counts
	Slots       admission.Server // its sessions, and who waits for one
	Unanswered  Unanswered       // what it was asked
	FailedPages PastPages        // that it failed at
	LeftPages   PastPages        // whose visitors have gone before an answer came
	builds
	Breaker breaker.Breaker
	Drain   Drain
	dials
	uses
	lookup
	idsTaken sync.Map // whether it takes session ids from us (bool), by the fingerprint of their key
	History  *History // apart, for it is large, and who compares upstreams does not look at it
}

// counts are the sessions of an upstream.
type counts struct {
	inState [numStates]atomic.Int64 // nobody reads that of the ended ones
	started atomic.Int64            // that there ever were, as long as somebody holds the upstream
}

// builds are the pages that an upstream has built. Times are on the table's clock, and 0 for never.
type builds struct {
	slowness average      // of its pages, AsUsual where they take what they usually do
	builtAt  atomic.Int64 // when it last answered a page request with 200
	readyAt  atomic.Int64 // when it last had a page ready, whatever became of that
}

// uses are who has to do with an upstream.
type uses struct {
	pool    atomic.Pointer[joining] // that took it up last
	configs atomic.Int64            // policies in use whose config names it
	holders atomic.Int64            // policies that know it, sessions on it and its drain; it is forgotten at 0
}

// lookup is what was found when the name of an upstream was looked up last.
type lookup struct {
	Addresses     atomic.Int32 // of one family, that its name has; 0 if it was never looked up
	AddressFamily atomic.Int32 // of those; what it means is the business of who sets it
}

// History is what is told of an upstream beside what it has.
type History struct {
	Ended    Recent       // sessions
	Selected Counters     // how often it was chosen, by decision
	Hedged   Counters     // files that another one was asked for as well, by outcome
	Moved    Counters     // sessions that left it, by reason
	Silent   atomic.Int64 // pages whose socket never came
	Replies  Replies
	Waits    Waits
	Busy     Busy
	pageTime average // of all apps
	Lessons  Seldom  // who has taught how slow it is
	Failures Seldom  // who has met failures
	Failing  FailingApps
}

// Count returns how many sessions are in a state.
func (u *Upstream) Count(s State) int64 { return u.inState[s].Load() }

// TotalStarted returns how many sessions there ever were, as long as somebody holds u.
func (u *Upstream) TotalStarted() int64 { return u.started.Load() }

// EnterConfig takes note of a policy in use whose config names u, and says whether it is the first.
func (u *Upstream) EnterConfig() (first bool) { return u.configs.Add(1) == 1 }

// LeaveConfig takes note that one of those is not in use any more.
func (u *Upstream) LeaveConfig() { u.configs.Add(-1) }

// TakesIDs says whether u takes session ids from us that a key has signed, as far as is known. The key goes by its fingerprint.
func (u *Upstream) TakesIDs(key any) (takes, known bool) {
	is, known := u.idsTaken.Load(key)
	return known && is.(bool), known
}

// SetTakesIDs takes note whether it does.
func (u *Upstream) SetTakesIDs(key any, takes bool) { u.idsTaken.Store(key, takes) }

// Backlog is what a new page would wait for at u.
func (u *Upstream) Backlog() int64 {
	return u.inState[Building].Load() + u.FailedPages.n.Load() + u.LeftPages.n.Load()
}

// PageBuilt takes note of a page of an app that took u a time. The first one of a process takes longer
// than any that follow.
func (t *Table) PageBuilt(u *Upstream, by Terms, took time.Duration) {
	if usually := &t.pageTimes[by.App%App(len(t.pageTimes))]; took > 0 && u.IsWarm() {
		if d := usually.or(0); d > 0 {
			u.slowness.add(min(max(int64(AsUsual)*int64(took)/d, AsUsual/muchSlower), AsUsual*muchSlower))
		}
		usually.add(int64(took))
		u.History.pageTime.add(int64(took))
	}
	now := t.Now()
	u.builtAt.Store(int64(now))
	t.Addresses.SawPage(by.Path, now)
}

// Slowness returns how long pages have taken at u lately, in parts of what they usually take, which is AsUsual.
func (u *Upstream) Slowness() int64 { return u.slowness.or(AsUsual) }

// ForgetSlowness takes back what was learned of how slow u is. What that is worth is measured by doing without it.
func (u *Upstream) ForgetSlowness() { u.slowness.of.Store(0) }

// ServiceTime returns how long u was at a page that is ready now and was asked for at a time: it builds one
// after the other.
func (u *Upstream) ServiceTime(asked, now time.Duration) time.Duration {
	return now - max(asked, time.Duration(u.readyAt.Swap(int64(now))))
}

// IsWarm says whether u has built a page since it may have been restarted.
func (u *Upstream) IsWarm() bool { return u.builtAt.Load() > u.coldSince.Load() }

// joining is that an upstream came into a pool that did not have it.
type joining struct {
	of any // the pool: a source, or the members of a policy without one
	at time.Duration
}

// Joined takes note that u came into a pool.
func (u *Upstream) Joined(of any, now time.Duration) { u.pool.Store(&joining{of, now}) }

// LastPool returns the pool that took u up last, and when; nil if none has.
func (u *Upstream) LastPool() (of any, at time.Duration) {
	if j := u.pool.Load(); j != nil {
		return j.of, j.at
	}
	return nil, 0
}

// Lent takes note that u is in a pool that depends on the request. It may have been elsewhere since the last one.
func (u *Upstream) Lent(to any, now time.Duration) {
	if j := u.pool.Load(); j == nil || j.of != to || now-j.at > lentPrecision {
		u.Joined(to, now)
	}
}
