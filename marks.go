// This file holds what operators say of upstreams: written to the storage, read from it, made to hold.

package caddybokeh

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// marksFolder is where Caddy's storage keeps the marks.
const marksFolder = folder + "marks/"

// What a mark can say: what the admin API tells of an upstream as well.
const (
	stateReady    = api.StateReady
	stateDraining = api.StateDraining
	stateClosed   = api.StateClosed
)

// mark is what an operator has last said of an upstream. Caddy's storage keeps it, one record for
// each upstream, so that it outlives Caddy and holds on every node. Taking a drain back writes
// another mark: a record that is missing, or cannot be read, changes nothing.
type mark struct {
	ID       string    `json:"id"`       // of this mark, by which nodes say that they have read it
	Said     int64     `json:"said"`     // when, in nanoseconds of Unix time; by whatever clock, later than the mark before
	Upstream string    `json:"upstream"` // its name between nodes, see sharedName
	State    string    `json:"state"`
	Since    time.Time `json:"since"` // by the clock of the node that wrote it
	By       string    `json:"by"`
	Reason   string    `json:"reason,omitempty"`

	// Left is how long after it was written the upstream is closed; 0 if never. Each node counts from
	// when it reads that. By the same clock, times can be compared.
	Left    time.Duration `json:"left,omitempty"`
	Written time.Time     `json:"written"`
	Clock   string        `json:"clock"`          // of the machine
	Span    time.Duration `json:"span,omitempty"` // over which the sockets are closed then

	// Unsettled is a drain that may be taken back yet, because another one leaves nobody. Versions before this one ignore it.
	Unsettled bool `json:"unsettled,omitempty"`
}

// drains says whether m, which may be nil, drains its upstream.
func (m *mark) drains() bool { return m != nil && m.State != stateReady }

// id returns the id of m, or nothing if m is nil.
func (m *mark) id() string {
	if m == nil {
		return ""
	}
	return m.ID
}

// closes says whether m, which may be nil, lets nothing go to its upstream.
func (m *mark) closes() bool { return m != nil && m.State == stateClosed }

// closed returns what becomes of m when its time is up. Nodes that find so at once write the same.
func (m *mark) closed() *mark {
	c := *m
	c.ID, c.State, c.Unsettled = m.ID+closedSuffix, stateClosed, false
	return &c
}

// closedSuffix is what the id of a mark gets when its time is up.
const closedSuffix = "-closed"

// newer says whether m was said after another mark of the upstream, so that every node finds the same
// one to be the last, in whatever order and storage it meets them. (A hybrid logical clock: Kulkarni et
// al., "Logical Physical Clocks", 2014.)
func (m *mark) newer(than *mark) bool {
	return cmp.Or(
		cmp.Compare(m.Said, than.Said),
		cmp.Compare(strings.TrimSuffix(m.ID, closedSuffix), strings.TrimSuffix(than.ID, closedSuffix)),
		cmp.Compare(len(m.ID), len(than.ID)), // closed comes after what it was before
	) > 0
}

// deadline returns when the upstream is closed, by the clock of the node that wrote m.
func (m *mark) deadline() *time.Time {
	if m.Left == 0 || m.Written.IsZero() {
		return nil
	}
	at := m.Written.Add(m.Left)
	return &at
}

// randomName is unlikely to be that of anything else.
func randomName() string {
	var raw [8]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

// markKey is where the storage keeps the mark of an upstream. A name may hold anything.
func markKey(shared string) string {
	sum := sha256.Sum256([]byte(shared))
	return marksFolder + hex.EncodeToString(sum[:16]) + recordSuffix
}

const (
	// lonelyFor is how long an upstream is in no pool until it is forgotten that it drains, so that
	// the next server at its address is ready.
	lonelyFor = 10 * time.Minute

	// readyFor is the same for a drain that was taken back. It keeps nobody out, and a node that was cut
	// off for long may still know of the drain.
	readyFor = 24 * time.Hour

	// defaultSpan is over which the requests to a closed upstream are ended, most of which are websockets: browsers reconnect at
	// once, and every one of them lets another server run the app.
	defaultSpan = 30 * time.Second
)

// marked is an upstream that an operator has said something of.
type marked struct {
	*mark
	share  *share             // where it was read or written last
	u      *sessions.Upstream // held while it drains; nil where it is another machine's
	until  time.Duration      // when it is closed, on the table's clock; 0 if never
	lonely time.Duration      // since when it is in no pool, on the table's clock; 0 if it is in one
	held   time.Duration      // since when u is, on the table's clock
	opens  time.Duration      // when a drain that was taken back is over here, on the table's clock; 0 if there is none
}

// openRest is how long a node goes on sending no new session to an upstream whose drain was taken back, where there are others: one
// that has not read of it yet may take the upstream for empty, and would send the websocket of a new session elsewhere.
const openRest = nodePause + nodePause/2

// word is what an operator says of an upstream. What is left out stays as it was.
type word struct {
	state  string
	by     string
	reason string
	grace  *time.Duration // after which the upstream is closed; 0 for never
	span   *time.Duration // over which its sockets are closed then

	unlessLast bool // it may be taken back
}

// follows returns the mark by which w holds after another one, which may be nil. It is that one if
// nothing changes. Of its grace period so much is left.
func (w word) follows(before *mark, shared, clock string, left time.Duration) *mark {
	now := time.Now()
	m := &mark{ID: randomName(), Said: now.UnixNano(), Upstream: shared, State: w.state, Since: now, By: w.by, Reason: w.reason, Written: now, Clock: clock}
	if before != nil {
		m.comeAfter(before)
	}
	if before != nil && before.drains() == m.drains() {
		if (w.reason == "" || w.reason == before.Reason) && w.grace == nil && w.span == nil && (w.unlessLast || !before.Unsettled) {
			return before
		}
		m.State, m.Since, m.Reason, m.Left, m.Span = before.State, before.Since, cmp.Or(w.reason, before.Reason), left, before.Span
	}
	m.Unsettled = w.unlessLast && (!before.drains() || before.Unsettled)
	if w.grace != nil {
		m.State, m.Left = w.state, *w.grace
	}
	if m.closes() {
		m.Written = before.Written // so that it shows when that was to be
	}
	if w.span != nil {
		m.Span = *w.span
	}
	return m
}

// readMarks reads what was said through other nodes since they were read last, as far as that is possible: the
// last upstream but one may have been marked a moment ago.
func (n *node) readMarks(ctx context.Context) {
	sh, err := n.storage()
	if err != nil {
		return
	}
	_ = within(ctx, func(ctx context.Context) error {
		marks, _ := n.loadMarks(ctx, sh)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.used == sh {
			n.take(sh, marks, false, false, nil)
		}
		return nil
	})
}

// loadMarks returns the marks in a storage by their keys. Where it is not known that it lists them, or more than are read, it is
// asked for those of each known upstream too.
func (n *node) loadMarks(ctx context.Context, sh *share) (map[string]*mark, error) {
	marks, err := loadRecords[mark](ctx, sh.records, marksFolder)
	if sh.records.way.Load() != nil && !errors.Is(err, errTooMuch) {
		return marks, err
	}
	n.mu.Lock()
	known := n.accounts(n.t.Now())
	n.mu.Unlock()
	names := slices.DeleteFunc(slices.Collect(maps.Keys(known)), func(shared string) bool {
		_, listed := marks[markKey(shared)]
		return listed
	})
	found := make([]*mark, len(names))
	ctx = oneLook(ctx)
	severally(len(names), func(i int) {
		found[i], _ = loadMark(ctx, sh.st, names[i]) // most have none, for which some storages have errors of their own
	})
	for i, m := range found {
		if m != nil {
			marks[markKey(names[i])] = m
		}
	}
	return marks, err
}

// lonelyFor is how long an upstream is in no pool until m is forgotten.
func (m *mark) lonelyFor() time.Duration {
	if m.State == stateReady {
		return readyFor
	}
	return lonelyFor
}

// say writes what an operator says of an upstream, and makes it hold here. Nothing changes if the
// storage has that already, or fails.
func (n *node) say(ctx context.Context, shared string, w word) error {
	sh, err := n.storage()
	if err != nil {
		return err
	}
	_, m, err := n.put(ctx, sh, shared, w)
	if err != nil {
		return err
	}
	n.hold(sh, m)
	return nil
}

// put writes what an operator says of an upstream, and returns the mark that held before and the new one. With an error, and a
// mark, it is not known whether that was written.
func (n *node) put(ctx context.Context, sh *share, shared string, w word) (before, m *mark, err error) {
	ctx, cancel := context.WithTimeout(ctx, operatorWait)
	defer cancel()
	stored, err := loadMark(ctx, sh.st, shared)
	if err == nil {
		err = ctx.Err() // nobody waits any more: what was said is not what is said now
	}
	if err != nil {
		return nil, nil, err
	}
	before, left := n.stands(shared, stored)
	if before != nil && stored != nil && before.ID == stored.ID {
		before = stored // which may have settled since it was read here
	}
	if m = w.follows(before, shared, n.clock(), left); stored != nil && m.ID == stored.ID {
		return before, m, nil
	}
	if err := storeRecord(ctx, sh.st, markKey(shared), m); err != nil {
		return before, m, fmt.Errorf("%w: %w", errUnsure, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	return before, m, nil
}

// hold makes a mark hold here, unless something was said since.
func (n *node) hold(sh *share, m *mark) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	switch md := n.marked[m.Upstream]; {
	case md == nil || m.newer(md.mark):
		n.set(m)
	case md.ID == m.ID:
		md.mark = m // it has settled
	}
	n.marked[m.Upstream].share = sh
	n.tell()
}

// errUnsure is that of a storage that failed to say whether it has written.
var errUnsure = errors.New("the storage failed while it was written to")

// clock returns what tells this machine's clock from others.
func (n *node) clock() string { return cmp.Or(n.process.Boot, n.host) }

// loadMark returns the mark of an upstream in the storage, or nil if there is none that can be read.
func loadMark(ctx context.Context, st recordStorage, shared string) (*mark, error) {
	m, err := loadRecord[mark](ctx, st, markKey(shared))
	switch {
	case errors.Is(err, errBroken):
		return nil, nil
	case err != nil:
		return nil, err
	case m != nil && m.Upstream != shared: // broken in another way
		return nil, nil
	}
	return m, nil
}

// stands returns the mark that holds of an upstream, or nil, where the storage has one that may be nil; and
// how much is left of its grace period, 0 if it has none.
func (n *node) stands(shared string, stored *mark) (*mark, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	md := n.marked[shared]
	switch {
	case md == nil && stored == nil:
		return nil, 0
	case md == nil || stored != nil && stored.newer(md.mark):
		return stored, stored.Left // it is not read here yet
	case md.until == 0:
		return md.mark, md.Left
	}
	return md.mark, max(md.until-n.t.Now(), 1)
}

// closeDue closes the upstreams whose grace period is over. n.mu is locked.
func (n *node) closeDue(now time.Duration) {
	for _, md := range n.marked {
		if md.until != 0 && now >= md.until {
			n.set(md.closed())
		}
	}
}

// storeAgain writes a mark that the storage lacks, unless an operator has said something of its
// upstream since.
func storeAgain(ctx context.Context, st recordStorage, m *mark) error {
	stored, err := loadMark(ctx, st, m.Upstream)
	if err != nil || stored != nil && !m.newer(stored) {
		return err
	}
	return storeRecord(ctx, st, markKey(m.Upstream), m)
}

// errUnanswered is what is said of a storage that may do later what it was asked for.
var errUnanswered = fmt.Errorf("the storage has not answered within %v", callWait)

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
		return errUnanswered
	}
}

// take makes the marks in the storage what holds here, as far as they are newer than what does, and
// returns those that it lacks, as far as is known. read says whether they were read just now, and all whether these
// are certainly all. n.mu is locked.
func (n *node) take(sh *share, marks map[string]*mark, read, all bool, accounts func() map[string]account) (lacking []*mark) {
	for key, m := range marks {
		if m == nil || markKey(m.Upstream) != key || !n.mayName(m.Upstream) {
			continue
		}
		if md := n.marked[m.Upstream]; md == nil || m.newer(md.mark) {
			n.set(m)
		}
		n.marked[m.Upstream].share = sh
	}
	for shared, md := range n.marked {
		m, listed := marks[markKey(shared)]
		switch {
		case listed && (m == nil || m.ID != md.ID):
			lacking = append(lacking, md.mark) // that in the storage is older, or broken
		case listed || !read || !md.drains():
		case md.share != sh:
			lacking = append(lacking, md.mark) // the storage is another one since a reload
		case accounts()[shared].wanted():
			lacking = append(lacking, md.mark) // it has lost it, or does not list it: then it is not written again
		case all && md.lonely != 0:
			n.unset(shared) // another node has deleted it
		}
	}
	return lacking
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
	before := md.mark
	md.mark, md.until, md.lonely = m, 0, 0
	if m.State == stateDraining && m.Left != 0 {
		md.until = n.t.Now() + m.Left
		if m.Clock == n.clock() && !m.Written.IsZero() {
			md.until -= min(max(time.Since(m.Written), 0), m.Left)
		}
	}
	name := n.here(m.Upstream)
	known := n.t.Knows(name, md.u)
	if before.closes() && !m.closes() && md.u != nil {
		md.u.Drain.SetReopened(n.t.Now())
	}
	switch {
	case name == "":
		return
	case m.drains():
		if md.u == nil {
			md.u, md.held = n.t.Hold(name), n.t.Now()
		}
		md.opens = 0
		md.u.Drain.Set(&sessions.DrainOrder{Closed: m.closes(), Since: m.Since})
	case md.u != nil && before.drains() && n.mayBeTakenForEmpty(md):
		md.opens = n.t.Now() + openRest
		md.u.Drain.Doubt()
		time.AfterFunc(openRest, func() { n.open(md) })
	case md.u != nil:
		n.let(md)
	}
	if m.closes() && !before.closes() {
		n.evict(md)
	}
	if before.drains() != m.drains() || before.closes() != m.closes() {
		level := zapcore.InfoLevel
		if !known {
			level = zapcore.DebugLevel // there may be thousands
		}
		n.logger.Log(level, "upstream is marked "+m.State, zap.String("upstream", name), zap.String("by", m.By), zap.String("reason", m.Reason))
	}
}

// mayBeTakenForEmpty says whether another node may call an upstream drained, of which something else was just said. One that gives way to
// a rival has not drained for long enough, but for a moment. n.mu is locked.
func (n *node) mayBeTakenForEmpty(md *marked) bool {
	now := n.t.Now()
	return now-md.held > markRest-openRest && !strings.HasSuffix(md.ID, withdrawnSuffix) && len(n.concerned(md.u, n.peersByName(), now)) > 0
}

// opens says whether a drain of u was taken back and is about to be over. n.mu is locked.
func (n *node) opens(u *sessions.Upstream) bool {
	md := n.holderOf(u)
	return md != nil && md.opens != 0
}

// open ends a drain that was taken back, unless it is over already, or the upstream drains again.
func (n *node) open(md *marked) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if md.u == nil || md.opens == 0 || n.t.Now() < md.opens {
		return
	}
	md.opens = 0
	n.let(md)
	n.tell()
}

// evict ends what a closed upstream still has. n.mu is locked.
func (n *node) evict(md *marked) {
	n.t.Abandon(md.u)
	span := cmp.Or(md.Span, defaultSpan)
	if all, tunnels := md.u.Drain.Requests.EndAll(span); all > 0 {
		n.logger.Warn("grace period is over; closing the remaining websockets, and ending other requests",
			zap.String("upstream", md.u.Name), zap.Int("websockets", tunnels), zap.Int("others", all-tunnels), zap.Duration("over", span))
	}
}

// holderOf returns what holds u because an operator drains it, or did until a moment ago; or nil. n.mu is locked.
func (n *node) holderOf(u *sessions.Upstream) *marked {
	if md := n.marked[u.Shared]; md != nil && md.u == u {
		return md
	}
	return nil
}

// markOf returns what an operator has said last of u, which drains for that or did until a moment ago; or nil. n.mu is locked.
func (n *node) markOf(u *sessions.Upstream) *mark {
	if md := n.holderOf(u); md != nil {
		return md.mark
	}
	return nil
}

// let takes a drain off its upstream. n.mu is locked.
func (n *node) let(md *marked) {
	md.u.Drain.Set(nil)
	n.t.Release(md.u)
	md.u = nil
}

// unset forgets what was said of an upstream. n.mu is locked.
func (n *node) unset(shared string) {
	if md := n.marked[shared]; md.u != nil {
		n.let(md)
	}
	delete(n.marked, shared)
}

// mayName says whether a name between nodes is that of one upstream alone: without the host, that of one which belongs to a machine
// would be a second name of ours, under which it drains and cannot be undrained.
func (n *node) mayName(shared string) bool {
	name := n.here(shared)
	return name == "" || sharedNameAt(name, n.host) == shared
}

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
