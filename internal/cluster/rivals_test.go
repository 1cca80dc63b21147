// This file tests that the last upstreams of a pool are not drained at once through several Caddys.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
)

// However several Caddys drain the upstreams of a pool at the same time, one of them is left. All others are drained, unless the storage
// takes longer than they wait for each other.
func TestLastOnesAtOnce(t *testing.T) {
	gaveWay, held := 0, 0
	for seed := range uint64(150) {
		size := 2 + int(seed%3)
		most := []time.Duration{0, 20 * time.Millisecond, 300 * time.Millisecond, 900 * time.Millisecond}[seed/3%4]
		synctest.Test(t, func(t *testing.T) {
			v, rnd := clustertest.NewVault(), rand.New(rand.NewPCG(seed, 4))
			var nodes []*caddyNode
			for i := range size {
				nodes = append(nodes, startTricked(t, clustertest.SlowTrick(v.Door(), most, seed*10+uint64(i)), size))
			}
			pass(time.Minute)
			statuses := make([]int, size)
			var asked sync.WaitGroup
			for i, n := range nodes {
				begins := time.Duration(rnd.Int64N(int64(most + time.Millisecond)))
				asked.Go(func() {
					time.Sleep(begins)
					statuses[i], _ = n.drainAsked(fmt.Sprintf("u%d:80", i), false)
				})
			}
			asked.Wait()
			drained := 0
			for i, status := range statuses {
				addr := fmt.Sprintf("u%d:80", i)
				state := storedState(v, addr)
				switch {
				case status == http.StatusOK && state == api.StateDraining:
					drained++
					held++
				case status == http.StatusConflict && state == api.StateReady:
					gaveWay++
				default:
					t.Errorf("seed %d: %s is answered with %d and is %s", seed, addr, status, state)
				}
			}
			if drained == size || drained < size-1 && most <= 20*time.Millisecond || drained == 0 && most <= 300*time.Millisecond {
				t.Errorf("seed %d: of %d upstreams %d are drained, answers %v", seed, size, drained, statuses)
			}
			pass(20 * time.Second)
			for i, status := range statuses {
				want := map[int]string{http.StatusOK: api.StateDraining, http.StatusConflict: api.StateReady}[status]
				for _, n := range nodes {
					n.mu.Lock()
					md := n.drains[fmt.Sprintf("u%d:80", i)]
					if drains := md != nil && md.Drains(); drains != (want == api.StateDraining) {
						t.Errorf("seed %d: u%d was answered with %d, and through a node it is otherwise", seed, i, status)
					}
					n.mu.Unlock()
				}
			}
			for _, n := range nodes {
				n.kill()
			}
			pass(10 * time.Second) // what they were doing takes its time
		})
	}
	if t.Logf("%d held, %d gave way", held, gaveWay); gaveWay < 100 || held < 200 {
		t.Error("too little happens")
	}
}

// A drain by force does not give way, also to one that is older; nor does what was drained before, whatever is said of it now.
func TestForceDoesNotGiveWay(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			v := clustertest.NewVault()
			a := startTricked(t, clustertest.SlowTrick(v.Door(), 200*time.Millisecond, seed), 2)
			b := startTricked(t, clustertest.SlowTrick(v.Door(), 200*time.Millisecond, seed+1000), 2)
			pass(time.Minute)
			var asked sync.WaitGroup
			asked.Go(func() {
				if status, said := a.drainAsked(u0, true); status != http.StatusOK {
					t.Errorf("seed %d: by force it is answered with %d %s", seed, status, said)
				}
			})
			asked.Go(func() { _, _ = b.drainAsked("u1:80", false) })
			asked.Wait()
			if got := storedState(v, u0); got != api.StateDraining {
				t.Errorf("seed %d: what was drained by force is %s", seed, got)
			}
			if status, said := b.drainAsked("u1:80", true); status != http.StatusOK {
				t.Errorf("seed %d: by force it is answered with %d %s", seed, status, said)
			}
			grace := time.Hour
			if err := askDrain(t.Context(), b.Cluster, u0, record.Request{State: api.StateDraining, Reason: "new version", Grace: &grace}); err != nil {
				t.Errorf("seed %d: changing a drain that holds: %v", seed, err)
			}
			m, err := record.LoadDrain(t.Context(), v.Door(), u0)
			if err != nil || !m.Drains() || m.Reason != "new version" || m.Left != grace {
				t.Errorf("seed %d: with another reason and grace period it is %+v, %v", seed, m, err)
			}
			a.kill()
			b.kill()
			pass(10 * time.Second)
		})
	}
}

// What an operator says while a drain is looked at a second time is the last word.
func TestSaidDuringTheSecondLook(t *testing.T) {
	for state, want := range map[string]int{api.StateReady: http.StatusConflict, api.StateDraining: http.StatusOK} {
		t.Run(state, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := clustertest.NewVault()
				b := startNodeOn(t, "b", v.Door(), testPool(2))
				said := false
				a := rivals(t, v, func() error {
					if !said {
						said = true
						time.Sleep(time.Millisecond)
						b.tell(u0, record.Request{State: state, Reason: "no, wait"})
						if state == api.StateDraining {
							b.tell("u1:80", record.Request{State: state})
							b.tell("u1:80", record.Request{State: api.StateReady})
						} else {
							b.tell("u1:80", record.Request{State: api.StateDraining})
						}
					}
					return nil
				})
				status, answer := a.drainAsked(u0, false)
				if status != want {
					t.Errorf("it is answered with %d %s", status, answer)
				}
				pass(10 * time.Second)
				for _, n := range []*caddyNode{a, b} {
					n.mu.Lock()
					md := n.drains[u0]
					if md == nil || md.State != state || md.Reason != "no, wait" {
						t.Errorf("the last word is %+v", md)
					}
					n.mu.Unlock()
				}
			})
		})
	}
}

// A node that is closed while it waits for another one to give way waits no longer, and takes back what may not stand, also where its
// policies have gone before a slow storage has answered.
func TestClosedWhileItWaitsForARival(t *testing.T) {
	for _, slow := range []time.Duration{0, 300 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			v, wrote := clustertest.NewVault(), false
			a := rivals(t, v, func() error {
				if !wrote {
					wrote = true
					newer := record.Request{State: api.StateDraining, UnlessLast: true}.Record(nil, "u1:80", "another", 0)
					newer.Said++
					put(t, v, record.DrainKey("u1:80"), newer)
				}
				time.Sleep(slow)
				return nil
			})
			asked, answered := time.Now(), make(chan time.Duration, 1)
			go func() {
				if err := askDrain(context.Background(), a.Cluster, u0, record.Request{State: api.StateDraining}); !errors.Is(err, ErrInterrupted) {
					t.Errorf("it is answered with %v", err)
				}
				answered <- time.Since(asked)
			}()
			time.Sleep(rivalTimeout / 2)
			a.Close()
			_ = a.s.Cleanup()
			if took := <-answered; took < rivalTimeout/2 || took > rivalTimeout-rivalInterval {
				t.Errorf("it is answered after %v", took)
			}
			if state := storedState(v, u0); state != api.StateReady {
				t.Errorf("it is %s", state)
			}
		})
	}
}

// What was drained before stands, whatever becomes of others, and of the node through which something else is said of it.
func TestClosedWhileADrainIsChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startTricked(t, &clustertest.Trick{Door: v.Door()}, 2)
		pass(time.Minute)
		if status, said := a.drainAsked(u0, false); status != http.StatusOK {
			t.Fatal(status, said)
		}
		put(t, v, record.DrainKey("u1:80"), record.Request{State: api.StateDraining}.Record(nil, "u1:80", "another", 0))
		pass(time.Minute)
		answered := make(chan error, 1)
		go func() {
			answered <- a.SetDrain(context.Background(), u0, record.Request{State: api.StateDraining, Reason: "new"})
		}()
		time.Sleep(rivalTimeout / 2)
		a.Close()
		if err := <-answered; err != nil {
			t.Error(err)
		}
		if m, err := record.LoadDrain(t.Context(), v.Door(), u0); err != nil || !m.Drains() || m.Reason != "new" {
			t.Errorf("it is %+v, %v", m, err)
		}
	})
}

// What gives way is again as it was, by whom and since when.
func TestGivesWayToWhatWasBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		b := startNodeOn(t, "b", v.Door(), testPool(2))
		b.drain(u0)
		pass(time.Minute)
		b.tell(u0, record.Request{State: api.StateReady, By: "somebody", Reason: "all is well"})
		pass(time.Minute)
		before, _ := record.LoadDrain(t.Context(), v.Door(), u0)
		a := rivals(t, v, func() error { return errors.New("no route to host") })
		_, _ = a.drainAsked(u0, false)
		after, _ := record.LoadDrain(t.Context(), v.Door(), u0)
		if after.ID == before.ID || !after.Newer(before) || after.State != api.StateReady || after.By != "somebody" || after.Reason != "all is well" || !after.Since.Equal(before.Since) {
			t.Errorf("it is %+v, and was %+v", after, before)
		}
		m := record.Request{State: api.StateDraining}.Record(before, u0, "c", 0)
		back := m.Withdrawn(before)
		if later := (record.Request{State: api.StateDraining, Reason: "again"}).Record(m, u0, "c", 0); !back.Newer(m) || !back.Newer(m.Closed()) || !later.Newer(back) {
			t.Error("the order of marks is another one")
		}
	})
}

// Who drains an upstream a second time, with a grace period, while it is not certain that the first drain can stand, gets no drain
// that stands for that: through the same Caddy, or through another one.
func TestTypedTwice(t *testing.T) {
	for through, count := range map[string]uint64{"the same": 2, "another one": 4} {
		t.Run(through, func(t *testing.T) {
			for seed := range uint64(40) {
				synctest.Test(t, func(t *testing.T) {
					v := clustertest.NewVault()
					var nodes []*caddyNode
					for i := range count {
						nodes = append(nodes, startTricked(t, clustertest.SlowTrick(v.Door(), 300*time.Millisecond, seed+1000*i), 2))
					}
					pass(time.Minute)
					grace := time.Hour
					var asked sync.WaitGroup
					for i := range 2 {
						for j := range 2 {
							n := nodes[(i+2*j)%len(nodes)]
							asked.Go(func() {
								time.Sleep(time.Duration(j) * 700 * time.Millisecond)
								_ = askDrain(context.Background(), n.Cluster, fmt.Sprintf("u%d:80", i), record.Request{State: api.StateDraining, By: n.name, Grace: &grace})
							})
						}
					}
					asked.Wait()
					pass(20 * time.Second)
					if storedState(v, u0) != api.StateReady && storedState(v, "u1:80") != api.StateReady {
						t.Errorf("seed %d: both drain", seed)
					}
					for _, n := range nodes {
						n.kill()
					}
					pass(10 * time.Second)
				})
			}
		})
	}
}

// Who waits for another one's drain of the same upstream, and goes away, has said nothing.
func TestWaitsForTheOtherDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, clustertest.NewVault()).Cluster
		done, err := n.waitForTurn(t.Context(), u0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := askDrain(ctx, n, u0, record.Request{State: api.StateDraining}); err == nil || n.drains[u0] != nil {
			t.Errorf("it is answered with %v, and marked: %v", err, n.drains[u0])
		}
		done()
		if err := askDrain(t.Context(), n, u0, record.Request{State: api.StateDraining}); err != nil || len(n.turns) > 0 {
			t.Errorf("when the other one is done: %v, %d turns are taken", err, len(n.turns))
		}
	})
}

// A drain that stands is stored as one, and a drain that is refused keeps none from others.
func TestSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		for _, addr := range []string{u0, "u1:80"} {
			if status, said := a.drainAsked(addr, false); status != http.StatusOK {
				t.Fatal(status, said)
			}
			if m, err := record.LoadDrain(t.Context(), v.Door(), addr); err != nil || m.Unsettled {
				t.Errorf("it is stored as %+v, %v", m, err)
			}
		}
		first := record.Request{State: api.StateDraining, UnlessLast: true}.Record(nil, u0, "c", 0)
		if forced := (record.Request{State: api.StateDraining}).Record(first, u0, "c", 0); !forced.Newer(first) || forced.Unsettled {
			t.Errorf("by force what may be taken back becomes %+v", forced)
		}
		if err := a.reserve("u2:80", false); err == nil || len(a.reserved) > 0 {
			t.Errorf("the last one: %v, and %v is pending", err, a.reserved)
		}
	})
}

// rivals starts two nodes with a pool of two; through the first one, the second look at u1 does what it is told.
func rivals(t *testing.T, v *clustertest.Vault, second func() error) *caddyNode {
	var started, written atomic.Bool
	a := startTricked(t, &clustertest.Trick{
		Door: v.Door(),
		OnStored: func() error {
			written.Store(started.Load())
			return nil
		},
		OnLoad: func(key string) error {
			if !written.Load() || key != record.DrainKey("u1:80") {
				return nil
			}
			return second()
		},
	}, 2)
	pass(time.Minute)
	started.Store(true)
	return a
}
