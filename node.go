// This file holds what this Caddy, a node, tells the others that share its storage, and what it hears from them.

package caddybokeh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// nodesFolder is where Caddy's storage keeps the reports of the nodes.
	nodesFolder = folder + "nodes/"

	// nodePause is how often a node reads what the others wrote. So a mark holds everywhere within
	// 5 s, if the storage is not slow.
	nodePause = 2 * time.Second

	// quietPause is how often a node reports while nothing drains.
	quietPause = 10 * time.Second

	// overdueAfter is when a node is missed whose report does not change.
	overdueAfter = 30 * time.Second

	// givenUpAfter is when a node that is missed is taken for dead. It may be cut off from the storage
	// and well otherwise, so this is long.
	givenUpAfter = time.Hour

	// lonelyFor is how long an upstream is in no pool until what was said of it is forgotten, so that
	// the next server at its address is ready.
	lonelyFor = 10 * time.Minute

	// operatorWait is how long an operator waits for the storage, and so does the end of the process.
	operatorWait = 5 * time.Second
)

// report is what a node tells of itself.
type report struct {
	Node    string  `json:"node"` // a random name for each process
	Host    string  `json:"host"`
	Process process `json:"process"`

	Seq     uint64            `json:"seq"`             // counts its reports
	Heard   map[string]uint64 `json:"heard,omitempty"` // the last report of each other node that it had read before it made this one
	Settles time.Duration     `json:"settles"`         // how long browsers come back to sessions that it had
	Settled bool              `json:"settled"`         // whether it is up for longer than that
	Left    bool              `json:"left,omitempty"`  // whether this is its last report

	Upstreams map[string]account `json:"upstreams"` // by their names between nodes
}

// account is what a node tells of an upstream.
type account struct {
	InPool   bool     `json:"in_pool,omitempty"`
	Draining bool     `json:"draining,omitempty"`
	Mark     string   `json:"mark,omitempty"` // the id of the mark that it has read
	Sessions counts   `json:"sessions"`
	Begun    int64    `json:"begun"`            // sessions so far, so that none is overlooked between two reports
	Ended    int64    `json:"ended,omitempty"`  // in the last five minutes
	Oldest   float64  `json:"oldest,omitempty"` // age of its oldest session in seconds
	Keys     []string `json:"keys,omitempty"`   // fingerprints of those that sign its stamps
}

// counts are sessions by what they are doing.
type counts struct {
	Building  int64 `json:"building"`
	Waiting   int64 `json:"waiting"`
	Connected int64 `json:"connected"`
	Unused    int64 `json:"unused"`
}

func (c counts) all() int64 { return c.Building + c.Waiting + c.Connected + c.Unused }

func (c counts) plus(d counts) counts {
	return counts{c.Building + d.Building, c.Waiting + d.Waiting, c.Connected + d.Connected, c.Unused + d.Unused}
}

// pool is what a node needs to know of a policy.
type pool interface {
	// each calls yield with every upstream that the policy knows, and whether it is in its pool.
	each(yield func(m *member, inPool bool))

	// stampKeys returns the keys of its stamps.
	stampKeys() *keyring

	// settles returns how long a session lives without a socket.
	settles() time.Duration
}

// node is this process among all Caddys that share a storage.
type node struct {
	name    string
	host    string
	process process
	t       *table
	start   time.Duration // when it began, on the table's clock
	running func() bool   // whether a config runs: one that is only validated leaves no trace
	logger  *zap.Logger

	mu       sync.Mutex            // guards all below
	shares   []*share              // the storages of the configs that are loaded, the newest last
	marked   map[string]*marked    // what operators have said, by the upstream's name between nodes
	peers    map[string]*peer      // the other nodes, by their keys in the storage
	verdicts map[*upstream]verdict // of the upstreams that drain
	seq      uint64                // of the last report
	reported time.Duration         // when that was written, on the table's clock; 0 if never
	round    time.Duration         // when all was read last
	failure  error                 // why that failed since
	said     int                   // how often an operator said something here: what was read before is older
	news     chan struct{}         // closed when something may have changed
}

// share is a storage, and the policies of the configs that use it.
type share struct {
	st    recordStorage
	pools map[pool]bool
	read  chan struct{} // closed when it was read once, or has not answered for too long
	first sync.Once     // closes read
	stop  context.CancelFunc
}

// marked is an upstream that an operator has said something of.
type marked struct {
	*mark
	u      *upstream     // held while it drains; nil where it is another machine's
	lonely time.Duration // since when it is in no pool, on the table's clock; 0 if it is in one
}

// peer is another node as its reports show it.
type peer struct {
	*report
	changed  time.Duration // when its report changed last, on our table's clock: the clocks of two nodes are never compared
	gone     time.Duration // when it was found to be gone; 0 if it may be alive
	strayKey bool          // it was logged that it signs with a key that we cannot verify
}

func newNode(t *table, running func() bool, logger *zap.Logger) *node {
	host, _ := os.Hostname()
	return &node{
		name: randomName(), host: host, process: thisProcess(),
		t: t, start: t.now(), running: running, logger: logger,
		marked:   make(map[string]*marked),
		peers:    make(map[string]*peer),
		verdicts: make(map[*upstream]verdict),
		news:     make(chan struct{}),
	}
}

// attach makes the node tell of the upstreams of p, through the given storage. What it returns is
// closed when the marks in that are read, or cannot be within storageWait.
func (n *node) attach(p pool, st recordStorage) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	var sh *share
	if i := slices.IndexFunc(n.shares, func(sh *share) bool { return same(sh.st, st) }); i >= 0 {
		sh = n.shares[i]
	} else {
		sh = &share{st: st, pools: make(map[pool]bool), read: make(chan struct{})}
		n.shares = append(n.shares, sh)
		time.AfterFunc(storageWait, func() {
			sh.first.Do(func() {
				n.logger.Error("the storage does not answer; upstreams that operators have marked as draining get new sessions until it does (mend the storage)")
				close(sh.read)
			})
		})
	}
	sh.pools[p] = true
	n.follow()
	return sh.read
}

// same says whether two storages are one. A storage module may be made of anything.
func same(a, b recordStorage) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

// detach forgets p. The last storage stays in use while there are sessions to tell of.
func (n *node) detach(p pool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, sh := range n.shares {
		delete(sh.pools, p)
	}
	n.follow()
}

// follow uses the storage of the newest config, and drops those that no config has. n.mu is locked.
func (n *node) follow() {
	for i := len(n.shares) - 1; i >= 0 && len(n.shares) > 1; i-- {
		if len(n.shares[i].pools) == 0 {
			n.shares[i].halt()
			n.shares = slices.Delete(n.shares, i, i+1)
		}
	}
	newest := len(n.shares) - 1
	for i, sh := range n.shares {
		switch {
		case i < newest:
			sh.halt()
		case sh.stop == nil:
			ctx, cancel := context.WithCancel(context.Background())
			sh.stop = cancel
			go n.keepUp(ctx, sh)
		}
	}
}

func (sh *share) halt() {
	if sh.stop != nil {
		sh.stop()
		sh.stop = nil
	}
}

// keepUp reads what the others say and reports, until ctx ends. A storage that hangs holds up
// nothing else.
func (n *node) keepUp(ctx context.Context, sh *share) {
	tick := time.NewTicker(nodePause)
	defer tick.Stop()
	for {
		n.exchange(ctx, sh)
		sh.first.Do(func() { close(sh.read) })
		if n.retire(ctx, sh) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// exchange reads the marks and what the other nodes report, and then reports in turn: so whoever
// finds its own report heard in another one knows that the other one was made later.
func (n *node) exchange(ctx context.Context, sh *share) {
	n.mu.Lock()
	said := n.said
	n.mu.Unlock()
	marks, errMarks := loadRecords[mark](ctx, sh.st, marksFolder)
	reports, errReports := loadRecords[report](ctx, sh.st, nodesFolder)

	n.mu.Lock()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return
	}
	now := n.t.now()
	if said == n.said {
		n.take(marks, errMarks == nil)
	}
	n.hear(reports, errReports == nil, now)
	err := errors.Join(errMarks, errReports)
	if err == nil {
		n.round = now
	}
	n.judgeAll(now)
	r := n.dueReport(now)
	forgotten := n.forget(now)
	n.mu.Unlock()

	if r != nil {
		err = errors.Join(err, storeRecord(ctx, sh.st, nodeKey(n.name), r))
	}
	for _, key := range forgotten {
		err = errors.Join(err, sh.st.Delete(ctx, key))
	}
	n.finish(ctx, err)
}

// finish logs when the storage begins to fail and when it is well again, and wakes who waits.
func (n *node) finish(ctx context.Context, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	switch {
	case err != nil && n.failure == nil:
		n.logger.Error("the storage fails; traffic goes on as before, but marks made elsewhere are not seen and no upstream is called drained (mend the storage)",
			zap.Error(err))
	case err == nil && n.failure != nil:
		n.logger.Info("the storage is well again")
	}
	n.failure = err
	n.tell()
}

// tell wakes who waits for something to change. n.mu is locked.
func (n *node) tell() {
	close(n.news)
	n.news = make(chan struct{})
}

// retire ends the exchange when there is nothing left to tell of, and says whether it did.
func (n *node) retire(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	idle := len(sh.pools) == 0 && n.sessions() == 0
	if idle && sh.stop != nil && ctx.Err() == nil {
		sh.halt()
	}
	n.mu.Unlock()
	if idle {
		n.leave(sh)
	}
	return idle
}

// sessions returns how many sessions this process has.
func (n *node) sessions() (sum int64) {
	n.t.each(func(u *upstream) { sum += u.sessions.Load() })
	return sum
}

// leave tells the others that this process ends, as far as that is possible in short.
func (n *node) leave(sh *share) {
	n.mu.Lock()
	reported := n.reported != 0
	n.seq++
	r := n.makeReport(n.t.now())
	r.Left = true
	n.reported = 0
	n.mu.Unlock()
	if reported {
		_ = within(context.Background(), func(ctx context.Context) error {
			return storeRecord(ctx, sh.st, nodeKey(n.name), r)
		})
	}
}

// exit tells the others that this process ends.
func (n *node) exit() {
	n.mu.Lock()
	var last *share
	if len(n.shares) > 0 {
		last = n.shares[len(n.shares)-1]
		last.halt()
	}
	n.tell()
	n.mu.Unlock()
	if last != nil {
		n.leave(last)
	}
}

// within lets f use the storage for as long as an operator waits. Not every storage heeds a context.
func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, operatorWait)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the storage has not answered: %w", ctx.Err())
	}
}

// errNoStorage is what an operator hears from a Caddy that has no policy like this.
var errNoStorage = errors.New("no reverse_proxy of this Caddy has lb_policy bokeh")

// storage returns the storage in use.
func (n *node) storage() (recordStorage, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.shares) == 0 {
		return nil, errNoStorage
	}
	return n.shares[len(n.shares)-1].st, nil
}

// say writes what an operator says of an upstream, and makes it hold here. Nothing changes if the
// storage has that already, or fails. What the operator does not say again stays: an empty reason
// is that of the mark before.
func (n *node) say(ctx context.Context, shared, state, by, reason string) (*mark, error) {
	st, err := n.storage()
	if err != nil {
		return nil, err
	}
	var m *mark
	err = within(ctx, func(ctx context.Context) error {
		before, err := loadRecord[mark](ctx, st, markKey(shared))
		if err != nil {
			return err
		}
		if before != nil && before.State == state && (reason == "" || reason == before.Reason) {
			m = before
			return nil
		}
		m = newMark(shared, state, by, reason)
		if before != nil && before.State == state {
			m.Since = before.Since
		}
		return storeRecord(ctx, st, markKey(shared), m)
	})
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	n.set(m)
	n.tell()
	return m, nil
}

// giveUp says for a node that it is dead. If it is not, its next report says so.
func (n *node) giveUp(ctx context.Context, name string) error {
	st, err := n.storage()
	if err != nil {
		return err
	}
	n.mu.Lock()
	p := n.peers[nodeKey(name)]
	n.mu.Unlock()
	if p == nil {
		return errUnknownNode
	}
	last := *p.report
	last.Left = true
	return within(ctx, func(ctx context.Context) error { return storeRecord(ctx, st, nodeKey(name), last) })
}

var errUnknownNode = errors.New("no such node")

func nodeKey(name string) string { return nodesFolder + name + recordSuffix }

// here returns the name in this process of an upstream that nodes call by its shared name, or
// nothing if it is another machine's.
func (n *node) here(shared string) string {
	// Only what belongs to a machine has the machine's name with it.
	i := strings.LastIndex(shared, "@")
	switch {
	case i < 0:
		return shared
	case shared[i+1:] == n.host:
		return shared[:i]
	}
	return ""
}

// take makes the marks in the storage what holds here. Missing ones change nothing, unless their
// upstream is in no pool: then another node has deleted them. n.mu is locked.
func (n *node) take(marks map[string]*mark, all bool) {
	for key, m := range marks {
		if markKey(m.Upstream) == key {
			n.set(m)
		}
	}
	for shared, md := range n.marked {
		if all && md.lonely != 0 && marks[markKey(shared)] == nil {
			n.unset(shared)
		}
	}
}

// set makes m what an operator has said last of its upstream. n.mu is locked.
func (n *node) set(m *mark) {
	md := n.marked[m.Upstream]
	if md == nil {
		md = new(marked)
		n.marked[m.Upstream] = md
	}
	if md.mark != nil && md.ID == m.ID {
		return
	}
	before := md.drains()
	md.mark = m
	name := n.here(m.Upstream)
	switch {
	case name == "":
		return
	case m.drains():
		if md.u == nil {
			md.u = n.t.hold(name)
		}
		md.u.draining.shared.Store(len(n.concerned(md.u)) > 0)
		md.u.draining.set(m)
	case md.u != nil:
		n.let(md)
	}
	if before != m.drains() {
		n.logger.Info("upstream is marked "+m.State, zap.String("upstream", name), zap.String("by", m.By), zap.String("reason", m.Reason))
	}
}

// let takes a drain off its upstream. n.mu is locked.
func (n *node) let(md *marked) {
	md.u.draining.set(nil)
	n.t.release(md.u)
	md.u = nil
}

// unset forgets what was said of an upstream. n.mu is locked.
func (n *node) unset(shared string) {
	if md := n.marked[shared]; md.u != nil {
		n.let(md)
	}
	delete(n.marked, shared)
}

// hear takes note of what the other nodes report; all says whether every report could be read.
// n.mu is locked.
func (n *node) hear(reports map[string]*report, all bool, now time.Duration) {
	verifiable := n.verifiable()
	for key, r := range reports {
		if r.Node == n.name || key != nodeKey(r.Node) {
			continue
		}
		p := n.peers[key]
		if p == nil {
			p = &peer{report: r, changed: now}
			n.peers[key] = p
		}
		if p.Seq != r.Seq {
			p.changed = now
		}
		p.report = r
		lost := p.Left || p.Process.isGone(n.process) || now-p.changed > givenUpAfter
		switch {
		case !lost:
			p.gone = 0
		case p.gone == 0:
			p.gone = now
		}
		n.compareKeys(p, verifiable)
	}
	for key, p := range n.peers {
		if all && reports[key] == nil && p.gone == 0 {
			p.gone = now
		}
	}
}

// overdue says whether p is missed.
func (p *peer) overdue(now time.Duration) bool { return now-p.changed > overdueAfter }

// settling returns how long browsers may still come back to sessions that p had, which is gone.
func (n *node) settling(p *peer, now time.Duration) time.Duration {
	return p.gone + max(p.Settles, n.settles()) - now
}

// settles returns how long a session lives without a socket, in the policy where that is longest.
// n.mu is locked.
func (n *node) settles() time.Duration {
	longest := defaultUnusedSessionLifetime + defaultCheckUnusedSessions
	n.eachPool(func(p pool) { longest = max(longest, p.settles()) })
	return longest
}

// eachPool calls yield with every policy. n.mu is locked.
func (n *node) eachPool(yield func(pool)) {
	for _, sh := range n.shares {
		for p := range sh.pools {
			yield(p)
		}
	}
}

// forget drops what need not be known any more, and returns the keys of the records to delete.
// n.mu is locked.
func (n *node) forget(now time.Duration) (keys []string) {
	for key, p := range n.peers {
		if p.gone != 0 && n.settling(p, now) <= 0 {
			delete(n.peers, key)
			keys = append(keys, key)
		}
	}
	if len(n.marked) == 0 {
		return keys
	}
	own := n.accounts(now)
	for shared, md := range n.marked {
		switch {
		case n.wanted(shared, own[shared], now):
			md.lonely = 0
		case md.lonely == 0:
			md.lonely = now
		case now-md.lonely > lonelyFor:
			n.unset(shared)
			keys = append(keys, markKey(shared))
		}
	}
	return keys
}

// wanted says whether an upstream may be in the pool of a node, or have sessions. n.mu is locked.
func (n *node) wanted(shared string, own account, now time.Duration) bool {
	if own.InPool || own.Sessions.all() > 0 {
		return true
	}
	for _, p := range n.peers {
		if a := p.Upstreams[shared]; a.InPool || a.Sessions.all() > 0 || p.overdue(now) {
			return true
		}
	}
	return false
}

// dueReport returns the report to be written now, or nil. While something drains the others wait for
// it. n.mu is locked.
func (n *node) dueReport(now time.Duration) *report {
	if !n.running() || n.reported != 0 && now-n.reported < quietPause && !n.somethingDrains() {
		return nil
	}
	n.seq++
	n.reported = now
	return n.makeReport(now)
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

// makeReport returns what there is to tell. n.mu is locked.
func (n *node) makeReport(now time.Duration) *report {
	r := &report{
		Node: n.name, Host: n.host, Process: n.process,
		Seq: n.seq, Heard: make(map[string]uint64), Settles: n.settles(),
		Upstreams: n.accounts(now),
	}
	r.Settled = now-n.start >= r.Settles
	for _, p := range n.peers {
		r.Heard[p.Node] = p.Seq
	}
	return r
}

// accounts returns what there is to tell of the upstreams. n.mu is locked.
func (n *node) accounts(now time.Duration) map[string]account {
	as := make(map[string]account)
	n.t.each(func(u *upstream) { as[u.shared] = u.account(now) })
	n.eachPool(func(p pool) {
		key := fingerprint((*p.stampKeys())[0])
		p.each(func(m *member, inPool bool) {
			a := as[m.shared]
			a.InPool = a.InPool || inPool
			if !slices.Contains(a.Keys, key) {
				a.Keys = append(a.Keys, key)
			}
			as[m.shared] = a
		})
	})
	for u, began := range n.t.oldest() {
		a := as[u.shared]
		a.Oldest = (now - began).Seconds()
		as[u.shared] = a
	}
	return as
}

// account returns what there is to tell of u alone.
func (u *upstream) account(now time.Duration) account {
	a := account{Begun: u.begun.Load(), Sessions: u.sessionCounts(), Ended: u.ended.count(now), Draining: u.draining.on()}
	if m := u.draining.mark.Load(); m != nil {
		a.Mark = m.ID
	}
	return a
}

func (u *upstream) sessionCounts() counts {
	return counts{u.counts[building].Load(), u.counts[waiting].Load(), u.counts[connected].Load(), u.counts[unused].Load()}
}

func fingerprint(k *key) string { return fmt.Sprintf("%016x", k.print) }

// verifiable returns the fingerprints of the keys that can be verified here, by upstream. n.mu is
// locked.
func (n *node) verifiable() map[string][]string {
	prints := make(map[string][]string)
	n.eachPool(func(p pool) {
		ring := *p.stampKeys()
		own := make([]string, 0, len(ring))
		for _, k := range ring {
			own = append(own, fingerprint(k))
		}
		p.each(func(m *member, _ bool) { prints[m.shared] = append(prints[m.shared], own...) })
	})
	return prints
}

// compareKeys logs when another node signs with a key that cannot be verified here: its sessions
// would not be found through this one. n.mu is locked.
func (n *node) compareKeys(p *peer, verifiable map[string][]string) {
	stray := ""
	for shared, a := range p.Upstreams {
		prints, ok := verifiable[shared]
		for _, print := range a.Keys {
			if ok && !slices.Contains(prints, print) {
				stray = shared
			}
		}
	}
	if stray != "" && !p.strayKey && p.gone == 0 {
		n.logger.Error("another node signs its stamps with a key that this one does not have; each takes the other's sessions for strange ones"+
			" (give all the same secret_key, or the same storage)", zap.String("node", p.Node), zap.String("host", p.Host), zap.String("upstream", stray))
	}
	p.strayKey = stray != ""
}
