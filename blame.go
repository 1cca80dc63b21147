// This file holds whether pages that fail speak against their upstream, or against their app, or against one client.

package caddybokeh

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// byChance is how likely so many failures in a row may be, by how often the app fails elsewhere, if they are to
// count for nothing. That share is known from the last few pages only, so there has to be room for its being more.
const byChance = 1e-12

// hasTurn says whether the visit's client has its turn. One whose address Caddy does not know always has.
func (v *visit) hasTurn(s *sessions.Seldom, every, now time.Duration) bool {
	return v.client == "" || s.Allow(v.clientHash(), every, now)
}

// hasFailed says whether the visit's client has met a failure lately at one of these but the given one.
func (v *visit) hasFailed(pool []candidate, but *member, now time.Duration) bool {
	client := v.clientHash()
	return slices.ContainsFunc(pool, func(c candidate) bool {
		_, lately := c.History.Failures.Rests(client, failureTTL, now)
		return c.member != but && lately
	})
}

// hadChoice says whether the visit's new session could have gone elsewhere than it went, and its client had no say in that.
func (v *visit) hadChoice(a *attempt) bool {
	limit := int64(v.s.MaxSessions)
	return v.s.GroupBy == "" && slices.ContainsFunc(a.peers, func(c candidate) bool {
		return c.member != a.m && !c.Drain.On() && (!v.isCapped() || c.Slots.Taken(limit) < limit)
	})
}

// clientHash stands for the visit's client.
func (v *visit) clientHash() uint64 { return v.s.table.Hash(network(v.client)) }

// network returns what stands for a client: its address, and of one of IPv6 the part that is its network's. The rest of it, of
// 64 bits, the client chooses by itself.
func network(client string) string {
	addr, err := netip.ParseAddr(client)
	if err != nil || addr.Unmap().Is4() {
		return client
	}
	prefix, _ := addr.Prefix(64)
	return prefix.String()
}

// anyAddress stands for all addresses as long as no page has come at all.
const anyAddress sessions.App = 0

// failingApp is what the visit's page counts for if it fails.
func (v *visit) failingApp() sessions.App {
	if v.isAtApp() {
		return v.terms.App
	}
	return anyAddress
}

// blame takes note of a page that m has failed at, and says how long it weighs there. A client that goes on asking for what
// fails is heard once in a while, and where the app fails elsewhere as well, m counts as failing only when that can be no chance.
func (v *visit) blame(a *attempt, now time.Duration) (weighs time.Duration) {
	m, of := a.m, v.failingApp()
	// Where pages of an app that works fail for a client nowhere else, that is not its doing, unless it can choose where they go.
	turn, failsElsewhere := v.hasTurn(&m.History.Failures, failureInterval, now), v.hasFailed(a.peers, m, now)
	ownFault := of != anyAddress && !failsElsewhere && v.hadChoice(a)
	if v.mayFail || v.blames || !turn && !ownFault || of == anyAddress && v.s.table.Addresses.HasAny() {
		return 0 // who makes addresses up, or varies one, could have each fail for the first time
	}
	// Where one fails at several upstreams, it may be the request's fault.
	v.blames = true
	m.History.Failing.Failed(of)
	elsewhere := meanShare(a.peers, m, of)
	says := elsewhere > 0 || !failsElsewhere // or it was forgotten elsewhere sooner than who met it
	if says {
		m.Breaker.PageFailure(a.startedAt, now, rowBeyondChance(elsewhere))
	}
	if m.History.Failing.Share(of) > sessions.ShareBeyondChance(elsewhere) || says && elsewhere == 0 {
		return sessions.FailedPageWeight
	}
	return 0
}

// clear takes note of a page that has come where pages of its app failed. Where they failed elsewhere about as often, it may be
// over there, too, and whoever is well first is not to have all that follow.
func (v *visit) clear(a *attempt, now time.Duration) {
	for _, of := range []sessions.App{v.terms.App, anyAddress} { // it may be the first page from there
		here := a.m.History.Failing.Share(of)
		if here == 0 {
			continue
		}
		a.m.History.Failing.Came(of)
		for _, m := range a.peers {
			if there := m.History.Failing.Share(of); m.member == a.m || there > 0 && there < 2*here {
				m.FailedPages.Outlived(now)
			}
		}
	}
}

// weighFailed lets a page weigh that has failed: as one that the server does not do well, or else as long as it may be at it.
func (v *visit) weighFailed(a *attempt, now time.Duration) {
	weighs := v.blame(a, now)
	if !a.answered {
		weighs = max(weighs, v.s.table.LeftWork(a.m.Upstream, v.terms.App, a.startedAt, a.ahead, now))
	}
	if weighs > 0 {
		a.m.FailedPages.Add(a.load.Key(), now, weighs)
	}
}

// meanShare is the share of an app's pages that fail at the others of a pool.
func meanShare(pool []candidate, but *member, of sessions.App) float64 {
	sum, n := 0.0, 0
	for _, c := range pool {
		if c.member != but {
			sum += c.History.Failing.Share(of)
			n++
		}
	}
	return sum / float64(max(n, 1))
}

// rowBeyondChance returns how many pages in a row must fail at one upstream, where such a share of them fails elsewhere.
func rowBeyondChance(share float64) int64 {
	if share <= 0 {
		return breaker.PagesInARow
	}
	row := math.Ceil(math.Log(byChance) / math.Log(min(share, 0.999)))
	return max(int64(row), breaker.PagesInARow)
}
