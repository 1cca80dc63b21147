// This file tests the verdict alone, without a clock, a storage or another node: each line changes one thing of what is known of an upstream
// that would be called drained.

package verdict

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
)

// judgedAt is when the snapshots of this file are taken.
const judgedAt = time.Hour

const upstream = "u0:80"

// emptyUpstream returns what is known of an upstream that a drain record has drained for long, that is empty on this node and on another
// one, and the verdict before, which waits for the other node to say so once more. It does just that.
func emptyUpstream() (_ *Snapshot, before Verdict) {
	other := &Peer{Changed: judgedAt, Report: &record.Report{
		Node: "beef", Host: "there", Seq: 9, Heard: map[string]uint64{"cafe": 7}, Settles: 32 * time.Second, Settled: true,
		Upstreams: map[string]record.Account{upstream: {InPool: true, Draining: true, Mark: "x", Begun: 3}},
	}}
	s := &Snapshot{
		Now: judgedAt, Node: "cafe", Host: "here", UpSince: 1, Seq: 7, TTL: 32 * time.Second,
		Shared: upstream, Record: &record.Drain{ID: "x", Upstream: upstream, State: api.StateDraining},
		Here:    Here{Started: 5},
		Storage: Storage{Read: judgedAt, Listed: judgedAt, Trusted: true},
		Peers:   []*Peer{other},
	}
	at := judgedAt - time.Minute
	return s, Verdict{Mark: "x", since: at, Moment: &Moment{at: at, seq: 7, Started: map[string]int64{"cafe": 5, "beef": 3}}}
}

// says changes what the other node of a snapshot tells of the upstream.
func (s *Snapshot) says(change func(a *record.Account)) {
	a := s.Peers[0].Upstreams[upstream]
	change(&a)
	s.Peers[0].Upstreams[upstream] = a
}

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(s *Snapshot, before *Verdict)
		why    string // what it waits for; empty where it is drained
		lasts  bool   // though it is not drained for that now, it stays so where it was before
	}{
		"nothing speaks against it":       {func(*Snapshot, *Verdict) {}, "", false},
		"there is no other node":          {func(s *Snapshot, _ *Verdict) { s.Peers = nil; s.Storage.Trusted = true }, "", false},
		"a session is here":               {func(s *Snapshot, _ *Verdict) { s.Here.Sessions = 1 }, "it has 1 session", false},
		"sessions are here":               {func(s *Snapshot, _ *Verdict) { s.Here.Sessions = 2 }, "it has 2 sessions", false},
		"this node has just started":      {func(s *Snapshot, _ *Verdict) { s.UpSince = judgedAt - 32*time.Second + 1 }, "it has just started; browsers may come back for another 1s", false},
		"it has started long enough ago":  {func(s *Snapshot, _ *Verdict) { s.UpSince = judgedAt - 32*time.Second }, "", false},
		"it has started, and is closed":   {func(s *Snapshot, _ *Verdict) { s.UpSince, s.Here.Closed = judgedAt, true }, "", false},
		"it was closed a moment ago":      {func(s *Snapshot, _ *Verdict) { s.Here.Reopened = 1500 * time.Millisecond }, "it was closed until a moment ago; browsers may come back for another 2s", false},
		"the drain is new":                {func(_ *Snapshot, v *Verdict) { v.since = judgedAt - DrainQuarantine + 1 }, "the mark is new", false},
		"the drain is as old as it must":  {func(_ *Snapshot, v *Verdict) { v.since = judgedAt - DrainQuarantine }, "", false},
		"it is another drain":             {func(_ *Snapshot, v *Verdict) { v.Mark = "y" }, "the mark is new", false},
		"the storage was not read lately": {func(s *Snapshot, _ *Verdict) { s.Storage.Read -= StaleTimeout + 1 }, "it cannot read the storage", false},
		"it was read just lately enough":  {func(s *Snapshot, _ *Verdict) { s.Storage.Read -= 6 * time.Second }, "", false},
		"the storage cannot be written":   {func(s *Snapshot, _ *Verdict) { s.Storage.Unheard = judgedAt - StaleTimeout - 1 }, "it cannot write to the storage", false},
		"it failed once a moment ago":     {func(s *Snapshot, _ *Verdict) { s.Storage.Unheard = judgedAt - StaleTimeout }, "", false},
		"its own report is not listed":    {func(s *Snapshot, _ *Verdict) { s.Storage.Listed = 0 }, "it does not find its own report", false},
		"it is not listed any more":       {func(s *Snapshot, _ *Verdict) { s.Storage.Listed -= StaleTimeout + 1 }, "it does not find its own report", false},
		"it is listed lately enough":      {func(s *Snapshot, _ *Verdict) { s.Storage.Listed -= 6 * time.Second }, "", false},
		"the storage is new":              {func(s *Snapshot, _ *Verdict) { s.Storage.Trusted = false }, "it has not found its own report in the storage that its config names now", true},

		"the other node has not read of it":   {func(s *Snapshot, _ *Verdict) { s.says(func(a *record.Account) { a.Mark = "" }) }, "it has not said that it has read the mark", false},
		"the other node has a session":        {func(s *Snapshot, _ *Verdict) { s.says(func(a *record.Account) { a.Sessions = api.Counts{Waiting: 1} }) }, "it has 1 session", false},
		"it was closed there a moment ago":    {func(s *Snapshot, _ *Verdict) { s.says(func(a *record.Account) { a.Reopened = true }) }, "it was closed there until a moment ago", false},
		"the other node is young":             {func(s *Snapshot, _ *Verdict) { s.Peers[0].Settled = false }, "it has just started; browsers may come back to it", true},
		"the other node is young, and closed": {func(s *Snapshot, _ *Verdict) { s.Peers[0].Settled, s.Record.State = false, api.StateClosed }, "", false},
		"the other node is late":              {func(s *Snapshot, _ *Verdict) { s.Peers[0].Changed -= OverdueTimeout + 1 }, "it has not reported for 31s; if it is dead, say so (DELETE /bokeh/nodes/beef)", true},
		"it is not late yet":                  {func(s *Snapshot, _ *Verdict) { s.Peers[0].Changed -= OverdueTimeout }, "", false},
		"it is gone, and browsers come back":  {func(s *Snapshot, _ *Verdict) { s.Peers[0].Gone = judgedAt - 31*time.Second }, "it is gone; browsers may come back for another 1s", true},
		"it is gone, and nobody comes back":   {func(s *Snapshot, _ *Verdict) { s.Peers[0].Gone = judgedAt - 32*time.Second }, "", false},
		"it is gone, with the sessions": {func(s *Snapshot, _ *Verdict) {
			s.Peers[0].Gone = judgedAt - 32*time.Second
			s.says(func(a *record.Account) { a.Sessions.Unused, a.Mark = 1, "" })
		}, "", false},
		"it is gone, and all is closed":      {func(s *Snapshot, _ *Verdict) { s.Peers[0].Gone, s.Record.State = judgedAt, api.StateClosed }, "", false},
		"it is gone, and said it takes long": {func(s *Snapshot, _ *Verdict) { s.Peers[0].Gone, s.Peers[0].Settles = judgedAt, time.Hour }, "(if nobody does, say so: DELETE /bokeh/nodes/beef?force=true)", true},
		"it has not heard of the moment":     {func(s *Snapshot, _ *Verdict) { s.Peers[0].Heard = map[string]uint64{"cafe": 6} }, "it must say so once more", true},
		"it has heard what nobody said":      {func(s *Snapshot, _ *Verdict) { s.Peers[0].Heard = map[string]uint64{"cafe": 8} }, "it must say so once more", true},
		"a session has come and gone there":  {func(s *Snapshot, _ *Verdict) { s.says(func(a *record.Account) { a.Begun++ }) }, "it must say so once more", false},
		"a session has come and gone here":   {func(s *Snapshot, _ *Verdict) { s.Here.Started++ }, "it must say so once more", false},
		"it tells of no session any more":    {func(s *Snapshot, _ *Verdict) { s.says(func(a *record.Account) { a.Begun = 0 }) }, "it must say so once more", false},
		"no moment was found yet":            {func(_ *Snapshot, v *Verdict) { v.Moment, v.Drained = nil, false }, "it must say so once more", false},
		"sessions live for short":            {func(s *Snapshot, v *Verdict) { s.TTL, v.Moment.at = 9*time.Second, judgedAt-4*time.Second }, "it must say so once more", true},
		"for short, and that was long ago":   {func(s *Snapshot, v *Verdict) { s.TTL, v.Moment.at = 9*time.Second, judgedAt-5*time.Second }, "", false},
		"sessions live for long enough":      {func(s *Snapshot, v *Verdict) { s.TTL, v.Moment.at = 10*time.Second, judgedAt-4*time.Second }, "", false},
		"a config drains it, here and there": {func(s *Snapshot, v *Verdict) { s.Record, v.Mark = nil, "" }, "", false},
		"the other one's config does not": {func(s *Snapshot, v *Verdict) {
			s.Record, v.Mark = nil, ""
			s.says(func(a *record.Account) { a.Draining = false })
		}, "its config does not drain the upstream", false},
		"the other one does not know its pool": {func(s *Snapshot, v *Verdict) {
			s.Record, v.Mark = nil, ""
			s.Peers[0].Unsure = true
			delete(s.Peers[0].Upstreams, upstream)
		}, "it may have the upstream in a pool that it does not know yet", false},
		"the other one does not have it at all": {func(s *Snapshot, v *Verdict) {
			s.Record, v.Mark = nil, ""
			delete(s.Peers[0].Upstreams, upstream)
			v.Moment.Started = map[string]int64{"cafe": 5}
		}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, was := range []bool{false, true} {
				s, before := emptyUpstream()
				before.Drained = was
				tc.change(s, &before)
				was = before.Drained
				var moment map[string]int64
				if before.Moment != nil {
					moment = maps.Clone(before.Moment.Started)
				}
				v := s.Judge(before)
				if want := tc.why == "" || was && tc.lasts; v.Drained != want {
					t.Errorf("drained before: %v; drained is %v, want %v; it waits for %v", was, v.Drained, want, v.Waits)
				}
				var reasons []string
				for _, w := range v.Waits {
					reasons = append(reasons, w.Reason)
				}
				told := strings.Join(reasons, "; ")
				if !v.Drained && (tc.why == "" || !strings.Contains(told, tc.why)) {
					t.Errorf("drained before: %v; it waits for %q, want %q", was, told, tc.why)
				}
				if (v.Moment == nil) != (len(v.Waits) > 0 && v.Waits[0].Reason != "it must say so once more" && !v.Drained) {
					t.Errorf("drained before: %v; it waits for %q, and the moment is %+v", was, told, v.Moment)
				}
				if before.Drained != was || before.Moment != nil && !maps.Equal(before.Moment.Started, moment) {
					t.Error("judging has changed the verdict before")
				}
			}
		})
	}
}

// Whatever a node has told: what speaks against calling an upstream drained does so as well when little more is remembered of it than
// that it is there.
func TestOutlineSpeaksAgainstDrained(t *testing.T) {
	const node, now = "cafe", 2 * time.Hour
	marks := []*record.Drain{nil, {ID: "x", State: api.StateDraining}, {ID: "x", State: api.StateClosed}}
	cases := 0
	for bits := range 1 << 9 {
		is := func(i int) bool { return bits>>i&1 > 0 }
		a := record.Account{InPool: is(0), Draining: is(1), Mark: "x"}
		if is(2) {
			a.Sessions.Connected = 1
		}
		if is(3) {
			a.Mark = "older"
		}
		r := &record.Report{Node: "beef", Settled: is(4), Unsure: is(5), Left: is(6), Heard: map[string]uint64{node: math.MaxUint64}, Upstreams: map[string]record.Account{upstream: a}}
		whole, outlined := &Peer{Report: r, Changed: now}, &Peer{Report: r.Outline(), Changed: now}
		for _, p := range []*Peer{whole, outlined} {
			if is(7) {
				p.Gone = now
			}
			if is(8) {
				p.Changed = now - time.Hour
			}
		}
		for _, m := range marks {
			s := &Snapshot{Now: now, Node: node, TTL: 32 * time.Second, Shared: upstream, Record: m}
			before := s.waitsFor(whole)
			after := s.waitsFor(outlined)
			certain := func(w Wait) bool { return w.certain }
			if len(before) > 0 && len(after) == 0 || slices.ContainsFunc(before, certain) && !slices.ContainsFunc(after, certain) {
				t.Errorf("%+v, mark %+v: it waits for %v, and then for %v", whole, m, before, after)
			}
			cases++
		}
	}
	if cases != 3<<9 {
		t.Error("too few cases: ", cases)
	}
}

// Of many things that are waited for some are told. What was certain stays so while many nodes are young, and does not if one of them,
// whichever, has a session.
func TestJudgeAmongMany(t *testing.T) {
	const many = 40
	young, session := "it has just started; browsers may come back to it", "it has 1 session"
	for name, tc := range map[string]struct {
		drained bool // before
		here    int64
		at      int // which of the nodes has a session; -1 for none
		settled int // how many of the nodes, from the first one on, are not young; if negative, from the last one

		want  bool
		told  int // things
		last  string
		among string
	}{
		"not drained":                       {false, 0, -1, 0, false, MaxWaits + 1, "8 other Caddys are still to be looked at", young},
		"drained":                           {true, 0, -1, 0, true, MaxWaits + 1, "8 other Caddys are still to be looked at", young},
		"as many as are told":               {true, 0, -1, many - MaxWaits, true, MaxWaits, young, young},
		"one more":                          {true, 0, -1, many - MaxWaits - 1, true, MaxWaits + 1, "1 other Caddys are still to be looked at", young},
		"the last one has a session":        {true, 0, many - 1, 0, false, MaxWaits + 3, "7 other Caddys are still to be looked at", session},
		"the first one has":                 {true, 0, 0, 0, false, MaxWaits + 1, "9 other Caddys are still to be looked at", session},
		"it has, and nothing was certain":   {false, 0, many - 1, 0, false, MaxWaits + 1, "8 other Caddys are still to be looked at", young},
		"this one has":                      {true, 1, many - 1, 0, false, 1 + MaxWaits + 1, "8 other Caddys are still to be looked at", session},
		"the settled ones are not told of":  {true, 0, -1, many, true, 0, "", ""},
		"nor those at the end":              {true, 0, -1, -5, true, MaxWaits + 1, "3 other Caddys are still to be looked at", young},
		"a settled one has it, at the last": {true, 0, many - 1, many, false, 1, session, session},
	} {
		t.Run(name, func(t *testing.T) {
			s, before := emptyUpstream()
			other := s.Peers[0].Report
			s.Peers, before.Drained, s.Here.Sessions = nil, tc.drained, tc.here
			for i := range many {
				r := *other
				r.Settled = i < tc.settled || i >= many+tc.settled && tc.settled < 0
				a := other.Upstreams[upstream]
				if i == tc.at {
					a.Sessions.Connected = 1
				}
				r.Upstreams = map[string]record.Account{upstream: a}
				s.Peers = append(s.Peers, &Peer{Report: &r, Changed: judgedAt})
			}
			v := s.Judge(before)
			last, among := "", tc.among == ""
			for _, w := range v.Waits {
				last, among = w.Reason, among || w.Reason == tc.among
			}
			if v.Drained != tc.want || len(v.Waits) != tc.told || last != tc.last || !among {
				t.Errorf("drained is %v, want %v; it waits for %d things, want %d, the last one %q, want %q, %q among them", v.Drained, tc.want, len(v.Waits), tc.told, last, tc.last, tc.among)
			}
		})
	}
}

// An operator need not be told what to do about a node for which this one would wait as long by itself.
func TestForgetIsAdvisedOfLongerLifetimesAlone(t *testing.T) {
	for settles, want := range map[time.Duration]bool{time.Second: false, 32 * time.Second: false, 33 * time.Second: true} {
		s, before := emptyUpstream()
		s.Peers[0].Gone, s.Peers[0].Settles = judgedAt, settles
		v := s.Judge(before)
		if len(v.Waits) != 1 || strings.Contains(v.Waits[0].Reason, "force=true") != want {
			t.Errorf("its sessions live for %v: it waits for %v", settles, v.Waits)
		}
	}
}
