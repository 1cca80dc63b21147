// Package sessions holds the live sessions, the load of each upstream and what is known of it. It outlives configs, because sessions do:
// a reload changes nothing about where documents live. It knows nothing of Caddy.
//
// Times are on the clock of a [Table], which is monotonic and begins with the process. Everything exported is safe for concurrent use.
//
// This file holds the table.
package sessions

import (
	"crypto/rand"
	"crypto/sha256"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
)

// tableShards keeps requests for different sessions off each other's locks.
const tableShards = 64

// Key stands for a session id in the table. Ids are capabilities and can be long: the
// table keeps neither them nor anything that an id could be guessed from.
type Key [16]byte

// App is the app that a session belongs to, as visitors name it: a hash of the site's host, the port that
// it was asked at, and a path.
type App uint64

// Terms are what a session is counted by.
type Terms struct {
	Lifetime time.Duration // without a socket
	App      App
	Path     App // the same, at whatever host
	Owner    any // through which it is asked for; compared, and never looked into
}

// Table holds every live session of this process and the load of every upstream.
type Table struct {
	salt   [16]byte
	seed   maphash.Seed // of apps
	start  time.Time
	shards [tableShards]shard

	sharedName func(name string) string
	labels     Labels
	Waiting    *admission.Queue

	pageTimes [1 << 10]average // by app; two that share one are taken for one
	Addresses Addresses

	mu        sync.Mutex           // guards all below
	upstreams map[string]*Upstream // by name
}

// shard is a part of the table under a lock of its own.
type shard struct {
	mu       sync.Mutex       // guards sessions, and all in them
	sessions map[Key]*session // the last used of an id; others hang behind it
}

// Labels are what upstreams count by.
type Labels struct{ Decisions, MoveReasons, HedgeOutcomes []string }

// NewTable returns an empty table, whose upstreams have a name between nodes, and count by some labels.
func NewTable(sharedName func(name string) string, by Labels) *Table {
	t := &Table{
		sharedName: sharedName, labels: by,
		seed: maphash.MakeSeed(), start: time.Now(),
		upstreams: make(map[string]*Upstream),
		Waiting:   admission.NewQueue(),
	}
	rand.Read(t.salt[:])
	for i := range t.shards {
		t.shards[i].sessions = make(map[Key]*session)
	}
	return t
}

// Now is the table's clock. It starts at 1 so that 0 can mean never.
func (t *Table) Now() time.Duration { return time.Since(t.start) + 1 }

// Hash stands for a text as long as this process runs. Nobody outside can find two that are alike.
func (t *Table) Hash(text string) uint64 { return maphash.String(t.seed, text) }

// Key returns the key of a session id.
func (t *Table) Key(id string) Key {
	var room [128]byte
	sum := sha256.Sum256(append(append(room[:0], t.salt[:]...), id...))
	return Key(sum[:16])
}

// App returns what stands for the app at a path of a host. A client can say any host, but not at which port it is asked.
func (t *Table) App(host string, port int, path string) App {
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteString(host)
	maphash.WriteComparable(&h, port)
	h.WriteString(path)
	return App(h.Sum64())
}

// shard returns the shard that holds k.
func (t *Table) shard(k Key) *shard { return &t.shards[k[0]%tableShards] }

// Hold returns the upstream with the given name and keeps it until it is released.
func (t *Table) Hold(name string) *Upstream {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.upstreams[name]
	if u == nil {
		u = &Upstream{Name: name, Shared: t.sharedName(name)}
		u.Slots.Lot = maphash.Comparable(t.seed, u)
		u.History = &History{Selected: NewCounters(t.labels.Decisions...), Moved: NewCounters(t.labels.MoveReasons...), Hedged: NewCounters(t.labels.HedgeOutcomes...)}
		t.upstreams[name] = u
	}
	u.holders.Add(1)
	return u
}

// Knows says whether somebody holds the named upstream, other than one who has it already.
func (t *Table) Knows(name string, already *Upstream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.upstreams[name]
	return u != nil && (u != already || u.holders.Load() > 1)
}

// SessionsAt returns how many sessions the named upstream has.
func (t *Table) SessionsAt(name string) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u := t.upstreams[name]; u != nil {
		return u.Slots.Sessions.Load()
	}
	return 0
}

// retain holds u once more. It returns another one of the same name if u was forgotten meanwhile.
func (t *Table) retain(u *Upstream) *Upstream {
	for n := u.holders.Load(); n > 0; n = u.holders.Load() {
		if u.holders.CompareAndSwap(n, n+1) {
			return u
		}
	}
	return t.Hold(u.Name)
}

// Release takes back one hold.
func (t *Table) Release(u *Upstream) {
	if u.holders.Add(-1) > 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.holders.Load() == 0 && t.upstreams[u.Name] == u {
		delete(t.upstreams, u.Name)
	}
}

// Sighting is what is known of a session when it is looked for. It may have ended since.
type Sighting struct {
	At        *Upstream
	Owner     any           // through which it was asked for last
	App       App           // that it belongs to
	StartedAt time.Duration // on the table's clock
	IsGuess   bool          // nobody has ever had it, and nobody waits for it: its server may have made it
}

// Find calls yield with each live session with the key, the last used first. It must not call back into the table.
func (t *Table) Find(k Key, yield func(Sighting)) {
	sh := t.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for s := sh.sessions[k]; s != nil; s = s.next {
		yield(Sighting{s.at, s.owner, s.app, s.startedAt, s.isGuess()})
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

// Oldest returns when the oldest session of each upstream began, on the table's clock. It holds up
// requests for one shard at a time.
func (t *Table) Oldest() map[*Upstream]time.Duration {
	oldest := make(map[*Upstream]time.Duration)
	for i := range t.shards {
		t.shards[i].oldest(oldest)
	}
	return oldest
}

func (sh *shard) oldest(oldest map[*Upstream]time.Duration) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, s := range sh.sessions {
		for ; s != nil; s = s.next {
			if began, ok := oldest[s.at]; !ok || s.startedAt < began {
				oldest[s.at] = s.startedAt
			}
		}
	}
}

// Size returns how many sessions are live, and how many upstreams somebody holds.
func (t *Table) Size() (sessions, upstreams int) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for _, s := range sh.sessions {
			for ; s != nil; s = s.next {
				sessions++
			}
		}
		sh.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return sessions, len(t.upstreams)
}

// Each calls yield with every upstream that somebody holds.
func (t *Table) Each(yield func(*Upstream)) {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.upstreams))
	t.mu.Unlock()
	for _, u := range all {
		yield(u)
	}
}
