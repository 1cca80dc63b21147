// This file holds the queue against what it is meant to be, and measures it.

package admission

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// plainQueue is the queue as it is meant: all waiters in one list, which is gone through for every server. What happens is
// said to both.
type plainQueue struct {
	*Queue
	t       *testing.T
	rnd     *rand.Rand
	now     time.Duration
	waiters []*plainWaiter
	pools   map[groupKey][]*Server // what those who looked last were offered
	called  map[*Waiter]bool       // who may be called, and whether they have to be
}

type plainWaiter struct {
	*Waiter
	key  groupKey
	seen time.Duration
}

func (l *plainQueue) forget() {
	l.waiters = slices.DeleteFunc(l.waiters, func(tk *plainWaiter) bool { return l.now-tk.seen > tk.absent })
}

func (l *plainQueue) find(tk *Waiter) int {
	return slices.IndexFunc(l.waiters, func(plain *plainWaiter) bool { return plain.Waiter == tk })
}

// turns returns whose turn it is at u, but for a visit and those behind it, and how many sessions it has then.
func (l *plainQueue) turns(u *Server, behind *Waiter) (turns []*Waiter, taken int64) {
	taken = u.Sessions.Load()
	for _, tk := range l.waiters {
		if tk.Waiter == behind {
			break
		}
		if taken < tk.key.limit && slices.Contains(l.pools[tk.key], u) {
			taken++
			turns = append(turns, tk.Waiter)
		}
	}
	return turns, taken
}

// looks lets a visit look, which is offered some of a pool. Whoever has a turn only by that must be called, if another one.
func (l *plainQueue) looks(tk *Waiter, k groupKey, pool []*Server) {
	o := new(Offer)
	for _, u := range pool {
		o.pool += u.Lot
		if l.rnd.IntN(4) > 0 {
			o.free += u.Lot
			o.servers = append(o.servers, u)
		}
	}
	k.pool = o.pool
	l.Enter(tk, k.policy, k.limit, o, l.now)
	others := slices.ContainsFunc(l.waiters, func(plain *plainWaiter) bool { return plain.key == k })
	before := l.pools[k]
	l.pools[k] = o.servers
	l.stands(tk, k)
	if !others || slices.Equal(before, o.servers) {
		return
	}
	l.forget()
	for _, u := range o.servers {
		turns, _ := l.turns(u, nil)
		for _, other := range turns {
			l.called[other] = l.called[other] || !slices.Contains(before, u) && other != tk && l.waiters[l.find(other)].key == k
		}
	}
}

// stands puts a waiter in the queue, or keeps it where it is.
func (l *plainQueue) stands(tk *Waiter, k groupKey) {
	if i := l.find(tk); i >= 0 {
		l.waiters[i].key, l.waiters[i].seen = k, l.now
		return
	}
	i := 0
	for i < len(l.waiters) && l.waiters[i].since <= tk.since {
		i++
	}
	l.waiters = slices.Insert(l.waiters, i, &plainWaiter{tk, k, l.now})
}

// leaves lets a visit leave. Whoever has a turn only by that must be called.
func (l *plainQueue) leaves(tk *Waiter) {
	l.Leave(tk, l.now)
	i := l.find(tk)
	if i < 0 {
		return
	}
	left := l.waiters[i]
	l.forget()
	before := make(map[*Server][]*Waiter)
	for _, u := range l.pools[left.key] {
		before[u], _ = l.turns(u, nil)
	}
	l.waiters = slices.DeleteFunc(l.waiters, func(tk *plainWaiter) bool { return tk == left })
	for u := range before {
		turns, _ := l.turns(u, nil)
		for _, tk := range turns {
			l.called[tk] = l.called[tk] || !slices.Contains(before[u], tk)
		}
	}
}

// changes lets u have some sessions.
func (l *plainQueue) changes(u *Server) {
	u.Sessions.Store(l.rnd.Int64N(5))
	l.mu.Lock()
	l.call(u, l.now)
	l.mu.Unlock()
	l.forget()
	l.calls(u)
}

func (l *plainQueue) calls(u *Server) {
	turns, _ := l.turns(u, nil)
	for _, tk := range turns {
		l.called[tk] = true
	}
}

// asks lets a visit ask for a slot, nil for one that has just come.
func (l *plainQueue) asks(tk *Waiter, u *Server, limit int64) {
	u.Sessions.Store(l.rnd.Int64N(5))
	got, free := l.Admits(tk, u, limit, l.now), u.Sessions.Load() < limit
	if free {
		l.forget()
	}
	_, taken := l.turns(u, tk)
	if want := taken < limit; got != want {
		l.t.Fatalf("a visit (has just come: %v) has a slot: %v, want %v", tk == nil, got, want)
	}
	if free && !got && tk == nil {
		l.calls(u)
	}
}

// compare looks who has been called, and how many wait.
func (l *plainQueue) compare(all []*Waiter) {
	for _, tk := range all {
		called := len(tk.turn) > 0
		if must, may := l.called[tk]; must && !called || called && !may {
			l.t.Fatalf("a visit is called: %v, want %v", called, must)
		}
		if called {
			<-tk.turn
		}
	}
	clear(l.called)
	if l.rnd.IntN(10) > 0 {
		return // those who are not seen any more are not to be forgotten by this
	}
	l.forget()
	if n := l.Len(l.now); n != int64(len(l.waiters)) {
		l.t.Fatalf("%d wait, want %d", n, len(l.waiters))
	}
}

// Whatever visits, upstreams and policies do: a visit may have a slot if one is left by all who came before it, those who get one by
// what another one does are called, and nobody else is.
func TestQueueIsAsMeant(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			l := plainQueue{Queue: NewQueue(), t: t, rnd: rnd, now: time.Second, pools: make(map[groupKey][]*Server), called: make(map[*Waiter]bool)}
			all := make([]*Server, 6)
			for i := range all {
				all[i] = &Server{Lot: rnd.Uint64()}
			}
			pools := [][]*Server{all, all[:4], all[2:5], all[2:], {all[0], all[1], all[0]}}
			keys := make([]groupKey, 3)
			for i := range keys {
				keys[i] = groupKey{policy: new(int), limit: 1 + rnd.Int64N(4)}
			}
			waiters := make([]*Waiter, 14)
			for i := range waiters {
				absent := time.Duration(1+rnd.IntN(30)) * time.Second
				waiters[i] = NewWaiter(time.Duration(rnd.IntN(8)), absent)
			}
			for range 400 {
				n, u := rnd.IntN(len(waiters)), all[rnd.IntN(len(all))]
				tk, k := waiters[n], keys[n%len(keys)]
				switch rnd.IntN(8) {
				case 0, 1:
					l.looks(tk, k, pools[rnd.IntN(len(pools))])
				case 2:
					l.leaves(tk)
				case 3:
					l.changes(u)
				case 4, 5:
					l.asks(tk, u, k.limit)
				case 6:
					l.asks(nil, u, k.limit)
				case 7:
					l.now += time.Duration(rnd.IntN(5)) * time.Second
				}
				l.compare(waiters)
			}
			for _, tk := range waiters {
				l.Leave(tk, l.now)
			}
			left := len(l.groups) + len(l.Queue.waiters) + int(l.length.Load())
			for _, u := range all {
				left += len(u.groups)
			}
			if left != 0 {
				t.Error("something is left when all have left")
			}
		})
	}
}

// server returns a server with so many sessions, some of which hold no slot.
func server(lot uint64, sessions, slotless int64) *Server {
	s := &Server{Lot: lot}
	s.Sessions.Store(sessions)
	s.Slotless.Store(slotless)
	return s
}

// offer returns what a visit may wait for: the free servers of a pool.
func offer(pool []*Server, free ...*Server) *Offer {
	var sums Sums
	for _, s := range pool {
		sums.Add(s, slices.Contains(free, s))
	}
	return NewOffer(sums, free)
}

// isCalled says whether the waiter has been called since it was asked last.
func isCalled(w *Waiter) bool {
	select {
	case <-w.Turn():
		return true
	default:
		return false
	}
}

// Sessions that hold no slot are overlooked, up to the limit: there are never more than twice as many.
func TestSlotsTaken(t *testing.T) {
	for _, tc := range []struct{ sessions, slotless, limit, taken, holding int64 }{
		{0, 0, 5, 0, 0},
		{5, 0, 5, 5, 5},
		{5, 2, 5, 3, 3},
		{10, 5, 5, 5, 5},
		{12, 10, 5, 7, 2},
	} {
		s := server(1, tc.sessions, tc.slotless)
		if taken, holding := s.Taken(tc.limit), s.Holding(); taken != tc.taken || holding != tc.holding {
			t.Errorf("of %d sessions, %d without a slot, %d of %d slots are taken, %d hold one; want %d, %d",
				tc.sessions, tc.slotless, taken, tc.limit, holding, tc.taken, tc.holding)
		}
	}
}

// A slot that becomes free is the oldest visit's, and nobody else hears of it.
func TestFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(), server(1, 2, 0)
		if !q.IsEmpty() {
			t.Error("a new queue is not empty")
		}
		young, old := NewWaiter(2, time.Minute), NewWaiter(1, time.Minute)
		for _, w := range []*Waiter{young, old} {
			q.Enter(w, "policy", 2, offer([]*Server{s}, s), 3)
		}
		if q.IsEmpty() {
			t.Error("the queue is empty though two wait")
		}
		freed := func() (called [2]bool) {
			q.Freed(s, 4)
			synctest.Wait()
			return [2]bool{isCalled(old), isCalled(young)}
		}
		if got := freed(); got != [2]bool{} {
			t.Errorf("called while all slots are taken: %v", got)
		}
		s.Sessions.Store(1)
		if got := freed(); got != [2]bool{true, false} {
			t.Errorf("called for one slot: %v, want the oldest", got)
		}
		s.Sessions.Store(0)
		if got := freed(); got != [2]bool{true, true} {
			t.Errorf("called for two slots: %v, want both", got)
		}
		q.Leave(old, 5)
		if got := [2]bool{isCalled(old), isCalled(young)}; got != [2]bool{false, true} {
			t.Errorf("called when the oldest leaves: %v, want the next", got)
		}
		q.Leave(young, 5)
		if !q.IsEmpty() {
			t.Error("the queue is not empty when all have left")
		}
		if got := freed(); got != [2]bool{} {
			t.Errorf("called after they have left: %v", got)
		}
	})
}

// The turns at a server are as many as its slots, of which sessions without one take none.
func TestTurnsOfSlotlessSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(), server(1, 3, 2) // one of two slots is taken
		one, two := NewWaiter(1, time.Minute), NewWaiter(2, time.Minute)
		for _, w := range []*Waiter{one, two} {
			q.Enter(w, "policy", 2, offer([]*Server{s}, s), 3)
		}
		q.Freed(s, 4)
		synctest.Wait()
		if called := [2]bool{isCalled(one), isCalled(two)}; called != [2]bool{true, false} {
			t.Errorf("called for the one slot: %v, want the first", called)
		}
		for name, tc := range map[string]struct {
			w    *Waiter
			want bool
		}{"the first": {one, true}, "the second": {two, false}, "one that has just come": {nil, false}} {
			if got := q.Admits(tc.w, s, 2, 4); got != tc.want {
				t.Errorf("%s may have the slot: %v, want %v", name, got, tc.want)
			}
		}
	})
}

// Visits that wait for one pool share what the last one of them found. Those of another pool, even if it has as many servers, do not.
func TestOffersAreOfPools(t *testing.T) {
	a, b, c := server(11, 0, 0), server(13, 0, 0), server(17, 0, 0)
	q := NewQueue()
	one, other, last := NewWaiter(1, time.Minute), NewWaiter(2, time.Minute), NewWaiter(3, time.Minute)
	q.Enter(one, "policy", 2, offer([]*Server{a, b}), 4)
	q.Enter(other, "policy", 2, offer([]*Server{a, c}), 4)
	q.Enter(last, "policy", 2, offer([]*Server{a, b}, a), 4)
	if !isCalled(one) {
		t.Error("a visit is not called when another one finds a free server of its pool")
	}
	if isCalled(other) {
		t.Error("a visit is called for what another pool has free")
	}
	q.Enter(last, "policy", 2, offer([]*Server{a, b}, a), 5)
	if isCalled(one) {
		t.Error("a visit is called again though nothing has changed")
	}
	q.Enter(last, "policy", 2, offer([]*Server{a, b}, b), 5)
	if !isCalled(one) {
		t.Error("a visit is not called when another server is free")
	}
}

// fullQueue returns a queue, servers that have their one session, for which visits wait, and a waiter.
func fullQueue(servers, waiting int) (q *Queue, o *Offer, k groupKey, tk *Waiter) {
	q, o = NewQueue(), new(Offer)
	for i := range servers {
		u := &Server{Lot: uint64(i) + 1}
		u.Sessions.Store(1)
		o.servers = append(o.servers, u)
		o.pool += u.Lot
	}
	o.free = o.pool
	k = groupKey{new(int), 1, o.pool}
	for i := range waiting + 1 {
		tk = NewWaiter(time.Duration(i), time.Hour)
		if i < waiting {
			q.Enter(tk, k.policy, k.limit, o, 1)
		}
	}
	return q, o, k, tk
}

// What a visit costs does not depend on how many wait: compare the rows of the same number of upstreams.
func BenchmarkQueue(b *testing.B) {
	for _, servers := range []int{4, 100, 1000} {
		for _, waiting := range []int{1, 500, 2000, 8000, 32000} {
			q, o, k, tk := fullQueue(servers, waiting)
			now, u := time.Duration(1), o.servers[0]
			name := fmt.Sprintf("servers=%d/waiting=%d", servers, waiting)
			b.Run(name+"/come and leave", func(b *testing.B) {
				for b.Loop() {
					q.Enter(tk, k.policy, k.limit, o, now)
					q.Leave(tk, now)
				}
			})
			b.Run(name+"/look again", func(b *testing.B) {
				oldest := u.groups[0].waiters[0]
				for b.Loop() {
					q.Enter(oldest, k.policy, k.limit, o, now)
				}
			})
			u.Sessions.Store(0)
			b.Run(name+"/ask for a slot", func(b *testing.B) {
				for b.Loop() {
					q.Admits(nil, u, 1, now)
				}
			})
			b.Run(name+"/take the slot", func(b *testing.B) {
				for b.Loop() {
					oldest := u.groups[0].waiters[0]
					q.Leave(oldest, now)
					oldest.since = now
					q.Enter(oldest, k.policy, k.limit, o, now)
				}
			})
		}
	}
}
