// This file holds the table of live sessions and the load of each upstream; both outlive configs.

package caddybokeh

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"hash/maphash"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
)

const (
	// tableShards keeps requests for different sessions off each other's locks.
	tableShards = 64

	// dialPause is how long an upstream that did not take a connection is passed over. BokehJS
	// tries again 2 s after a first failed reconnect, so a session whose dial is not retried
	// finds another upstream on its second request.
	dialPause = 10 * time.Second

	// unhealthyGrace is how long a session stays with an upstream that health checks call down, or that takes no connection in time.
	// The browser gives up reconnecting after about 30 s; a server may be busy with somebody
	// else's page for longer than any health check waits.
	unhealthyGrace = time.Minute
)

// sessionKey stands for a session id in the table. Ids are capabilities and can be long: the
// table keeps neither them nor anything that an id could be guessed from.
type sessionKey [16]byte

// state is what a session is doing.
type state uint8

const (
	ended     state = iota
	building        // page requested, not answered yet
	waiting         // page served, or its visitor gone, and no socket yet
	connected       // one socket or more
	unused          // last socket closed, the server still keeps the session
	numStates
)

// app is the app that a session belongs to, as visitors name it: a hash of the site's host, the port that
// it was asked at, and a path.
type app uint64

// terms are what a session is counted by.
type terms struct {
	lifetime time.Duration // without a socket
	app      app
	path     app // the same, at whatever host
	owner    any // through which it is asked for; compared, and never looked into
}

// table holds every live session of this process and the load of every upstream.
type table struct {
	salt   [16]byte
	seed   maphash.Seed // of apps
	start  time.Time
	shards [tableShards]shard

	sharedName func(name string) string
	labels     labels
	waiting    *admission.Queue

	pageTimes [1 << 10]average // by app; two that share one are taken for one
	answered  answeredAt

	mu        sync.Mutex           // guards all below
	upstreams map[string]*upstream // by name
}

// shard is a part of the table under a lock of its own.
type shard struct {
	mu       sync.Mutex              // guards sessions, and all in them
	sessions map[sessionKey]*session // the last used of an id; others hang behind it
}

// session is one Bokeh document on one server. Where an id has moved, or is used on two sites,
// there is one for each upstream.
type session struct {
	key  sessionKey
	next *session // the same id at another upstream
	at   *upstream

	until     time.Duration // when it ends if no socket comes, on the table's clock; 0 if it does not wait
	slotUntil time.Duration // until when it holds a slot if no socket comes, on the same clock; 0 if that is not the question
	slotless  bool          // that time is over
	timer     *time.Timer   // pending while one of them is not 0
	wakes     time.Duration // when it is due, on the same clock
	pages     int32         // being built
	served    int32         // answered, with their last byte not sent yet
	sockets   int32
	hadOne    bool // a socket, once
	made      bool // its server has said that it has made it; where the visitor has gone it may have done so and not have said it
	claimed   bool // counted elsewhere from now on: under the id of its socket, or where it moved
	previous  state
	began     time.Duration // on the table's clock
	app       app           // that it belongs to
	owner     any           // through which it was asked for last
}

// upstream is one server by its name, in whatever handler or config it appears.
type upstream struct {
	name   string
	shared string // the name in what nodes share, see sharedName

	// What is compared for every new session comes first, and together.

	counts      [numStates]atomic.Int64 // sessions by state; nobody reads that of the ended ones
	slots       admission.Server        // its sessions, and who waits for one
	unanswered  unanswered
	failedPages pastPages // that it failed at
	leftPages   pastPages // whose visitors have gone before an answer came
	slowness    average   // of its pages, asUsual where they take what they usually do
	breaker     breaker.Breaker
	draining    draining

	failedAt  atomic.Int64 // when a dial failed last, but for those that took too long, on the table's clock in nanoseconds; 0 if one succeeded since
	lateSince atomic.Int64 // since when dials take too long, on the same clock; 0 if one succeeded since
	lateAt    atomic.Int64 // when one did last

	pool      atomic.Pointer[joining] // that took it up last
	configs   atomic.Int64            // policies in use whose config names it
	holders   atomic.Int64            // policies that know it, sessions on it and its mark; it is forgotten at 0
	builtAt   atomic.Int64            // when it last answered a page request with 200
	turnedAt  atomic.Int64            // when it last had a page ready, whatever became of that
	coldSince atomic.Int64            // when a dial failed last, whatever happened since
	addresses atomic.Int32            // of one family, that its name had when it was looked up last; 0 if it never was
	family    atomic.Int32            // of those, see family
	takesIDs  sync.Map                // whether it takes session ids from us (bool), by the fingerprint of their key

	begun atomic.Int64 // sessions that there ever were, as long as somebody holds the upstream
	past  *past        // apart, for it is large, and who compares upstreams does not look at it
}

// past is what is told of an upstream beside what it has.
type past struct {
	ended    recent       // sessions
	selected counters     // how often it was chosen, by decision
	hedged   counters     // files that another one was asked for as well, by outcome
	moved    counters     // sessions that left it, by reason
	silent   atomic.Int64 // pages whose socket never came
	pageTime average      // of all apps
	lessons  seldom       // who has taught how slow it is
	failures seldom       // who has met failures
	failing  failingApps
}

// counters count by a fixed set of names.
type counters map[string]*atomic.Int64

func newCounters(names ...string) counters {
	c := make(counters)
	for _, name := range names {
		c[name] = new(atomic.Int64)
	}
	return c
}

func (c counters) add(name string) { c[name].Add(1) }

// labels are what upstreams count by.
type labels struct{ decisions, moveReasons, hedgeOutcomes []string }

// newTable returns an empty table, whose upstreams have a name between nodes, and count by some labels.
func newTable(sharedName func(name string) string, by labels) *table {
	t := &table{
		sharedName: sharedName, labels: by,
		seed: maphash.MakeSeed(), start: time.Now(),
		upstreams: make(map[string]*upstream),
		waiting:   admission.NewQueue(),
	}
	rand.Read(t.salt[:])
	for i := range t.shards {
		t.shards[i].sessions = make(map[sessionKey]*session)
	}
	return t
}

// now is the table's clock. It starts at 1 so that 0 can mean never.
func (t *table) now() time.Duration { return time.Since(t.start) + 1 }

// key returns the key of a session id.
func (t *table) key(id string) sessionKey {
	var room [128]byte
	sum := sha256.Sum256(append(append(room[:0], t.salt[:]...), id...))
	return sessionKey(sum[:16])
}

// app returns what stands for the app at a path of a host. A client can say any host, but not at which port it is asked.
func (t *table) app(host string, port int, path string) app {
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteString(host)
	maphash.WriteComparable(&h, port)
	h.WriteString(path)
	return app(h.Sum64())
}

// shard returns the shard that holds k.
func (t *table) shard(k sessionKey) *shard { return &t.shards[k[0]%tableShards] }

// hold returns the upstream with the given name and keeps it until it is released.
func (t *table) hold(name string) *upstream {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.upstreams[name]
	if u == nil {
		u = &upstream{name: name, shared: t.sharedName(name)}
		u.slots.Lot = maphash.Comparable(t.seed, u)
		u.past = &past{selected: newCounters(t.labels.decisions...), moved: newCounters(t.labels.moveReasons...), hedged: newCounters(t.labels.hedgeOutcomes...)}
		t.upstreams[name] = u
	}
	u.holders.Add(1)
	return u
}

// knows says whether somebody holds the named upstream, other than one who has it already.
func (t *table) knows(name string, already *upstream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.upstreams[name]
	return u != nil && (u != already || u.holders.Load() > 1)
}

// sessionsAt returns how many sessions the named upstream has.
func (t *table) sessionsAt(name string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u := t.upstreams[name]; u != nil {
		return u.slots.Sessions.Load()
	}
	return 0
}

// again holds u once more. It returns another one of the same name if u was forgotten meanwhile.
func (t *table) again(u *upstream) *upstream {
	for n := u.holders.Load(); n > 0; n = u.holders.Load() {
		if u.holders.CompareAndSwap(n, n+1) {
			return u
		}
	}
	return t.hold(u.name)
}

// release takes back one hold.
func (t *table) release(u *upstream) {
	if u.holders.Add(-1) > 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.holders.Load() == 0 && t.upstreams[u.name] == u {
		delete(t.upstreams, u.name)
	}
}

// find calls yield with each live session with the key, the last used first. It must not change it, nor call back into the table.
func (t *table) find(k sessionKey, yield func(*session)) {
	sh := t.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for s := sh.sessions[k]; s != nil; s = s.next {
		yield(s)
	}
}

// load is what one request weighs: a page being built or a socket, in a session. Without a session it weighs nothing.
type load struct {
	t        *table
	s        *session
	lifetime time.Duration // of the session when this request is over
	claimed  bool          // the socket took over a session that its page had begun under another id
}

// page counts a page request for the session at u.
func (t *table) page(k sessionKey, u *upstream, by terms) load {
	return load{t: t, lifetime: by.lifetime, s: t.change(k, u, by, func(s *session) {
		s.pages++
	})}
}

// update lets f change the session, if the request weighs anything.
func (l load) update(f func(*session)) {
	if l.s != nil {
		l.t.update(l.s, f)
	}
}

// built tells that the page has been answered.
func (l load) built() {
	l.update(func(s *session) {
		s.pages--
		s.served++
		if !s.hadOne && !s.slotless && s.slotUntil == 0 { // one session holds one slot for one time, however often it is asked for
			s.slotUntil = onBeat(l.t.now() + slotFor)
			l.t.arm(s)
		}
	})
}

// pageLeft tells that nobody waits for the page any more and that no answer has come, though the server had all of the request:
// it makes the session all the same, in a time that is given, and keeps it. No websocket will come, so it holds no slot. It says
// whether the server may still be at it.
func (l load) pageLeft(work time.Duration) (busy bool) {
	l.update(func(s *session) {
		s.pages--
		busy = !s.made && s.pages == 0 && s.served == 0
		if s.claimed {
			return
		}
		l.t.keep(s, work+l.lifetime)
		if s.pages == 0 && s.slotUntil == 0 {
			s.loseSlot(l.t.now(), l.t.waiting)
		}
	})
	return busy
}

// pageEnded tells that the page request is over: built says whether it had been answered, ok
// whether the browser has the page, so that its socket will come.
func (l load) pageEnded(built, ok bool) {
	l.update(func(s *session) {
		if built {
			s.served--
		} else {
			s.pages--
		}
		s.made = s.made || ok
		if ok && !s.claimed {
			l.t.keep(s, l.lifetime)
		}
	})
}

// socket counts a socket for the session at u. If the page began the session under another key,
// page, that one is over: the two are one session.
func (t *table) socket(k, page sessionKey, u *upstream, by terms) load {
	l := load{t: t, lifetime: by.lifetime, s: t.change(k, u, by, func(s *session) {
		s.sockets++
		s.claimed = false
	})}
	if page != k {
		l.claimed = t.claim(page, l.s.at)
	}
	return l
}

// claim ends the waiting of the session with key k at u, which is counted under the id of its
// socket from now on, and says whether there was one.
func (t *table) claim(k sessionKey, u *upstream) bool {
	return t.leave(k, u, func(s *session) bool { return s.sockets == 0 })
}

// move ends what is counted of the session with key k at u, which has moved: what is still open
// there counts until it closes.
func (t *table) move(k sessionKey, u *upstream) {
	t.leave(k, u, func(*session) bool { return true })
}

// abandon ends the waiting of all sessions at u, to which nothing goes any more, for as long as that
// is so: what is open there counts until it closes.
func (t *table) abandon(u *upstream) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for _, s := range sh.sessions {
			for ; s != nil; s = s.next {
				if s.at == u {
					t.stopWaiting(sh, s)
				}
			}
		}
		sh.mu.Unlock()
	}
}

// leave ends the waiting of the session with key k at u, if it may, and says whether it did.
func (t *table) leave(k sessionKey, u *upstream, may func(*session) bool) bool {
	sh := t.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for s := sh.sessions[k]; s != nil; s = s.next {
		if s.at == u && may(s) {
			t.quit(sh, s)
			return true
		}
	}
	return false
}

// quit ends the waiting of s, now and when what is open of it closes. The shard is locked.
func (t *table) quit(sh *shard, s *session) {
	s.claimed = true
	t.stopWaiting(sh, s)
}

// stopWaiting ends the waiting of s. The shard is locked.
func (t *table) stopWaiting(sh *shard, s *session) {
	s.until, s.slotUntil = 0, 0
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	t.settle(sh, s)
}

// opened tells that the server has opened the socket.
func (l load) opened() {
	l.update(func(s *session) {
		s.hadOne, s.made = true, true
		s.takeSlot()
	})
}

// socketEnded tells that a socket is closed, or failed to open.
func (l load) socketEnded(opened bool) {
	l.update(func(s *session) {
		s.sockets--
		s.hadOne = s.hadOne || opened
		if (opened || l.claimed) && !s.claimed {
			l.t.keep(s, l.lifetime)
		}
	})
}

// beat is what the ends of sessions that wait are put off to, so that many end at one awakening of the process. With a
// moment for each, awakenings were half of what this policy cost.
const beat = 250 * time.Millisecond

// onBeat returns the first beat that is not before a moment on the table's clock, which begins with 1.
func onBeat(moment time.Duration) time.Duration { return (moment + beat - 2).Truncate(beat) + 1 }

// slotFor is how long after its answer a page holds a slot though no socket has come. Browsers open theirs within a second or
// two, on a slow line in five. Whoever asks for pages alone must not keep others out for as long as a server keeps a session;
// a socket that comes later takes the slot again, though there may be one too many then.
const slotFor = 5 * time.Second

// keep lets s live for d from now, and up to a beat more, though it has no socket. The shard is locked.
func (t *table) keep(s *session, d time.Duration) {
	if s.at.draining.closed() {
		return
	}
	s.until = max(s.until, onBeat(t.now()+d))
	t.arm(s)
}

// arm sees to it that s wakes in time. The shard is locked.
func (t *table) arm(s *session) {
	next := s.until
	if s.slotUntil != 0 && (next == 0 || s.slotUntil < next) {
		next = s.slotUntil
	}
	switch {
	case next == 0:
	case s.timer == nil:
		s.wakes = next
		s.timer = time.AfterFunc(next-t.now(), func() { t.update(s, t.wake) })
	case next < s.wakes:
		s.wakes = next
		s.timer.Reset(next - t.now())
	}
}

// wake ends what is over of s. The shard is locked.
func (t *table) wake(s *session) {
	s.timer = nil
	now := t.now()
	if s.slotUntil != 0 && s.slotUntil <= now {
		s.loseSlot(now, t.waiting)
	}
	if s.until != 0 && s.until <= now {
		t.expire(s)
	}
	t.arm(s)
}

// isGuess says whether nobody has ever had the session, and nobody waits for it: its server may have made it. The shard is locked.
func (s *session) isGuess() bool { return !s.made && s.pages == 0 && s.served == 0 && s.sockets == 0 }

// loseSlot lets others have the slot of a session whose socket has not come, or will not. The shard is locked.
func (s *session) loseSlot(now time.Duration, q *admission.Queue) {
	s.slotUntil = 0
	if s.hadOne || s.slotless || s.state() == ended {
		return
	}
	s.slotless = true
	s.at.slots.Slotless.Add(1)
	q.Freed(&s.at.slots, now)
}

// takeSlot gives the session a slot, whether there is one or not. The shard is locked.
func (s *session) takeSlot() {
	s.slotUntil = 0
	if s.slotless {
		s.slotless = false
		s.at.slots.Slotless.Add(-1)
	}
}

// expire ends the waiting of s. The shard is locked.
func (t *table) expire(s *session) {
	s.until = 0
	if s.state() != ended {
		return
	}
	s.at.draining.remember(s.key)
	if s.previous == waiting && s.made {
		s.at.past.silent.Add(1)
	}
}

// change finds the session with key k at u, or makes one, and lets f change it.
func (t *table) change(k sessionKey, u *upstream, by terms, f func(*session)) *session {
	sh := t.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	first := sh.sessions[k]
	s := first
	for s != nil && s.at.name != u.name {
		s = s.next
	}
	switch {
	case s == nil:
		s = &session{key: k, at: t.again(u), app: by.app}
		sh.push(s)
	case s != first:
		sh.remove(s)
		sh.push(s)
	}
	s.owner = by.owner
	f(s)
	t.settle(sh, s)
	return s
}

// update lets f change s.
func (t *table) update(s *session, f func(*session)) {
	sh := t.shard(s.key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f(s)
	t.settle(sh, s)
}

// state says what s is doing.
func (s *session) state() state {
	switch {
	case s.sockets > 0:
		return connected
	case s.pages > 0:
		return building
	case s.until == 0 && (s.served == 0 || s.claimed):
		return ended
	case s.hadOne:
		return unused
	}
	return waiting
}

// settle brings everything in line with a change of s: the counts, and the table if it has ended.
// The shard is locked.
func (t *table) settle(sh *shard, s *session) {
	now := s.state()
	if now == s.previous {
		return
	}
	s.at.counts[s.previous].Add(-1)
	s.at.counts[now].Add(1)
	if s.previous == ended {
		s.began = t.now()
		s.at.slots.Sessions.Add(1)
		s.at.begun.Add(1)
	}
	s.previous = now
	if now == ended {
		s.takeSlot() // which is free now
		s.at.slots.Sessions.Add(-1)
		s.at.past.ended.add(t.now())
		t.waiting.Freed(&s.at.slots, t.now())
		sh.remove(s)
		t.release(s.at)
	}
}

// push puts s before all others of its key.
func (sh *shard) push(s *session) { s.next, sh.sessions[s.key] = sh.sessions[s.key], s }

// remove takes s out of the chain of its key.
func (sh *shard) remove(s *session) {
	if sh.sessions[s.key] == s {
		if s.next == nil {
			delete(sh.sessions, s.key)
		} else {
			sh.sessions[s.key] = s.next
		}
		return
	}
	for p := sh.sessions[s.key]; p != nil; p = p.next {
		if p.next == s {
			p.next = s.next
			return
		}
	}
}

// oldest returns when the oldest session of each upstream began, on the table's clock. It holds up
// requests for one shard at a time.
func (t *table) oldest() map[*upstream]time.Duration {
	oldest := make(map[*upstream]time.Duration)
	for i := range t.shards {
		t.shards[i].oldest(oldest)
	}
	return oldest
}

func (sh *shard) oldest(oldest map[*upstream]time.Duration) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, s := range sh.sessions {
		for ; s != nil; s = s.next {
			if began, ok := oldest[s.at]; !ok || s.began < began {
				oldest[s.at] = s.began
			}
		}
	}
}

// each calls yield with every upstream that somebody holds.
func (t *table) each(yield func(*upstream)) {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.upstreams))
	t.mu.Unlock()
	for _, u := range all {
		yield(u)
	}
}

const (
	recentSlots = 30
	recentSlot  = 10 * time.Second
)

// recent counts what happened in the last five minutes, ten seconds sharp.
type recent struct {
	mu    sync.Mutex // guards all below
	slots [recentSlots]int64
	last  int64 // number of the newest slot
}

// add counts one at the given time.
func (r *recent) add(now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moveOn(now)
	r.slots[r.last%recentSlots]++
}

// count returns how many there were.
func (r *recent) count(now time.Duration) (n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moveOn(now)
	for _, slot := range r.slots {
		n += slot
	}
	return n
}

// moveOn empties the slots whose time has come again. r.mu is locked.
func (r *recent) moveOn(now time.Duration) {
	newest := int64(now / recentSlot)
	for i := max(r.last+1, newest-recentSlots+1); i <= newest; i++ {
		r.slots[i%recentSlots] = 0
	}
	r.last = max(r.last, newest)
}

// dialed tells how a dial of u ended, for a request that was begun at a time, and how long u then is to
// have a pause from new sessions at first.
func (u *upstream) dialed(begun, now, pause time.Duration, err error) {
	switch {
	case err == nil:
		if u.failedAt.Load() != 0 {
			u.failedAt.Store(0)
		}
		if u.lateSince.Load() != 0 {
			u.lateSince.Store(0)
		}
		u.breaker.Connected()
	case !isUpstreamsFault(err):
	case isTimeout(err):
		if last := time.Duration(u.lateAt.Load()); now-last > 2*unhealthyGrace {
			u.lateSince.Store(0) // that was another time
		}
		u.lateSince.CompareAndSwap(0, int64(now))
		u.lateAt.Store(int64(now))
		u.breaker.Failure(begun, now, pause)
	default:
		u.failedAt.Store(int64(now))
		u.coldSince.Store(int64(now))
		u.breaker.Failure(begun, now, pause)
	}
}

// isTimeout says whether an error is that nothing has come in time.
func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// silent says whether no connection to u has come about in time for so long that it is no busy server any more. A server that is
// busy takes none either, as soon as so many wait that its system drops those that come.
func (u *upstream) silent(now time.Duration) bool {
	since := time.Duration(u.lateSince.Load())
	return since != 0 && now-since > unhealthyGrace && justFailed(&u.lateAt, now)
}

// failing says whether the last dial of u failed, not long ago.
func (u *upstream) failing(now time.Duration) bool { return justFailed(&u.failedAt, now) }

func justFailed(at *atomic.Int64, now time.Duration) bool {
	t := at.Load()
	return t != 0 && now-time.Duration(t) < dialPause
}

// queue is what a new page would wait for at u.
func (u *upstream) queue() int64 {
	return u.counts[building].Load() + u.failedPages.n.Load() + u.leftPages.n.Load()
}

// pageBuilt takes note of a page of an app that took u a time. The first one of a process takes longer
// than any that follow.
func (t *table) pageBuilt(u *upstream, by terms, took time.Duration) {
	if usually := &t.pageTimes[by.app%app(len(t.pageTimes))]; took > 0 && u.warm() {
		if d := usually.or(0); d > 0 {
			u.slowness.add(min(max(int64(asUsual)*int64(took)/d, asUsual/muchSlower), asUsual*muchSlower))
		}
		usually.add(int64(took))
		u.past.pageTime.add(int64(took))
	}
	now := t.now()
	u.builtAt.Store(int64(now))
	t.answered.page(by.path, now)
}

// turn returns how long u was at a page that is ready now and was asked for at a time: it builds one
// after the other.
func (u *upstream) turn(asked, now time.Duration) time.Duration {
	return now - max(asked, time.Duration(u.turnedAt.Swap(int64(now))))
}

// warm says whether u has built a page since it may have been restarted.
func (u *upstream) warm() bool { return u.builtAt.Load() > u.coldSince.Load() }

// isUpstreamsFault says whether a failed dial tells of the upstream. A client that went away and
// our own want of ports, files or memory tell nothing, and neither does a resolver that fails.
func isUpstreamsFault(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	for _, own := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM,
	} {
		if errors.Is(err, own) {
			return false
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.IsNotFound
	}
	return true
}

// joining is that an upstream came into a pool that did not have it.
type joining struct {
	of any // the pool: a source, or the members of a policy without one
	at time.Duration
}

// joined takes note that u came into a pool.
func (u *upstream) joined(of any, now time.Duration) { u.pool.Store(&joining{of, now}) }

// lent takes note that u is in a pool that depends on the request. It may have been elsewhere since the last one.
func (u *upstream) lent(to any, now time.Duration) {
	if j := u.pool.Load(); j == nil || j.of != to || now-j.at > time.Second {
		u.joined(to, now)
	}
}
