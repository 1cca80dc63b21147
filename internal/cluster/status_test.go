// This file tests that who asks changes nothing.

package cluster

import (
	"maps"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// What a node tells is found by its loop. Nothing is judged, told of, stored or started because somebody asks.
func TestReadingChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := clustertest.NewVault()
		a := startNode(t, v)
		pass(time.Minute)
		_, hangUp := a.socket(a.visitAt(u0))
		a.drain(u0)
		pass(30 * time.Second)
		a.kill() // the loop finds nothing any more
		synctest.Wait()
		hangUp()
		pass(32*time.Second + 250*time.Millisecond)
		a.s.drain("u1:80")
		a.mu.Lock()
		a.round, a.listed = a.conf.Table.Now(), a.conf.Table.Now() // as if it had just read the storage
		verdicts, events, logged, ttl := maps.Clone(a.verdicts), len(a.events), a.logs.Len(), a.lastTTL
		a.mu.Unlock()
		v.Lock()
		stored := maps.Clone(v.Values)
		v.Unlock()

		for _, st := range a.Upstreams() {
			if st.State == api.StateDrained {
				t.Errorf("%s is called drained by who asks", st.Address)
			}
			if st.Address == "u1:80" && len(st.WaitingFor) == 0 {
				t.Error("it is not told what a drain waits for that has just begun")
			}
		}
		a.Nodes()
		a.Self()
		a.KeysAgree()
		_ = a.Active()

		a.mu.Lock()
		defer a.mu.Unlock()
		if !reflect.DeepEqual(a.verdicts, verdicts) || len(a.events) != events || a.logs.Len() != logged || a.lastTTL != ttl {
			t.Errorf("verdicts are %+v, were %+v; events %d, were %d; lines logged %d, were %d", a.verdicts, verdicts, len(a.events), events, a.logs.Len(), logged)
		}
		if a.s.get(u0).Drain.IsEmpty(a.conf.Table.Now()) {
			t.Error("sessions are sent elsewhere because somebody has asked")
		}
		v.Lock()
		defer v.Unlock()
		if !reflect.DeepEqual(v.Values, stored) {
			t.Error("something was stored")
		}
		wantRunning(t, 0, "after it was asked")
		a.judgeAll(a.conf.Table.Now())
		if !a.verdicts[a.s.get(u0)].Drained {
			t.Errorf("nothing was to be found: %+v", a.verdicts)
		}
	})
}

// How busy a server is, and how long clicks take there, is told as the websockets of this Caddy show it.
func TestStatusOfWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startNode(t, clustertest.NewVault())
		pass(time.Minute)
		u := a.s.get(u0)
		work := func() *api.Upstream {
			all := a.Upstreams()
			return all[slices.IndexFunc(all, func(st *api.Upstream) bool { return st.Address == u0 })]
		}
		if st := work(); st.Busy != 0 || st.Click != nil {
			t.Errorf("it was busy for %v, and clicks took %+v", st.Busy, st.Click)
		}
		talk := sessions.NewTalk(u)
		for range 5 {
			talk.Asked(a.s.table.Now())
			pass(time.Second)
			talk.Answered(a.s.table.Now())
			pass(time.Second)
		}
		if st := work(); st.Busy != .5 || st.Click == nil || st.Click.P50 < .98 || st.Click.P95 > 1.02 {
			t.Errorf("it was busy for %v, and clicks took %+v", st.Busy, st.Click)
		}
	})
}
