// This file holds the ledger: what this process knows for all its configs, the sessions and whose they are.

package caddybokeh

import "sync"

// ledger outlives configs, because sessions do: a reload changes nothing about where documents live.
type ledger struct {
	*table

	nobody        counters // requests for which there was no upstream, by reason
	unknownStamps counters // requests with a stamp that no key of their policy has signed, by kind

	mu      sync.Mutex          // guards all below
	sources map[string]*source  // by config
	owners  map[*owner]struct{} // of the configs that are loaded
	configs int64               // that there ever were
}

// newLedger returns an empty ledger.
func newLedger() *ledger {
	return &ledger{
		table:  newTable(sharedName, labels{decisions, moveReasons, hedgeOutcomes}),
		nobody: newCounters(nobodyReasons...), unknownStamps: newCounters(stampedKinds...),
		sources: make(map[string]*source), owners: make(map[*owner]struct{}),
	}
}
