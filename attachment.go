// This file holds what other nodes hear of a policy, and what the node needs of Caddy.

package caddybokeh

import (
	"cmp"
	"context"
	"net"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// eventMoved tells that a session has left its upstream: from, to, reason (unreachable, unhealthy, closed or reassigned) and session, a
// short keyed hash.
const eventMoved = "bokeh_session_moved"

// policyOf is a policy as the node sees it.
type policyOf struct{ s *Selection }

// Pool implements cluster.Policy.
func (p policyOf) Pool() (pool []cluster.PoolMember) {
	p.each(func(m *member, inPool bool) {
		pool = append(pool, cluster.PoolMember{Upstream: m.Upstream, InPool: inPool})
	})
	return pool
}

// PoolHealth implements cluster.Policy.
func (p policyOf) PoolHealth() (pool []cluster.MemberHealth) {
	p.each(func(m *member, inPool bool) { pool = append(pool, m.health(inPool)) })
	return pool
}

// each calls yield with every upstream that the policy knows, and whether that is in its pool.
func (p policyOf) each(yield func(m *member, inPool bool)) {
	src := p.s.members.source
	last := src.lastFound()
	for _, dial := range last.dials {
		p.s.members.get(dial) // another policy may have found it
	}
	p.s.members.byDial.Range(func(_, value any) bool {
		m := value.(*member)
		// Where the pool depends on the request, m was in it lately, and is forgotten in a while.
		yield(m, m.static || src == nil || last.names[m.Name])
		return true
	})
}

// KnowsPool implements cluster.Policy. Discovered upstreams are known from the first request on, and where they depend on requests
// they never all are.
func (p policyOf) KnowsPool() bool {
	return p.s.static != nil || len(p.s.members.source.lastFound().dials) > 0
}

// StampKeys implements cluster.Policy. There is none until the storage was looked at for the key, for what signs until then may not be
// what will.
func (p policyOf) StampKeys() (prints []string) {
	if p.s.keyed != nil {
		select {
		case <-p.s.keyed:
		default:
			return nil
		}
	}
	for _, k := range *p.s.ring.Load() {
		prints = append(prints, k.Fingerprint().String())
	}
	return prints
}

// SessionTTL implements cluster.Policy.
func (p policyOf) SessionTTL() time.Duration { return p.s.lifetime }

// Emit implements cluster.Policy.
func (p policyOf) Emit(event string, data map[string]any) {
	if p.s.raise != nil {
		p.s.raise(event, data)
	}
}

// processConfig is what the node of this process is told.
func processConfig() cluster.Config {
	return cluster.Config{
		Table: thisLedger().Table, Host: hostname(), Process: record.ThisProcess(),
		SessionTTL: defaultUnusedSessionLifetime + defaultCheckUnusedSessions,
		SharedName: sharedNameAt, Running: runningStorage, Exiting: caddy.Exiting, Dial: dial,
		Logger: printable.Log(caddy.Log().Named("bokeh")),
	}
}

// dial tries whether the named upstream can be reached.
func dial(ctx context.Context, name string) error {
	network, host, port, err := caddy.SplitNetworkAddress(name)
	if err != nil {
		return err
	}
	address := host
	if port != "" {
		network, address = cmp.Or(network, "tcp"), net.JoinHostPort(host, port)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// runningStorage returns the storage of the config that runs, or nil if none does.
func runningStorage() store.Storage {
	ctx := caddy.ActiveContext()
	if ctx.Context == nil {
		return nil
	}
	return ctx.Storage()
}

// Interface guard
var _ cluster.Policy = policyOf{}
