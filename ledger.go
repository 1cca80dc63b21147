// This file holds the ledger: what this process knows for all its configs, the sessions and whose they are.

package caddybokeh

import (
	"sync"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// ledger outlives configs, because sessions do: a reload changes nothing about where documents live.
type ledger struct {
	*sessions.Table

	nobody        sessions.Counters // requests for which there was no upstream, by reason
	unknownStamps sessions.Counters // requests with a stamp that no key of their policy has signed, by kind

	mu      sync.Mutex          // guards all below
	sources map[string]*source  // by config
	owners  map[*owner]struct{} // of the configs that are loaded
	configs int64               // that there ever were
}

// newLedger returns an empty ledger.
func newLedger() *ledger {
	return &ledger{
		Table:  sessions.NewTable(sharedName, sessions.Labels{Decisions: decisions, MoveReasons: moveReasons, HedgeOutcomes: hedgeOutcomes}),
		nobody: sessions.NewCounters(nobodyReasons...), unknownStamps: sessions.NewCounters(stampedKinds...),
		sources: make(map[string]*source), owners: make(map[*owner]struct{}),
	}
}
