// Package cluster holds what makes this Caddy a node among all that share a storage: the drains that operators ask for, what nodes report of
// their upstreams, and the verdict that an upstream is certainly empty. It knows nothing of Caddy: what it needs of that comes in as values.
// Everything exported is safe for concurrent use. Times are on the clock of the table of sessions, which is monotonic.
//
// This file holds the cluster as this process sees it.
package cluster

import (
	"cmp"
	"context"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

const (
	// nodesFolder is where Caddy's storage keeps the reports of the nodes.
	nodesFolder = Folder + "nodes/"

	// nodeInterval is how often a node reads what the others wrote. So a mark holds everywhere within
	// 5 s, if the storage is not slow.
	nodeInterval = 2 * time.Second

	// judgeInterval is how often it is looked whether an upstream that drains is empty: somebody may wait for that.
	judgeInterval = time.Second

	// loadInterval is the same while the first config is loading: when it runs, the others must know.
	loadInterval = 100 * time.Millisecond

	// killTimeout is how long after it was told so somebody may take to kill a process that is about to end.
	killTimeout = 30 * time.Second

	// reportInterval is how often a node reports while nothing drains.
	reportInterval = 10 * time.Second

	// attachTimeout is how long a config load waits for the storage.
	attachTimeout = 5 * time.Second

	// operatorTimeout is how long an operator waits for the storage, and so does the end of the process.
	operatorTimeout = 5 * time.Second
)

// Cluster is this process among all Caddys that share a storage.
type Cluster struct {
	Config
	loops *loops
	name  string        // a random one
	start time.Duration // when it began, on the table's clock

	storageErrors sessions.Counters // by operation
	events        chan event
	lost          atomic.Int64 // events, since one was last taken

	mu       sync.Mutex                     // guards all below
	shares   []*share                       // the storages of the configs that are loaded
	used     *share                         // the one in use; nil if there is none
	drains   map[string]*drain              // what operators have said, by the upstream's name between nodes
	peers    map[string]*peer               // the other nodes, by their keys in the storage
	verdicts map[*sessions.Upstream]verdict // of the upstreams that drain
	seq      uint64                         // of the last report
	lastTTL  time.Duration                  // what sessionTTL was when a policy went last; 0 if none has
	known    bool                           // others may have read of it
	reported time.Duration                  // when it last wrote a report, on the table's clock; 0 if one is due
	reached  bool                           // one was written, or any record read: a storage that hides its errors may seem to be empty
	parted   bool                           // that said that nobody is there, and that the process may be killed
	unheard  time.Duration                  // since when none could be written, on the table's clock; 0 if the last one could
	awaited  time.Duration                  // when somebody last waited for that, on the table's clock
	knows    bool                           // the marks were read once; what they said holds, whatever becomes of the storage
	round    time.Duration                  // when all was read last; 0 if never
	listed   time.Duration                  // when its own report was last among those read; 0 if never
	witness  bool                           // what begins to drain now begins before our eyes
	asked    time.Duration                  // since when the storage is being read and written; 0 while it is not
	askedTo  string                         // the operation that is under way
	failure  error                          // why that failed since
	failing  bool                           // whether that was logged
	reserved map[string]int                 // upstreams that are just being marked as draining, by name
	turns    map[string]chan struct{}       // closed when one who drains the upstream of that name has done with it
	overfull time.Duration                  // when it was logged last that more was written by others than is remembered, on the table's clock; 0 if never
	said     int                            // how often an operator said something here: what was read before is older
	news     chan struct{}                  // closed when something may have changed

	interrupted chan struct{} // closed when nobody should wait here any longer
	ending      bool          // the process ends, and interrupted stays closed
}

// New returns a node that has nothing to tell of yet, and does nothing before a policy is attached. When ctx ends, so does all that it
// does, and the others hear nothing of that: as if the process were killed.
func New(ctx context.Context, config Config) *Cluster {
	return &Cluster{
		Config: config, loops: newLoops(ctx), name: randomName(), start: cmp.Or(config.StartedAt, config.Table.Now()),
		storageErrors: sessions.NewCounters(operations...), events: make(chan event, maxEvents),
		drains:   make(map[string]*drain),
		peers:    make(map[string]*peer),
		verdicts: make(map[*sessions.Upstream]verdict),
		reserved: make(map[string]int),
		turns:    make(map[string]chan struct{}),
		news:     make(chan struct{}),

		interrupted: make(chan struct{}),
	}
}

// Name returns what others call this node: a random name, another one for each process.
func (n *Cluster) Name() string { return n.name }

// StorageErrors returns how often the storage has failed, by what was tried: load, list, store, delete.
func (n *Cluster) StorageErrors() sessions.Counters { return n.storageErrors }

// notify wakes who waits for something to change. n.mu is locked.
func (n *Cluster) notify() {
	close(n.news)
	n.news = make(chan struct{})
}

// sessions returns how many sessions this process has.
func (n *Cluster) sessions() (sum int64) {
	n.Table.Each(func(u *sessions.Upstream) { sum += u.Slots.Sessions.Load() })
	return sum
}

// leave tells the others that this process ends, as far as that is possible in short.
func (n *Cluster) leave(sh *share) {
	n.mu.Lock()
	if !n.known {
		n.mu.Unlock()
		return
	}
	n.seq++
	now := n.Table.Now()
	r := n.makeReport(now, n.accounts(now))
	r.Left = true
	n.known, n.reported = false, 0
	n.mu.Unlock()
	_ = n.within(context.Background(), func(ctx context.Context) error { return n.write(ctx, sh, r) })
}

// Close tells the others that this process ends, and ends all that the node does: when it returns, no goroutine of it is left but those
// in calls that a storage does not answer. It takes no longer than an operator waits. Once is enough, and more often does no harm.
func (n *Cluster) Close() {
	began := time.Now()
	n.mu.Lock()
	last := n.used
	if last != nil {
		last.halt()
	}
	if !n.ending {
		n.ending = true
		close(n.interrupted)
	}
	n.mu.Unlock()
	if last != nil {
		n.leave(last)
	}
	n.loops.end(operatorTimeout - time.Since(began))
}

// ServersStopped is called when the servers of a config have stopped and its storage is open yet.
func (n *Cluster) ServersStopped() {
	if n.Exiting() {
		n.Close()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.follow() // before that storage is closed
}

// Active returns an error where the node has no storage, and so nothing to tell.
func (n *Cluster) Active() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.used == nil {
		return api.ErrNoPolicy
	}
	return nil
}

// activeShare returns the storage in use.
func (n *Cluster) activeShare() (*share, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.follow(); n.used == nil {
		return nil, api.ErrNoPolicy
	}
	return n.used, nil
}

// sessionTTL returns how long a session lives without a socket, in the policy where that is longest; when
// the last policy has gone, its sessions have not. n.mu is locked.
func (n *Cluster) sessionTTL() (longest time.Duration) {
	for p := range n.policies() {
		longest = max(longest, p.SessionTTL())
	}
	return cmp.Or(longest, n.lastTTL, n.SessionTTL)
}

// policies are those of all configs. n.mu is locked.
func (n *Cluster) policies() iter.Seq[Policy] {
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

// members are the upstreams of all policies. n.mu is locked.
func (n *Cluster) members() iter.Seq[*PoolMember] {
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
