// This file holds what a node knows. Whoever uses it has the lock of the cluster; nothing here waits or reads a storage; what is to happen later it leaves to timers.

package cluster

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// state is what a node knows. Its methods assume the lock. All times are on the table's clock.
type state struct {
	identity
	*publisher

	attached
	merged
	reading
	reporting
	reservations
	waiting

	later func(d time.Duration, f func()) // calls f in a while, with the lock
}

// identity is who a node is. It never changes.
type identity struct {
	conf          Config
	name          string // a random one
	clock         string // tells the clock of this machine from others
	start         time.Duration
	storageErrors sessions.Counters // by operation; they count by themselves
}

// attached are the configs of this process.
type attached struct {
	shares  []*share      // the storages of the configs that are loaded
	used    *share        // the one in use; nil if there is none
	lastTTL time.Duration // the longest that sessionTTL was when policies went, since one came last; 0 if none has gone
}

// merged is what was read of the storage and said here, and what follows from that.
type merged struct {
	drains   map[string]*drain               // what operators have said, by the upstream's name between nodes
	peers    map[string]*peer                // the other nodes, by their keys in the storage
	verdicts map[*sessions.Upstream]judgment // of the upstreams that drain
	said     int                             // how often an operator said something here: what was read before is older
	overfull time.Duration                   // when it was logged last that more was written by others than is remembered; 0 if never
}

// reading is how the storage could be read and used.
type reading struct {
	reached bool          // a report was written, or any record read: a storage that hides its errors may seem to be empty
	knows   bool          // the drain records were read once; what they said holds, whatever becomes of the storage
	round   time.Duration // when all was read last; 0 if never
	listed  time.Duration // when its own report was last among those read; 0 if never
	witness bool          // what begins to drain now begins before our eyes
	asked   time.Duration // since when the storage is being read and written; 0 while it is not
	askedTo string        // the operation that is under way
	failure error         // why that failed since
	failing bool          // whether that was logged
}

// reporting is what the others could read of this node.
type reporting struct {
	seq      uint64        // of the last report
	known    bool          // others may have read of it
	reported time.Duration // when it last wrote a report; 0 if one is due
	unheard  time.Duration // since when none could be written; 0 if the last one could
	awaited  time.Duration // when somebody last waited until the process may be killed
	parted   bool          // the last report said that it may be
}

// reservations are of those who are just draining upstreams, by name.
type reservations struct {
	reserved map[string]int           // how many are
	turns    map[string]chan struct{} // closed when one who may take the drain back has done with it
}

// waiting is what those are told by who wait.
type waiting struct {
	news        chan struct{} // closed when something may have changed
	interrupted chan struct{} // closed when nobody should wait here any longer
	ending      bool          // the process ends, and interrupted stays closed
}

func newState(config Config) state {
	return state{
		identity: identity{
			conf: config, name: store.RandomName(), clock: cmp.Or(config.Process.Boot, config.Host), start: cmp.Or(config.StartedAt, config.Table.Now()),
			storageErrors: sessions.NewCounters(store.Operations...),
		},
		publisher:    &publisher{events: make(chan event, maxEvents), logger: config.Logger},
		merged:       merged{drains: make(map[string]*drain), peers: make(map[string]*peer), verdicts: make(map[*sessions.Upstream]judgment)},
		reservations: reservations{reserved: make(map[string]int), turns: make(map[string]chan struct{})},
		waiting:      waiting{news: make(chan struct{}), interrupted: make(chan struct{})},
	}
}

// notify wakes who waits for something to change.
func (n *state) notify() {
	close(n.news)
	n.news = make(chan struct{})
}

// sessions returns how many sessions this process has.
func (n *state) sessions() (sum int64) {
	n.conf.Table.Each(func(u *sessions.Upstream) { sum += u.Slots.Sessions.Load() })
	return sum
}

// sessionTTL returns how long a session lives without a socket, in the policy where that is longest; when
// the last policy has gone, its sessions have not.
func (n *state) sessionTTL() (longest time.Duration) {
	for p := range n.policies() {
		longest = max(longest, p.SessionTTL())
	}
	return cmp.Or(longest, n.lastTTL, n.conf.SessionTTL)
}

// policies are those of all configs.
func (n *state) policies() iter.Seq[Policy] {
	return func(yield func(Policy) bool) {
		for _, sh := range n.shares {
			for _, p := range sh.pools {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// members are the upstreams of all policies.
func (n *state) members() iter.Seq[*PoolMember] {
	return func(yield func(*PoolMember) bool) {
		for p := range n.policies() {
			pool := p.Pool()
			for i := range pool {
				if !yield(&pool[i]) {
					return
				}
			}
		}
	}
}

// sharedName returns the name between nodes of an upstream of this process.
func (n *state) sharedName(name string) string { return n.conf.SharedName(name, n.conf.Host) }

// here returns the name in this process of an upstream that nodes call by its shared name, or
// nothing if it is another machine's.
func (n *state) here(shared string) string {
	// Only what belongs to a machine has the machine's name with it.
	i := strings.LastIndex(shared, "@")
	switch {
	case i < 0:
		return shared
	case shared[i+1:] == n.conf.Host:
		return shared[:i]
	}
	return ""
}

// mayName says whether a name between nodes is that of one upstream alone: without the host, that of one which belongs to a machine
// would be a second name of ours, under which it drains and cannot be undrained.
func (n *state) mayName(shared string) bool {
	name := n.here(shared)
	return name == "" || n.sharedName(name) == shared
}

// peersByName returns the peers in the order of their names.
func (n *state) peersByName() (peers []*peer) {
	for _, key := range slices.Sorted(maps.Keys(n.peers)) {
		peers = append(peers, n.peers[key])
	}
	return peers
}

// drainOf returns what holds u because an operator drains it, or did until a moment ago; or nil.
func (n *state) drainOf(u *sessions.Upstream) *drain {
	if md := n.drains[u.Shared]; md != nil && md.u == u {
		return md
	}
	return nil
}

// recordOf returns what an operator has said last of u, which drains for that or did until a moment ago; or nil.
func (n *state) recordOf(u *sessions.Upstream) *record.Drain {
	if md := n.drainOf(u); md != nil {
		return md.Drain
	}
	return nil
}

// drainsOn says whether u drains, and not only for the moment for which a drain goes on that was taken back.
func (n *state) drainsOn(u *sessions.Upstream) bool {
	md := n.drainOf(u)
	return u.Drain.On() && (u.Drain.ByConfig() || md == nil || md.opensAt == 0)
}
