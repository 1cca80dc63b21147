// This file tests that nothing waits for a storage that does not answer, and that what does not end stays little.

package caddybokeh

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// quagmire holds the calls that get into it, for ever as far as a node can see.
type quagmire struct {
	on  atomic.Bool
	in  atomic.Int64
	end chan struct{}
}

func newQuagmire(t *testing.T) *quagmire {
	q := &quagmire{end: make(chan struct{})}
	t.Cleanup(func() {
		close(q.end)
		synctest.Wait()
	})
	return q
}

// cross lets a call through, or not.
func (q *quagmire) cross() error {
	if !q.on.Load() {
		return nil
	}
	q.in.Add(1)
	<-q.end
	return errors.New("it never came to that")
}

// One record that cannot be read to its end, as a FIFO in the place of a file, holds up nothing but itself.
func TestOneRecordHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, q := newVault(), newQuagmire(t)
		q.on.Store(true)
		stuck := markKey("elsewhere:80")
		b := startNode(t, v)
		a := startTricked(t, &trick{door: v.door(), load: func(key string) error {
			if key != stuck {
				return nil
			}
			return q.cross()
		}}, 3)
		pass(time.Minute)
		if err := v.door().Store(t.Context(), stuck, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		b.drain(u0)
		pass(callWait + nodePause + time.Second)
		a.wantNoVisit(u0, "8 s after another node was told")
		a.wantDrained(u0, false, "while a mark cannot be read")
		began := time.Now()
		if err := a.say(t.Context(), "u1:80", word{state: stateDraining}); err != nil || time.Since(began) > 0 {
			t.Errorf("an operator waits %v and hears: %v", time.Since(began), err)
		}
		pass(3 * time.Hour)
		if got := q.in.Load(); got < 2 || got > 16 {
			t.Errorf("in 3 h %d calls are left behind", got)
		}
		if err := v.door().Delete(t.Context(), stuck); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if got := a.node.status().Storage; got != "" {
			t.Errorf("when the record is gone the node tells of its storage: %q", got)
		}
		pass(10 * time.Second)
		a.wantDrained(u0, true, "when the record is gone")
	})
}

// A storage that answers nothing any more leaves little behind, and is found when it is well, though no call of before ever ends.
func TestStorageNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, q := newVault(), newQuagmire(t)
		cross := func(string) error { return q.cross() }
		b := startNode(t, v)
		a := startTricked(t, &trick{door: v.door(), list: cross, load: cross, store: q.cross}, 100)
		pass(time.Minute)
		for _, outage := range []time.Duration{10 * time.Second, 30 * time.Second, 10 * time.Minute, 10 * time.Second} {
			before := q.in.Load()
			q.on.Store(true)
			pass(outage)
			if got := q.in.Load() - before; got == 0 || got > 20 {
				t.Errorf("in %v %d calls are left behind", outage, got)
			}
			q.on.Store(false)
			pass(min(2*outage, longestSilence) + 3*callWait)
			b.drain(u0)
			pass(5 * time.Second)
			a.wantNoVisit(u0, "5 s after another node was told, with the storage well")
			pass(40 * time.Second)
			a.wantDrained(u0, true, "with the storage well")
			b.tell(u0, word{state: stateReady})
			pass(10 * time.Second)
			a.wantState(u0, stateReady, "with the storage well")
		}
	})
}

// A config waits once for its storage, however many policies it has: for the key and for the marks at the same time.
func TestStartWaitsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		keys := newHeldKeys()
		keys.logger = func() *zap.Logger { return zap.New(core) }
		st := &hung{release: make(chan struct{})}
		defer func() {
			close(st.release)
			pass(time.Minute)
		}()
		config, unload := context.WithCancel(t.Context())
		defer unload()
		pool, d := testPool(3), newVault().door()
		defer d.hang()()
		began := time.Now()
		var n *node
		for range 8 {
			s := newTestSelection(pool)
			if n == nil {
				n = makeNode(t, d, s, pool).node
			}
			s.table = n.t
			s.keyed = keys.keeper(config, st, keyPatience).answered
			s.join(n, d)
		}
		if took := time.Since(began); took != storageWait {
			t.Errorf("8 policies wait %v", took)
		}
		pass(time.Minute)
		if logs.Len() != 1 {
			t.Errorf("of the key it is logged: %v", logs.All())
		}
	})
}

// A node that has not looked for its key tells of none, and takes none for a strange one.
func TestKeysOfAPolicyThatHasNotLooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		other := startNode(t, v)
		pass(time.Minute)
		pool, d := testPool(3), v.door()
		s := newTestSelection(pool)
		ring := keyring{newKey([]byte("made for as long as nothing else is known"))}
		s.ring.Store(&ring)
		keyed := make(chan struct{})
		s.keyed = keyed
		a := makeNode(t, d, s, pool)
		go s.join(a.node, d)
		pass(4 * time.Second)
		for _, n := range []*caddyNode{other, a} {
			if got := n.logs.FilterMessageSnippet("signs its stamps with a key").Len(); got > 0 {
				t.Error("a key that nothing is signed with yet is taken for a strange one")
			}
		}
		close(keyed)
		pass(time.Minute)
		if other.logs.FilterMessageSnippet("signs its stamps with a key").Len() == 0 {
			t.Error("a strange key is not seen")
		}
	})
}

// What a reload says while the storage does not answer is so: the drains that are known hold.
func TestReloadWhileTheStorageHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault()
		a := startNode(t, v)
		pass(time.Minute)
		a.drain(u0)
		pass(time.Minute)
		next := v.door()
		release := next.hang()
		defer release()
		end := a.load(next, a.pool)
		a.wantNoVisit(u0, "after a reload while the storage hangs")
		end()
		pass(time.Minute)
		a.wantNoVisit(u0, "a minute later")
		if got := a.logs.FilterMessageSnippet("get new sessions").Len(); got > 0 {
			t.Error("it is logged that what is marked gets new sessions")
		}
		if got := a.logs.FilterMessageSnippet("knew before the reload").Len(); got != 1 {
			t.Errorf("that the storage does not answer is logged %d times, want once", got)
		}
	})
}

// Whoever cannot write to the storage calls nothing drained: the others do not hear of its sessions.
func TestDrainedWhileWritesFail(t *testing.T) {
	for name, fail := range map[string]func() error{
		"fails": func() error { return errors.New("disk full") },
		"hangs": func() error { time.Sleep(time.Hour); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer pass(2 * time.Hour)
				var failing atomic.Bool
				a := startTricked(t, &trick{door: newVault().door(), store: func() error {
					if !failing.Load() {
						return nil
					}
					return fail()
				}}, 3)
				pass(time.Minute)
				a.drain(u0)
				pass(time.Minute)
				a.wantDrained(u0, true, "while all is well")
				failing.Store(true)
				pass(staleAfter + 2*nodePause)
				for range 10 {
					a.wantWait(u0, "cannot write to the storage", "while it cannot write")
					pass(7 * time.Second)
				}
				if got := a.node.status().Storage; got == "" || strings.Contains(got, "read") {
					t.Errorf("the node tells of its storage: %q", got)
				}
				failing.Store(false)
				pass(time.Hour + 10*time.Second)
				a.wantDrained(u0, true, "when it can")
			})
		})
	}
}
