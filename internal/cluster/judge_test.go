// This file tests the verdict alone, without a clock, a storage or another node: each line changes one thing of what is known of an upstream
// that would be called drained.

package cluster

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

// judgedAt is when the snapshots of this file are taken.
const judgedAt = time.Hour

// emptyUpstream returns what is known of an upstream that a drain record has drained for long, that is empty on this node and on another
// one, and the verdict before, which waits for the other node to say so once more. It does just that.
func emptyUpstream() (_ *snapshot, before verdict) {
	other := &peer{changed: judgedAt, report: &report{
		Node: "beef", Host: "there", Seq: 9, Heard: map[string]uint64{"cafe": 7}, Settles: 32 * time.Second, Settled: true,
		Upstreams: map[string]account{u0: {InPool: true, Draining: true, Mark: "x", Begun: 3}},
	}}
	s := &snapshot{
		now: judgedAt, node: "cafe", host: "here", upSince: 1, seq: 7, ttl: 32 * time.Second,
		shared: u0, record: &drainRecord{ID: "x", Upstream: u0, State: stateDraining},
		here:    hereAt{started: 5},
		storage: storageAt{read: judgedAt, listed: judgedAt, trusted: true},
		peers:   []*peer{other},
	}
	at := judgedAt - time.Minute
	return s, verdict{mark: "x", begun: at, moment: &moment{at: at, seq: 7, begun: map[string]int64{"cafe": 5, "beef": 3}}}
}

// says changes what the other node of a snapshot tells of the upstream.
func (s *snapshot) says(change func(a *account)) {
	a := s.peers[0].Upstreams[u0]
	change(&a)
	s.peers[0].Upstreams[u0] = a
}

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(s *snapshot, before *verdict)
		why    string // what it waits for; empty where it is drained
		lasts  bool   // though it is not drained for that now, it stays so where it was before
	}{
		"nothing speaks against it":       {func(*snapshot, *verdict) {}, "", false},
		"there is no other node":          {func(s *snapshot, _ *verdict) { s.peers = nil; s.storage.trusted = true }, "", false},
		"a session is here":               {func(s *snapshot, _ *verdict) { s.here.sessions = 1 }, "it has 1 session", false},
		"sessions are here":               {func(s *snapshot, _ *verdict) { s.here.sessions = 2 }, "it has 2 sessions", false},
		"this node has just started":      {func(s *snapshot, _ *verdict) { s.upSince = judgedAt - 32*time.Second + 1 }, "it has just started; browsers may come back for another 1s", false},
		"it has started long enough ago":  {func(s *snapshot, _ *verdict) { s.upSince = judgedAt - 32*time.Second }, "", false},
		"it has started, and is closed":   {func(s *snapshot, _ *verdict) { s.upSince, s.here.closed = judgedAt, true }, "", false},
		"it was closed a moment ago":      {func(s *snapshot, _ *verdict) { s.here.reopened = 1500 * time.Millisecond }, "it was closed until a moment ago; browsers may come back for another 2s", false},
		"the drain is new":                {func(_ *snapshot, v *verdict) { v.begun = judgedAt - drainQuarantine + 1 }, "the mark is new", false},
		"the drain is as old as it must":  {func(_ *snapshot, v *verdict) { v.begun = judgedAt - drainQuarantine }, "", false},
		"it is another drain":             {func(_ *snapshot, v *verdict) { v.mark = "y" }, "the mark is new", false},
		"the storage was not read lately": {func(s *snapshot, _ *verdict) { s.storage.read -= staleTimeout + 1 }, "it cannot read the storage", false},
		"it was read just lately enough":  {func(s *snapshot, _ *verdict) { s.storage.read -= staleTimeout }, "", false},
		"the storage cannot be written":   {func(s *snapshot, _ *verdict) { s.storage.unheard = judgedAt - staleTimeout - 1 }, "it cannot write to the storage", false},
		"it failed once a moment ago":     {func(s *snapshot, _ *verdict) { s.storage.unheard = judgedAt - staleTimeout }, "", false},
		"its own report is not listed":    {func(s *snapshot, _ *verdict) { s.storage.listed = 0 }, "it does not find its own report", false},
		"it is not listed any more":       {func(s *snapshot, _ *verdict) { s.storage.listed -= staleTimeout + 1 }, "it does not find its own report", false},
		"the storage is new":              {func(s *snapshot, _ *verdict) { s.storage.trusted = false }, "it has not found its own report in the storage that its config names now", true},

		"the other node has not read of it":   {func(s *snapshot, _ *verdict) { s.says(func(a *account) { a.Mark = "" }) }, "it has not said that it has read the mark", false},
		"the other node has a session":        {func(s *snapshot, _ *verdict) { s.says(func(a *account) { a.Sessions = api.Counts{Waiting: 1} }) }, "it has 1 session", false},
		"it was closed there a moment ago":    {func(s *snapshot, _ *verdict) { s.says(func(a *account) { a.Reopened = true }) }, "it was closed there until a moment ago", false},
		"the other node is young":             {func(s *snapshot, _ *verdict) { s.peers[0].Settled = false }, "it has just started; browsers may come back to it", true},
		"the other node is young, and closed": {func(s *snapshot, _ *verdict) { s.peers[0].Settled, s.record.State = false, stateClosed }, "", false},
		"the other node is late":              {func(s *snapshot, _ *verdict) { s.peers[0].changed -= overdueTimeout + 1 }, "it has not reported for 31s; if it is dead, say so (DELETE /bokeh/nodes/beef)", true},
		"it is not late yet":                  {func(s *snapshot, _ *verdict) { s.peers[0].changed -= overdueTimeout }, "", false},
		"it is gone, and browsers come back":  {func(s *snapshot, _ *verdict) { s.peers[0].gone = judgedAt - 31*time.Second }, "it is gone; browsers may come back for another 1s", true},
		"it is gone, and nobody comes back":   {func(s *snapshot, _ *verdict) { s.peers[0].gone = judgedAt - 32*time.Second }, "", false},
		"it is gone, and all is closed":       {func(s *snapshot, _ *verdict) { s.peers[0].gone, s.record.State = judgedAt, stateClosed }, "", false},
		"it is gone, and said it takes long":  {func(s *snapshot, _ *verdict) { s.peers[0].gone, s.peers[0].Settles = judgedAt, time.Hour }, "(if nobody does, say so: DELETE /bokeh/nodes/beef?force=true)", true},
		"it has not heard of the moment":      {func(s *snapshot, _ *verdict) { s.peers[0].Heard = map[string]uint64{"cafe": 6} }, "it must say so once more", true},
		"it has heard what nobody said":       {func(s *snapshot, _ *verdict) { s.peers[0].Heard = map[string]uint64{"cafe": 8} }, "it must say so once more", true},
		"a session has come and gone there":   {func(s *snapshot, _ *verdict) { s.says(func(a *account) { a.Begun++ }) }, "it must say so once more", false},
		"a session has come and gone here":    {func(s *snapshot, _ *verdict) { s.here.started++ }, "it must say so once more", false},
		"no moment was found yet":             {func(_ *snapshot, v *verdict) { v.moment, v.drained = nil, false }, "it must say so once more", false},
		"sessions live for short":             {func(s *snapshot, v *verdict) { s.ttl, v.moment.at = 9*time.Second, judgedAt-4*time.Second }, "it must say so once more", true},
		"a config drains it, here and there":  {func(s *snapshot, v *verdict) { s.record, v.mark = nil, "" }, "", false},
		"the other one's config does not": {func(s *snapshot, v *verdict) {
			s.record, v.mark = nil, ""
			s.says(func(a *account) { a.Draining = false })
		}, "its config does not drain the upstream", false},
		"the other one does not know its pool": {func(s *snapshot, v *verdict) {
			s.record, v.mark = nil, ""
			s.peers[0].Unsure = true
			delete(s.peers[0].Upstreams, u0)
		}, "it may have the upstream in a pool that it does not know yet", false},
		"the other one does not have it at all": {func(s *snapshot, v *verdict) {
			s.record, v.mark = nil, ""
			delete(s.peers[0].Upstreams, u0)
			v.moment.begun = map[string]int64{"cafe": 5}
		}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, was := range []bool{false, true} {
				s, before := emptyUpstream()
				before.drained = was
				tc.change(s, &before)
				was = before.drained
				var moment map[string]int64
				if before.moment != nil {
					moment = maps.Clone(before.moment.begun)
				}
				v := s.judge(before)
				if want := tc.why == "" || was && tc.lasts; v.drained != want {
					t.Errorf("drained before: %v; drained is %v, want %v; it waits for %v", was, v.drained, want, v.waits)
				}
				var reasons []string
				for _, w := range v.waits {
					reasons = append(reasons, w.Reason)
				}
				told := strings.Join(reasons, "; ")
				if !v.drained && (tc.why == "" || !strings.Contains(told, tc.why)) {
					t.Errorf("drained before: %v; it waits for %q, want %q", was, told, tc.why)
				}
				if before.drained != was || before.moment != nil && !maps.Equal(before.moment.begun, moment) {
					t.Error("judging has changed the verdict before")
				}
			}
		})
	}
}
