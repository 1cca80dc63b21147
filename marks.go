// This file holds what operators say of upstreams: written to the storage, read from it, made to hold.

package caddybokeh

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"
)

// marksFolder is where Caddy's storage keeps the marks.
const marksFolder = folder + "marks/"

// What a mark can say.
const (
	stateReady    = "ready"
	stateDraining = "draining"
	stateClosed   = "closed" // past its grace period: nothing goes there
)

// mark is what an operator has last said of an upstream. Caddy's storage keeps it, one record for
// each upstream, so that it outlives Caddy and holds on every node. Taking a drain back writes
// another mark: a record that is missing, or cannot be read, changes nothing.
type mark struct {
	ID       string    `json:"id"`       // of this mark, by which nodes say that they have read it
	Upstream string    `json:"upstream"` // its name between nodes, see sharedName
	State    string    `json:"state"`
	Since    time.Time `json:"since"` // by the clock of the node that wrote it
	By       string    `json:"by"`
	Reason   string    `json:"reason,omitempty"`

	// Left is how long after it was written the upstream is closed; 0 if never. Each node counts from
	// when it reads that. On the machine that wrote it, clocks can be compared.
	Left    time.Duration `json:"left,omitempty"`
	Written time.Time     `json:"written"`
	Host    string        `json:"host"`
	Span    time.Duration `json:"span,omitempty"` // over which the sockets are closed then
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

// closed returns the mark that follows m when its time is up. Nodes that find so at once write the
// same.
func (m *mark) closed() *mark {
	c := *m
	c.ID, c.State, c.Left = m.ID+closedSuffix, stateClosed, 0
	return &c
}

// closedSuffix is what the id of a mark gets when its time is up.
const closedSuffix = "-closed"

// deadline returns when the upstream is closed, by the clock of the node that wrote m.
func (m *mark) deadline() *time.Time {
	if m.Left == 0 {
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
	// lonelyFor is how long an upstream is in no pool until what was said of it is forgotten, so that
	// the next server at its address is ready.
	lonelyFor = 10 * time.Minute

	// defaultSpan is over which the sockets of a closed upstream are closed: browsers reconnect at
	// once, and every one of them lets another server run the app.
	defaultSpan = 30 * time.Second
)

// marked is an upstream that an operator has said something of.
type marked struct {
	*mark
	u      *upstream     // held while it drains; nil where it is another machine's
	until  time.Duration // when it is closed, on the table's clock; 0 if never
	lonely time.Duration // since when it is in no pool, on the table's clock; 0 if it is in one
}

// word is what an operator says of an upstream. What is left out stays as it was.
type word struct {
	state  string
	by     string
	reason string
	grace  *time.Duration // after which the upstream is closed; 0 for never
	span   *time.Duration // over which its sockets are closed then
}

// follows returns the mark by which w holds after another one, which may be nil. It is that one if
// nothing changes. Of its grace period so much is left.
func (w word) follows(before *mark, shared, host string, left time.Duration) *mark {
	m := &mark{ID: randomName(), Upstream: shared, State: w.state, Since: time.Now(), By: w.by, Reason: w.reason, Written: time.Now(), Host: host}
	if before != nil && before.drains() == m.drains() {
		if (w.reason == "" || w.reason == before.Reason) && w.grace == nil && w.span == nil {
			return before
		}
		m.State, m.Since, m.Reason, m.Left, m.Span = before.State, before.Since, cmp.Or(w.reason, before.Reason), left, before.Span
	}
	if w.grace != nil {
		m.State, m.Left = w.state, *w.grace
	}
	if w.span != nil {
		m.Span = *w.span
	}
	return m
}

// say writes what an operator says of an upstream, and makes it hold here. Nothing changes if the
// storage has that already, or fails.
func (n *node) say(ctx context.Context, shared string, w word) error {
	st, err := n.storage()
	if err != nil {
		return err
	}
	var m *mark
	err = within(ctx, func(ctx context.Context) error {
		before, err := loadRecord[mark](ctx, st, markKey(shared))
		if err != nil && !errors.Is(err, errBroken) {
			return err
		}
		if before != nil && before.Upstream != shared {
			before = nil // broken in another way
		}
		before, left := n.stands(before)
		if m = w.follows(before, shared, n.host, left); m == before {
			return nil
		}
		return storeRecord(ctx, st, markKey(shared), m)
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said++
	n.set(m)
	n.tell()
	return nil
}

// stands returns how a mark in the storage, which may be nil, stands now, and how much is left of its
// grace period, or 0 if it has none.
func (n *node) stands(m *mark) (*mark, time.Duration) {
	if m == nil {
		return nil, 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	m = n.newest(m)
	md := n.marked[m.Upstream]
	if m.Left == 0 || md == nil || md.ID != m.ID {
		return m, m.Left // none, or it was written a moment ago and is not read here yet
	}
	return m, max(md.until-n.t.now(), 1)
}

// closeDue closes the upstreams whose grace period is over, and returns what the storage does not
// have of that yet; has is what it has. n.mu is locked.
func (n *node) closeDue(has map[string]*mark, now time.Duration) (unsaid []*mark) {
	for shared, md := range n.marked {
		if md.until != 0 && now >= md.until {
			n.set(md.closed())
		}
		if before := has[markKey(shared)]; md.closes() && before != nil && before.closed().ID == md.ID {
			unsaid = append(unsaid, md.mark)
		}
	}
	return unsaid
}

// storeClosed writes that an upstream is closed, unless an operator has said something else of it since
// its mark was read.
func storeClosed(ctx context.Context, st recordStorage, m *mark) error {
	before, err := loadRecord[mark](ctx, st, markKey(m.Upstream))
	if err != nil || before == nil || before.closed().ID != m.ID {
		return err
	}
	return storeRecord(ctx, st, markKey(m.Upstream), m)
}

// storeAgain writes a mark that the storage has lost, unless an operator has said something of its
// upstream since.
func storeAgain(ctx context.Context, st recordStorage, m *mark) error {
	before, err := loadRecord[mark](ctx, st, markKey(m.Upstream))
	if err != nil || before != nil {
		return err
	}
	return storeRecord(ctx, st, markKey(m.Upstream), m)
}

// errUnanswered is what is said of a storage that may do later what it was asked for.
var errUnanswered = errors.New("the storage has not answered")

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

// take makes the marks in the storage what holds here, and returns those that it has lost: it may be
// another one since a reload. Where the upstream is in no pool, another node has deleted the mark. n.mu
// is locked.
func (n *node) take(marks map[string]*mark, all bool) (lost []*mark) {
	for key, m := range marks {
		if markKey(m.Upstream) == key {
			n.set(n.newest(m))
		}
	}
	for shared, md := range n.marked {
		switch {
		case !all || marks[markKey(shared)] != nil:
		case md.lonely != 0:
			n.unset(shared)
		case md.drains():
			lost = append(lost, md.mark)
		}
	}
	return lost
}

// newest returns what follows m, a mark in the storage, if that is known here alone: while its upstream is
// being closed. n.mu is locked.
func (n *node) newest(m *mark) *mark {
	if md := n.marked[m.Upstream]; md != nil && md.closes() && md.ID == m.closed().ID {
		return md.mark
	}
	return m
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
	md.mark, md.until = m, 0
	if m.drains() && m.Left != 0 {
		md.until = n.t.now() + m.Left
		if m.Host == n.host {
			md.until -= min(max(time.Since(m.Written), 0), m.Left)
		}
	}
	name := n.here(m.Upstream)
	switch {
	case name == "":
		return
	case m.drains():
		if md.u == nil {
			md.u = n.t.hold(name)
		}
		md.u.draining.set(m)
	case md.u != nil:
		n.let(md)
	}
	if m.closes() && !before.closes() {
		n.evict(md)
	}
	if before.drains() != m.drains() || before.closes() != m.closes() {
		n.logger.Info("upstream is marked "+m.State, zap.String("upstream", name), zap.String("by", m.By), zap.String("reason", m.Reason))
	}
}

// evict closes the sockets of a closed upstream. n.mu is locked.
func (n *node) evict(md *marked) {
	n.t.abandon(md.u)
	span := cmp.Or(md.Span, defaultSpan)
	if sockets := md.u.draining.sockets.closeAll(span); sockets > 0 {
		n.logger.Warn("grace period is over; closing the remaining websockets",
			zap.String("upstream", md.u.name), zap.Int("websockets", sockets), zap.Duration("over", span))
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
