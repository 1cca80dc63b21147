// This file tests that nothing of a node goes on when it is closed, nor of a config when that is unloaded.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// running returns the goroutines of nodes and of calls of their storages, but for the one that asks.
func running() (found []string) {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, stack := range strings.Split(string(stacks), "\n\n")[1:] {
		if strings.Contains(stack, "internal/cluster.(*Cluster)") || strings.Contains(stack, "internal/cluster.await") {
			found = append(found, stack)
		}
	}
	return found
}

// wantRunning checks how many goroutines of nodes there are.
func wantRunning(t *testing.T, want int, when string) {
	t.Helper()
	if got := running(); len(got) != want {
		t.Errorf("%s %d goroutines are running, want %d:\n%s", when, len(got), want, strings.Join(got, "\n\n"))
	}
}

// When a node is closed, nothing of it goes on: whatever it was doing. The bubble fails as well if something is left.
func TestCloseEndsAll(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, a *caddyNode) (others func()){
		"idle": func(*testing.T, *caddyNode) func() { return func() {} },
		"draining, with a session": func(_ *testing.T, a *caddyNode) func() {
			_, hangUp := a.socket(a.visitAt(u0))
			a.drain(u0)
			pass(10 * time.Second)
			return hangUp
		},
		"another config is loading, whose storage fails": func(t *testing.T, a *caddyNode) func() {
			d := clustertest.NewVault().Door()
			d.Fail(errors.New("no route to host"))
			s := newTestPolicyWith(a.s.table, a.pool)
			_ = a.Attach(s, d)
			pass(time.Second)
			if got := len(running()); got < 5 {
				t.Errorf("%d goroutines are running, want those that look at the storage among them", got)
			}
			return func() { _ = s.Cleanup() }
		},
		"a slow subscriber": func(_ *testing.T, a *caddyNode) func() {
			a.s.raise = func(string, map[string]any) { time.Sleep(time.Second) }
			a.Publish("something", nil)
			synctest.Wait()
			return func() {}
		},
		"it has retired": func(_ *testing.T, a *caddyNode) func() {
			_ = a.s.Cleanup()
			pass(time.Minute)
			return func() {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := startNode(t, clustertest.NewVault())
				pass(time.Minute)
				others := prepare(t, a)
				a.Close()
				wantRunning(t, 0, "when it is closed")
				a.Close() // which Caddy's end may do again
				others()
				pass(time.Minute)
				wantRunning(t, 0, "a minute later")
			})
		})
	}
}

// A storage that hangs keeps a node from ending no longer than an operator waits, and what is left ends with the call.
func TestCloseWithAStorageThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		release := a.door.Hang()
		pass(4 * time.Second)
		began := time.Now()
		a.Close()
		if took := time.Since(began); took > operatorTimeout {
			t.Errorf("it takes %v to close", took)
		}
		release()
		pass(2 * store.CallTimeout)
		wantRunning(t, 0, "when the storage has answered")
	})
}

// What is killed leaves nothing behind either.
func TestKillEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		a.kill()
		synctest.Wait()
		wantRunning(t, 0, "when it is killed")
	})
}

// Configs come and go, and each takes along what looks at its storage.
func TestUnloadedConfigEndsItsLoops(t *testing.T) {
	for _, fails := range []error{nil, errors.New("no route to host")} {
		t.Run(fmt.Sprint(fails), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := startNode(t, clustertest.NewVault())
				pass(time.Minute)
				before := len(running())
				if before == 0 {
					t.Fatal("nothing is running")
				}
				for range 10 {
					d := clustertest.NewVault().Door()
					d.Fail(fails)
					s := newTestPolicyWith(a.s.table, a.pool)
					_ = a.Attach(s, d) // of a config that fails to load
					synctest.Wait()
					_ = s.Cleanup()
					if a.Detach(s) {
						t.Error("the last policy is gone")
					}
					synctest.Wait()
					wantRunning(t, before, "when a config has failed")
				}
				for range 10 {
					end := a.load(clustertest.NewVault().Door(), a.pool)
					pass(5 * time.Second)
					end()
					synctest.Wait()
					wantRunning(t, before, "when a config has been replaced")
				}
				_ = a.s.Cleanup()
				pass(time.Minute)
				wantRunning(t, 0, "with no config and no session")
				a.Close()
			})
		})
	}
}

// What begins after the end does not begin.
func TestNothingStartsAfterTheEnd(t *testing.T) {
	l := newLoops(context.Background())
	l.end(time.Second)
	if l.start(func() { t.Error("it runs") }) {
		t.Error("it is started")
	}
}
