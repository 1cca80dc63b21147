// This file holds the node: this Caddy among all that share its storage.

package caddybokeh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

const (
	// nodesFolder is where Caddy's storage keeps the reports of the nodes.
	nodesFolder = folder + "nodes/"

	// nodePause is how often a node reads what the others wrote. So a mark holds everywhere within
	// 5 s, if the storage is not slow.
	nodePause = 2 * time.Second

	// loadPause is the same while the first config is loading: when it runs, the others must know.
	loadPause = 100 * time.Millisecond

	// killRest is how long after it was told so somebody may take to kill a process that is about to end.
	killRest = 30 * time.Second

	// quietPause is how often a node reports while nothing drains.
	quietPause = 10 * time.Second

	// operatorWait is how long an operator waits for the storage, and so does the end of the process.
	operatorWait = 5 * time.Second
)

// pool is what a node needs to know of a policy.
type pool interface {
	// each calls yield with every upstream that the policy knows, and whether it is in its pool.
	each(yield func(m *member, inPool bool))

	// knowsPool says whether all upstreams of its pool are known.
	knowsPool() bool

	// stampKeys returns the keys of its stamps, if it has them already.
	stampKeys() stamp.Keyring

	// settles returns how long a session lives without a socket.
	settles() time.Duration

	// emit raises an event. What subscribes to it runs meanwhile.
	emit(name string, data map[string]any)
}

// node is this process among all Caddys that share a storage.
type node struct {
	name    string
	host    string
	process process
	t       *sessions.Table
	start   time.Duration        // when it began, on the table's clock
	config  func() recordStorage // the storage of the config that runs; nil if none does
	exiting func() bool          // whether the process is about to end
	logger  *zap.Logger

	storageErrors sessions.Counters // by operation
	events        chan event
	lost          atomic.Int64 // events, since one was last taken

	farewells sync.WaitGroup // of storages that are not used any more

	mu       sync.Mutex                     // guards all below
	shares   []*share                       // the storages of the configs that are loaded
	used     *share                         // the one in use; nil if there is none
	marked   map[string]*marked             // what operators have said, by the upstream's name between nodes
	peers    map[string]*peer               // the other nodes, by their keys in the storage
	verdicts map[*sessions.Upstream]verdict // of the upstreams that drain
	seq      uint64                         // of the last report
	settled  time.Duration                  // what settles returned last
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
	pending  map[string]int                 // upstreams that are just being marked as draining, by name
	turns    map[string]chan struct{}       // closed when one who drains the upstream of that name has done with it
	overfull time.Duration                  // when it was logged last that more was written by others than is remembered, on the table's clock; 0 if never
	said     int                            // how often an operator said something here: what was read before is older
	news     chan struct{}                  // closed when something may have changed

	interrupted chan struct{} // closed when nobody should wait here any longer
	ending      bool          // the process ends, and interrupted stays closed
}

// share is a storage, and the policies of the configs that use it.
type share struct {
	raw     recordStorage
	st      recordStorage // the same, which always answers, its errors counted
	records *lister       // of it
	pools   []pool        // the oldest first
	read    chan struct{} // closed when it was read once, has not answered for too long, or nobody waits
	first   sync.Once     // closes read
	stop    context.CancelFunc

	pen sync.Mutex // held while a report is written: the last one is that of the end

	live    bool             // a config with it has run: one that is only validated leaves no trace
	marks   map[string]*mark // as read before the storage was in use
	wrote   uint64           // the last report that was written to it; 0 if none was
	missing time.Duration    // since when it does not list that, on the table's clock; 0 if it does, or was not asked
	trusted bool             // all was read from it once, that among it: what was read of another storage says nothing of this one
}

func newNode(t *sessions.Table, config func() recordStorage, logger *zap.Logger) *node {
	return &node{
		name: randomName(), host: hostname(), process: thisProcess(),
		t: t, start: t.Now(), config: config, exiting: caddy.Exiting, logger: logger,
		storageErrors: sessions.NewCounters(operations...), events: make(chan event, maxEvents),
		marked:   make(map[string]*marked),
		peers:    make(map[string]*peer),
		verdicts: make(map[*sessions.Upstream]verdict),
		pending:  make(map[string]int),
		turns:    make(map[string]chan struct{}),
		news:     make(chan struct{}),

		interrupted: make(chan struct{}),
	}
}

// attach makes the node tell of the upstreams of p, through the given storage. What it returns is
// closed when the marks in that are read, or cannot be within storageWait.
func (n *node) attach(p pool, st recordStorage) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.shares, func(sh *share) bool { return same(sh.raw, st) })
	if i >= 0 {
		sh := n.shares[i]
		sh.pools = append(sh.pools, p)
		return sh.read
	}
	sh := n.share(st)
	sh.pools = []pool{p}
	n.shares = append(n.shares, sh)
	time.AfterFunc(storageWait, func() {
		sh.first.Do(func() {
			n.tellUnread()
			close(sh.read)
		})
	})
	if n.follow(); n.used != sh {
		go n.look(sh)
		go n.watch(sh)
	}
	return sh.read
}

// tellUnread logs that a config begins without the marks in its storage.
func (n *node) tellUnread() {
	n.mu.Lock()
	knows := n.knows
	n.mu.Unlock()
	if knows {
		n.logger.Warn("the storage does not answer; the drains that this Caddy knew before the reload go on, but others may not be seen (mend the storage)")
		return
	}
	n.logger.Error("the storage does not answer; upstreams that are marked as draining in what could not be read get new sessions until it does (mend the storage)")
}

// share returns a storage as the node uses it. n.mu is locked.
func (n *node) share(st recordStorage) *share {
	counting := countingStorage{newPromptStorage(st, n.isStrange), n.storageErrors, new(sync.Map)}
	records := &lister{st: counting, own: nodeKey(n.name)}
	if n.used != nil && reflect.TypeOf(n.used.raw) == reflect.TypeOf(st) {
		records.way.Store(n.used.records.way.Load()) // a reload makes another one of the kind
	}
	return &share{raw: st, st: counting, records: records, read: make(chan struct{})}
}

// isStrange says whether this node can do without the record at key: with a report of another one missing, nothing is called drained,
// and a mark of an upstream that is in no pool here changes nothing here.
func (n *node) isStrange(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	needed := key == nodeKey(n.name)
	n.eachPool(func(p pool) {
		p.each(func(m *member, inPool bool) { needed = needed || inPool && markKey(m.Shared) == key })
	})
	return !needed
}

// same says whether two storages are one. A storage module may be made of anything.
func same(a, b any) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// detach forgets p, and says whether it was the last one. The storage stays in use while there are sessions
// to tell of.
func (n *node) detach(p pool) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, sh := range n.shares {
		sh.pools = slices.DeleteFunc(sh.pools, func(other pool) bool { return other == p })
	}
	n.follow()
	return !slices.ContainsFunc(n.shares, func(sh *share) bool { return len(sh.pools) > 0 })
}

// follow uses the storage of the config that runs, also if that has no policy: the storage of the one before
// may be closed. It forgets those that no config has. The config before may last for long, and one that is
// loading may fail. When Caddy ends, none runs, and all stays as it is. n.mu is locked.
func (n *node) follow() {
	next, running := n.used, n.config()
	i := slices.IndexFunc(n.shares, func(sh *share) bool { return running != nil && same(sh.raw, running) })
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
func (n *node) prune() {
	n.shares = slices.DeleteFunc(n.shares, func(sh *share) bool {
		over := len(sh.pools) == 0 && sh != n.used
		if over {
			sh.first.Do(func() { close(sh.read) }) // of a config that has failed
		}
		return over
	})
}

// use begins to read and write a storage. n.mu is locked.
func (n *node) use(sh *share) {
	if n.used != nil {
		n.used.halt()
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.used, sh.stop = sh, cancel
	n.reported, n.parted, n.unheard = 0, false, 0 // nothing is there of this node yet
	n.asked = 0
	n.take(sh, sh.marks, false, false, nil)
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
func (n *node) look(sh *share) {
	for !sh.wasRead() {
		marks, err := n.loadMarks(context.Background(), sh)
		n.mu.Lock()
		sh.marks = marks
		n.mu.Unlock()
		if err == nil {
			sh.first.Do(func() { close(sh.read) })
			return
		}
		time.Sleep(loadPause)
	}
}

// watch uses a storage as soon as its config runs.
func (n *node) watch(sh *share) {
	for {
		time.Sleep(loadPause)
		n.mu.Lock()
		over := len(sh.pools) == 0
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
func (n *node) keepUp(ctx context.Context, sh *share) {
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
func (n *node) keepTime(ctx context.Context, sh *share) {
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
			now := n.t.Now()
			n.closeDue(now)
			n.noticeHang(sh, now)
			n.judgeAll(now)
			n.tell()
		}
		n.mu.Unlock()
	}
}

// pause returns how long the node rests now.
func (n *node) pause(sh *share) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !sh.live || !sh.wasRead():
		return loadPause
	case n.listed == 0 && sh.wrote != 0 && sh.missing == 0:
		return loadPause // its report is written, and was not looked for yet
	}
	return nodePause
}

// exchange reads the marks and what the other nodes report, and then reports in turn: so whoever
// finds its own report heard in another one knows that the other one was made later. It says whether
// all marks were read.
func (n *node) exchange(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	if ctx.Err() == nil { // what has been halted does not begin anew
		n.follow()
	}
	said, began := n.said, n.t.Now()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return false // another storage is in use
	}
	n.asked, n.askedTo = began, "load"
	n.mu.Unlock()
	marks, errMarks := n.loadMarks(ctx, sh)
	reports, errReports := loadRecords[report](ctx, sh.records, nodesFolder)

	n.mu.Lock()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return false
	}
	now := n.t.Now()
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
	if !all && err == nil && sh.missing != 0 && now-sh.missing > staleAfter {
		n.storageErrors.Add("list")
		err = errUnlisted
	}
	read := errMarks == nil && said == n.said
	lacking := n.take(sh, marks, read, read && all, accounts)
	n.hear(sh, reports, all && errReports == nil, now)
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
		briefly(ctx, lacking, func(ctx context.Context, m *mark) error { return storeAgain(ctx, sh.st, m) }),
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
		if time.Since(began) < callWait {
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
func (n *node) findOwn(sh *share, reports map[string]*report, err error, began time.Duration) bool {
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
func (n *node) write(ctx context.Context, sh *share, r *report) error {
	sh.pen.Lock()
	defer sh.pen.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	r.fit()
	began := n.t.Now()
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
func (n *node) finish(ctx context.Context, began time.Duration, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	n.asked = 0
	if err == nil && n.t.Now()-began > staleAfter {
		err = errHangs // what was read is too old to be of use
	}
	n.tellFailure(err)
	n.tell()
}

// noticeHang takes note of a storage that has not answered for long. n.mu is locked.
func (n *node) noticeHang(sh *share, now time.Duration) {
	if !sh.live || n.asked == 0 || now-n.asked <= staleAfter {
		return
	}
	n.storageErrors.Add(n.askedTo)
	n.tellFailure(errHangs)
}

// errHangs is that of a storage that does not answer.
var errHangs = fmt.Errorf("the storage has not answered for more than %v", staleAfter)

// tellFailure logs when the storage begins to fail and when it is well again. n.mu is locked.
func (n *node) tellFailure(err error) {
	switch {
	case err != nil && n.failure != nil && !n.failing:
		// Once may be a file that was replaced while we listed.
		n.failing = true
		n.logger.Error("the storage fails; traffic goes on as before, but marks made elsewhere may not be seen and no upstream is called drained (mend the storage)",
			zap.Error(err))
	case err == nil && n.failing:
		n.failing = false
		n.logger.Info("the storage is well again")
	}
	n.failure = err
}

// tell wakes who waits for something to change. n.mu is locked.
func (n *node) tell() {
	close(n.news)
	n.news = make(chan struct{})
}

// retire ends the exchange when there is nothing left to tell of, and says whether it did.
func (n *node) retire(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	idle := ctx.Err() == nil && len(sh.pools) == 0 && n.sessions() == 0
	if idle {
		n.farewells.Add(1)
		sh.halt()
		// All is read again when there is something to tell of.
		n.used, n.knows, n.round, n.listed, n.witness, n.reached, n.asked = nil, false, 0, 0, false, false, 0
		n.prune()
		clear(n.peers)
		for shared := range n.marked {
			n.unset(shared)
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
func (n *node) sessions() (sum int64) {
	n.t.Each(func(u *sessions.Upstream) { sum += u.Slots.Sessions.Load() })
	return sum
}

// leave tells the others that this process ends, as far as that is possible in short.
func (n *node) leave(sh *share) {
	n.mu.Lock()
	if !n.known {
		n.mu.Unlock()
		return
	}
	n.seq++
	now := n.t.Now()
	r := n.makeReport(now, n.accounts(now))
	r.Left = true
	n.known, n.reported = false, 0
	n.mu.Unlock()
	_ = within(context.Background(), func(ctx context.Context) error { return n.write(ctx, sh, r) })
}

// exit tells the others that this process ends.
func (n *node) exit() {
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

// serversStopped is called when the servers of a config have stopped and its storage is open yet.
func (n *node) serversStopped() {
	if n.exiting() {
		n.exit()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.follow() // before that storage is closed
}

// storage returns the storage in use.
func (n *node) storage() (*share, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.follow(); n.used == nil {
		return nil, api.ErrNoPolicy
	}
	return n.used, nil
}

// settles returns how long a session lives without a socket, in the policy where that is longest; when
// the last policy has gone, its sessions have not. n.mu is locked.
func (n *node) settles() (longest time.Duration) {
	n.eachPool(func(p pool) { longest = max(longest, p.settles()) })
	n.settled = cmp.Or(longest, n.settled, defaultUnusedSessionLifetime+defaultCheckUnusedSessions)
	return n.settled
}

// eachPool calls yield with every policy. n.mu is locked.
func (n *node) eachPool(yield func(pool)) {
	for _, sh := range n.shares {
		for _, p := range sh.pools {
			yield(p)
		}
	}
}

// dueReport returns the report to be written now, or nil. While something drains the others wait for
// it, and while the process ends. n.mu is locked.
func (n *node) dueReport(sh *share, now time.Duration, accounts func() map[string]account) *report {
	if !sh.live || n.reported != 0 && now-n.reported < quietPause && !n.somethingDrains() && !n.exiting() {
		return nil
	}
	n.seq++
	n.known, n.reported = true, now
	return n.makeReport(now, accounts())
}

// somethingDrains says whether an upstream is draining, here or elsewhere. n.mu is locked.
func (n *node) somethingDrains() bool {
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
