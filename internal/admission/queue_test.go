// This file holds the queue against what it is meant to be, and measures it.

package admission

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
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

// fullQueue returns a queue, servers that have their one session, for which visits wait, and a ticket.
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

// What a visit costs does not depend on how many wait: compare the lines of the same number of upstreams.
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
