// Package cluster holds what makes this Caddy a node among all that share a storage: the drains that operators ask for, what nodes report of
// their upstreams, and the verdict that an upstream is certainly empty. It knows nothing of Caddy: what it needs of that comes in as values.
// Everything exported is safe for concurrent use. Times are on the clock of the table of sessions, which is monotonic.
//
// This file holds the cluster as this process sees it.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

const (
	// nodesFolder is where Caddy's storage keeps the reports of the nodes.
	nodesFolder = Folder + "nodes/"

	// nodeInterval is how often a node reads what the others wrote. So a mark holds everywhere within
	// 5 s, if the storage is not slow.
	nodeInterval = 2 * time.Second

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

// Policy is one by which this Caddy chooses upstreams, as far as nodes tell each other of it. It is told apart from others by ==.
// All but Emit are called with the node locked, from any goroutine: they return at once, and call nothing of the node.
type Policy interface {
	// Pool returns every upstream that the policy knows, in no order. What it returns is the caller's.
	Pool() []PoolMember

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
	Upstream    *sessions.Upstream
	InPool      bool // or it is kept for its sessions
	Unreachable bool // the last connection that the policy's handler tried to make failed

	// Told says whether the handler has told of it yet. The rest is what it says.
	Told        bool
	Healthy     bool // also where nothing was told
	Full        bool // it has its limit of requests
	NumRequests int
	Fails       int
}

// answers says whether an upstream can be reached, as far as is known.
func (m *PoolMember) answers() bool { return !m.Unreachable && m.Healthy }

// Config is what a node needs to know of the process that it is, all of it.
type Config struct {
	Table   *sessions.Table
	Host    string  // of this machine. What is its own, as a loopback address, has this in its name between nodes
	Process Process // that which this is; empty where others shall not look whether it is there

	// StartedAt is when the process began, on the table's clock; 0 for now. Browsers may come back to sessions from before.
	StartedAt time.Duration

	// SessionTTL is how long a session lives without a websocket while no policy says so.
	SessionTTL time.Duration

	// SharedName returns the name between nodes of an upstream, of a machine with the given host.
	SharedName func(name, host string) string

	// Running returns the storage of the config that runs, or nil if none does. It is called with the node locked.
	Running func() Storage

	// Exiting says whether the process is about to end. It is called with the node locked.
	Exiting func() bool

	// Dial tries whether the named upstream can be reached, until ctx ends.
	Dial func(ctx context.Context, name string) error

	Logger *zap.Logger
}

// Cluster is this process among all Caddys that share a storage.
type Cluster struct {
	Config
	ctx   context.Context
	name  string        // a random one
	start time.Duration // when it began, on the table's clock

	storageErrors sessions.Counters // by operation
	events        chan event
	lost          atomic.Int64 // events, since one was last taken

	farewells sync.WaitGroup // of storages that are not used any more

	mu       sync.Mutex                     // guards all below
	shares   []*share                       // the storages of the configs that are loaded
	used     *share                         // the one in use; nil if there is none
	drains   map[string]*drain              // what operators have said, by the upstream's name between nodes
	peers    map[string]*peer               // the other nodes, by their keys in the storage
	verdicts map[*sessions.Upstream]verdict // of the upstreams that drain
	seq      uint64                         // of the last report
	lastTTL  time.Duration                  // what sessionTTL returned last
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

// share is a storage, and the policies of the configs that use it.
type share struct {
	raw     Storage
	st      Storage       // the same, which always answers, its errors counted
	records *lister       // of it
	pools   []Policy      // the oldest first
	read    chan struct{} // closed when it was read once, has not answered for too long, or nobody waits
	first   sync.Once     // closes read
	stop    context.CancelFunc

	writeMu sync.Mutex // held while a report is written: the last one is that of the end

	live      bool                    // a config with it has run: one that is only validated leaves no trace
	firstRead map[string]*drainRecord // as read before the storage was in use
	wrote     uint64                  // the last report that was written to it; 0 if none was
	missing   time.Duration           // since when it does not list that, on the table's clock; 0 if it does, or was not asked
	trusted   bool                    // all was read from it once, that among it: what was read of another storage says nothing of this one
}

// New returns a node that has nothing to tell of yet. When ctx ends, so does all that it does, and the others hear nothing of that:
// as if the process were killed.
func New(ctx context.Context, config Config) *Cluster {
	return &Cluster{
		Config: config, ctx: ctx, name: randomName(), start: cmp.Or(config.StartedAt, config.Table.Now()),
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

// Attach makes the node tell of the upstreams of p, through the given storage. What it returns is
// closed when the marks in that are read, or cannot be within attachTimeout.
func (n *Cluster) Attach(p Policy, st Storage) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.shares, func(sh *share) bool { return Same(sh.raw, st) })
	if i >= 0 {
		sh := n.shares[i]
		sh.pools = append(sh.pools, p)
		return sh.read
	}
	sh := n.share(st)
	sh.pools = []Policy{p}
	n.shares = append(n.shares, sh)
	time.AfterFunc(attachTimeout, func() {
		sh.first.Do(func() {
			n.warnUnread()
			close(sh.read)
		})
	})
	if n.follow(); n.used != sh {
		go n.look(sh)
		go n.watch(sh)
	}
	return sh.read
}

// warnUnread logs that a config begins without the marks in its storage.
func (n *Cluster) warnUnread() {
	n.mu.Lock()
	knows := n.knows
	n.mu.Unlock()
	if knows {
		n.Logger.Warn("the storage does not answer; the drains that this Caddy knew before the reload go on, but others may not be seen (mend the storage)")
		return
	}
	n.Logger.Error("the storage does not answer; upstreams that are marked as draining in what could not be read get new sessions until it does (mend the storage)")
}

// share returns a storage as the node uses it. n.mu is locked.
func (n *Cluster) share(st Storage) *share {
	counting := countingStorage{NewPatientStorage(st, n.isStrange), n.storageErrors, new(sync.Map)}
	records := &lister{st: counting, own: nodeKey(n.name)}
	if n.used != nil && reflect.TypeOf(n.used.raw) == reflect.TypeOf(st) {
		records.way.Store(n.used.records.way.Load()) // a reload makes another one of the kind
	}
	return &share{raw: st, st: counting, records: records, read: make(chan struct{})}
}

// isStrange says whether this node can do without the record at key: with a report of another one missing, nothing is called drained,
// and a mark of an upstream that is in no pool here changes nothing here.
func (n *Cluster) isStrange(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	needed := key == nodeKey(n.name)
	for m := range n.members() {
		needed = needed || m.InPool && drainKey(m.Upstream.Shared) == key
	}
	return !needed
}

// Same says whether two storages are one. A storage module may be made of anything.
func Same(a, b any) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// Detach forgets p, and says whether it was the last one. The storage stays in use while there are sessions
// to tell of.
func (n *Cluster) Detach(p Policy) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, sh := range n.shares {
		sh.pools = slices.DeleteFunc(sh.pools, func(other Policy) bool { return other == p })
	}
	n.follow()
	return !slices.ContainsFunc(n.shares, func(sh *share) bool { return len(sh.pools) > 0 })
}

// follow uses the storage of the config that runs, also if that has no policy: the storage of the one before
// may be closed. It forgets those that no config has. The config before may last for long, and one that is
// loading may fail. When Caddy ends, none runs, and all stays as it is. n.mu is locked.
func (n *Cluster) follow() {
	next, running := n.used, n.Running()
	i := slices.IndexFunc(n.shares, func(sh *share) bool { return running != nil && Same(sh.raw, running) })
	switch {
	case i >= 0:
		next = n.shares[i]
		next.live = true
	case running != nil && next != nil && (next.live || len(next.pools) == 0 && n.sessions() > 0):
		next = n.share(running)
		next.live = true
		n.shares = append(n.shares, next)
	case next == nil || len(next.pools) == 0 && !next.live:
		if i := slices.IndexFunc(n.shares, func(sh *share) bool { return len(sh.pools) > 0 }); i >= 0 {
			next = n.shares[i]
		}
	}
	if next != n.used {
		n.use(next)
	}
	n.prune()
}

// prune forgets the storages that no config has, but for the one in use. n.mu is locked.
func (n *Cluster) prune() {
	n.shares = slices.DeleteFunc(n.shares, func(sh *share) bool {
		over := len(sh.pools) == 0 && sh != n.used
		if over {
			sh.first.Do(func() { close(sh.read) }) // of a config that has failed
		}
		return over
	})
}

// use begins to read and write a storage. n.mu is locked.
func (n *Cluster) use(sh *share) {
	if n.used != nil {
		n.used.halt()
	}
	ctx, cancel := context.WithCancel(n.ctx)
	n.used, sh.stop = sh, cancel
	n.reported, n.parted, n.unheard = 0, false, 0 // nothing is there of this node yet
	n.asked = 0
	n.mergeRecords(sh, sh.firstRead, false, false, nil)
	go n.keepUp(ctx, sh)
	go n.keepTime(ctx, sh)
	go n.raise(ctx)
}

func (sh *share) halt() {
	if sh.stop != nil {
		sh.stop()
		sh.stop = nil
	}
}

// look reads the marks in a storage that will be in use when its config runs.
func (n *Cluster) look(sh *share) {
	for !sh.wasRead() && n.ctx.Err() == nil {
		marks, err := n.loadDrainRecords(n.ctx, sh)
		n.mu.Lock()
		sh.firstRead = marks
		n.mu.Unlock()
		if err == nil {
			sh.first.Do(func() { close(sh.read) })
			return
		}
		time.Sleep(loadInterval)
	}
}

// watch uses a storage as soon as its config runs.
func (n *Cluster) watch(sh *share) {
	for {
		time.Sleep(loadInterval)
		n.mu.Lock()
		over := len(sh.pools) == 0 || n.ctx.Err() != nil
		if !over {
			n.follow()
			over = n.used == sh
		}
		n.mu.Unlock()
		if over {
			return
		}
	}
}

// wasRead says whether the marks were read once, or cannot be.
func (sh *share) wasRead() bool {
	select {
	case <-sh.read:
		return true
	default:
		return false
	}
}

// keepUp reads what the others say and reports, until ctx ends.
func (n *Cluster) keepUp(ctx context.Context, sh *share) {
	for {
		if n.exchange(ctx, sh) {
			sh.first.Do(func() { close(sh.read) })
		}
		if n.retire(ctx, sh) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(n.pause(sh)):
		}
	}
}

// keepTime does what the clock alone brings, until ctx ends: a storage that hangs holds up nothing
// else.
func (n *Cluster) keepTime(ctx context.Context, sh *share) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(n.pause(sh)):
		}
		n.mu.Lock()
		if ctx.Err() == nil { // what has been halted does not begin anew
			n.follow()
		}
		if ctx.Err() == nil {
			now := n.Table.Now()
			n.closeDue(now)
			n.noticeHang(sh, now)
			n.judgeAll(now)
			n.notify()
		}
		n.mu.Unlock()
	}
}

// pause returns how long the node rests now.
func (n *Cluster) pause(sh *share) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !sh.live || !sh.wasRead():
		return loadInterval
	case n.listed == 0 && sh.wrote != 0 && sh.missing == 0:
		return loadInterval // its report is written, and was not looked for yet
	}
	return nodeInterval
}

// exchange reads the marks and what the other nodes report, and then reports in turn: so whoever
// finds its own report heard in another one knows that the other one was made later. It says whether
// all marks were read.
func (n *Cluster) exchange(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	if ctx.Err() == nil { // what has been halted does not begin anew
		n.follow()
	}
	said, began := n.said, n.Table.Now()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return false // another storage is in use
	}
	n.asked, n.askedTo = began, "load"
	n.mu.Unlock()
	marks, errMarks := n.loadDrainRecords(ctx, sh)
	reports, errReports := loadRecords[report](ctx, sh.records, nodesFolder)

	n.mu.Lock()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return false
	}
	now := n.Table.Now()
	n.closeDue(now)
	accounts := sync.OnceValue(func() map[string]account { return n.accounts(now) })
	err := errors.Join(errMarks, errReports, n.crowd(reports))
	n.knows = n.knows || errMarks == nil
	if err == nil {
		n.round = began
	}
	// What a listing lacks is missing only if it shows what is certainly there.
	all := n.findOwn(sh, reports, errReports, began)
	sh.trusted = sh.trusted || all && err == nil
	n.reached = n.reached || len(marks)+len(reports) > 0
	if !all && err == nil && sh.missing != 0 && now-sh.missing > staleTimeout {
		n.storageErrors.Add("list")
		err = errUnlisted
	}
	read := errMarks == nil && said == n.said
	lacking := n.mergeRecords(sh, marks, read, read && all, accounts)
	n.updatePeers(sh, reports, all && errReports == nil, now)
	n.bound(marks, reports, now, accounts)
	n.judgeAll(now)
	n.witness = n.round != 0
	accounts = sync.OnceValue(func() map[string]account { return n.accounts(now) }) // once more: the marks have changed
	r := n.dueReport(sh, now, accounts)
	forgotten, dead := n.forget(now, all && err == nil && said == n.said, accounts)
	if !sh.live || said != n.said {
		lacking, forgotten, dead = nil, nil, nil
	}
	n.askedTo = "store"
	n.mu.Unlock()

	if r != nil {
		err = errors.Join(err, n.write(ctx, sh, r))
	}
	err = errors.Join(err,
		briefly(ctx, lacking, func(ctx context.Context, m *drainRecord) error { return storeAgain(ctx, sh.st, m) }),
		briefly(ctx, dead, func(ctx context.Context, last *report) error {
			return storeRecord(ctx, sh.st, nodeKey(last.Node), last)
		}),
		briefly(ctx, forgotten, func(ctx context.Context, key string) error { return deleteRecord(ctx, sh.st, key) }))
	n.finish(ctx, began, err)
	return errMarks == nil
}

// briefly calls f, which uses the storage, with some things, and begins with none of them when that has taken as long as one call may. The
// next exchange finds what is left, in another order.
func briefly[T any](ctx context.Context, all []T, f func(context.Context, T) error) error {
	ctx, began := oneLook(ctx), time.Now()
	errs := make([]error, len(all))
	severally(len(all), func(i int) {
		if time.Since(began) < callTimeout {
			errs[i] = f(ctx, all[i])
		}
	})
	return few(errs)
}

// errUnlisted is that of a storage in which nodes cannot find each other.
var errUnlisted = errors.New("what this Caddy has reported is not among what the storage lists, so others may be missing there too" +
	" (caddy bokeh storage-check says what it can do)")

// findOwn says whether this node's own report is among those that were read since a time, as it was written last. If it
// is not, it is written once more, and the storage is asked in other ways. One that was written before a reload does not count: it
// may be old, for nothing may be writable since. n.mu is locked.
func (n *Cluster) findOwn(sh *share, reports map[string]*report, err error, began time.Duration) bool {
	own := reports[nodeKey(n.name)]
	switch {
	case own != nil && sh.wrote == 0:
		return false
	case own != nil && own.Seq >= sh.wrote:
		n.listed, sh.missing = began, 0
		return true
	case errors.Is(err, errUnanswered):
		return false // that may be why
	case sh.wrote != 0 && sh.missing == 0:
		sh.missing, n.reported = began, 0
	}
	sh.records.forget()
	return false
}

// write writes a report, unless ctx has ended: then the process may have said already that it is gone.
func (n *Cluster) write(ctx context.Context, sh *share, r *report) error {
	sh.writeMu.Lock()
	defer sh.writeMu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	r.fit()
	began := n.Table.Now()
	err := storeRecord(ctx, sh.st, nodeKey(n.name), r)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parted = r.Left && err == nil
	if err == nil {
		sh.wrote = r.Seq
	}
	switch {
	case n.used != sh: // another storage is in use since
	case err != nil:
		n.unheard = cmp.Or(n.unheard, began)
		n.reported = 0 // it is due, until others can read of this node
	default:
		n.unheard, n.reached = 0, true
	}
	return err
}

// finish takes note of how an exchange has ended that was begun at a time, and wakes who waits.
func (n *Cluster) finish(ctx context.Context, began time.Duration, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	n.asked = 0
	if err == nil && n.Table.Now()-began > staleTimeout {
		err = errHangs // what was read is too old to be of use
	}
	n.noteFailure(err)
	n.notify()
}

// noticeHang takes note of a storage that has not answered for long. n.mu is locked.
func (n *Cluster) noticeHang(sh *share, now time.Duration) {
	if !sh.live || n.asked == 0 || now-n.asked <= staleTimeout {
		return
	}
	n.storageErrors.Add(n.askedTo)
	n.noteFailure(errHangs)
}

// errHangs is that of a storage that does not answer.
var errHangs = fmt.Errorf("the storage has not answered for more than %v", staleTimeout)

// noteFailure logs when the storage begins to fail and when it is well again. n.mu is locked.
func (n *Cluster) noteFailure(err error) {
	switch {
	case err != nil && n.failure != nil && !n.failing:
		// Once may be a file that was replaced while we listed.
		n.failing = true
		n.Logger.Error("the storage fails; traffic goes on as before, but marks made elsewhere may not be seen and no upstream is called drained (mend the storage)",
			zap.Error(err))
	case err == nil && n.failing:
		n.failing = false
		n.Logger.Info("the storage is well again")
	}
	n.failure = err
}

// notify wakes who waits for something to change. n.mu is locked.
func (n *Cluster) notify() {
	close(n.news)
	n.news = make(chan struct{})
}

// retire ends the exchange when there is nothing left to tell of, and says whether it did.
func (n *Cluster) retire(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	idle := ctx.Err() == nil && len(sh.pools) == 0 && n.sessions() == 0
	if idle {
		n.farewells.Add(1)
		sh.halt()
		// All is read again when there is something to tell of.
		n.used, n.knows, n.round, n.listed, n.witness, n.reached, n.asked = nil, false, 0, 0, false, false, 0
		n.prune()
		clear(n.peers)
		for shared := range n.drains {
			n.forgetDrain(shared)
		}
		n.follow() // a config with another storage may be loading
	}
	n.mu.Unlock()
	if idle {
		n.leave(sh)
		n.farewells.Done()
	}
	return idle
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
	_ = within(context.Background(), func(ctx context.Context) error { return n.write(ctx, sh, r) })
}

// Close tells the others that this process ends.
func (n *Cluster) Close() {
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
	n.farewells.Wait()
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
	n.lastTTL = cmp.Or(longest, n.lastTTL, n.SessionTTL)
	return n.lastTTL
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

// dueReport returns the report to be written now, or nil. While something drains the others wait for
// it, and while the process ends. n.mu is locked.
func (n *Cluster) dueReport(sh *share, now time.Duration, accounts func() map[string]account) *report {
	if !sh.live || n.reported != 0 && now-n.reported < reportInterval && !n.somethingDrains() && !n.Exiting() {
		return nil
	}
	n.seq++
	n.known, n.reported = true, now
	return n.makeReport(now, accounts())
}

// somethingDrains says whether an upstream is draining, here or elsewhere. n.mu is locked.
func (n *Cluster) somethingDrains() bool {
	if len(n.verdicts) > 0 {
		return true
	}
	for _, p := range n.peers {
		for _, a := range p.Upstreams {
			if a.Draining && p.gone == 0 {
				return true
			}
		}
	}
	return false
}
