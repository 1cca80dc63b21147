// This file holds what is known of addresses by how they were answered: where apps are, and where none are.

package sessions

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxAddresses bounds what is kept of addresses. Visitors can make some up, where a server answers at any host or path.
const maxAddresses = 4096

// Addresses is what has been answered at addresses of apps, and of what may be some, since this process began.
type Addresses struct {
	known sync.Map    // of app to *address
	any   atomic.Bool // a page has come from somewhere

	mu sync.Mutex // guards n, and the growth of known
	n  int
}

// address is what is known of one.
type address struct {
	pages  atomic.Bool  // a page of Bokeh's has come from it
	others atomic.Bool  // something else has
	seen   atomic.Int64 // when one of these came last, a minute sharp, on the table's clock
}

// HasPages says whether a page has come from the address.
func (a *Addresses) HasPages(of App) bool {
	known, ok := a.known.Load(of)
	return ok && known.(*address).pages.Load()
}

// HasOthers says whether an answer that was no page has come from the address.
func (a *Addresses) HasOthers(of App) bool {
	known, ok := a.known.Load(of)
	return ok && known.(*address).others.Load()
}

// HasAny says whether a page has come from somewhere.
func (a *Addresses) HasAny() bool { return a.any.Load() }

// SawPage takes note of a page from the address.
func (a *Addresses) SawPage(of App, now time.Duration) {
	a.at(of, now).pages.Store(true)
	if !a.any.Load() {
		a.any.Store(true)
	}
}

// SawOther takes note of an answer from the address that is no page.
func (a *Addresses) SawOther(of App, now time.Duration) { a.at(of, now).others.Store(true) }

func (a *Addresses) at(of App, now time.Duration) *address {
	known, ok := a.known.Load(of)
	if !ok {
		known = a.add(of)
	}
	found := known.(*address)
	if last := found.seen.Load(); last == 0 || now-time.Duration(last) > seenPrecision {
		found.seen.Store(int64(now))
	}
	return found
}

func (a *Addresses) add(of App) any {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, loaded := a.known.LoadOrStore(of, new(address))
	if loaded {
		return known
	}
	if a.n++; a.n > maxAddresses {
		a.forget()
	}
	return known
}

// forget drops the half of the addresses that was seen longest ago. a.mu is locked.
func (a *Addresses) forget() {
	seen := make(map[App]int64)
	a.known.Range(func(of, known any) bool {
		if at := known.(*address).seen.Load(); at != 0 { // or it is just being added
			seen[of.(App)] = at
		}
		return true
	})
	oldest := slices.SortedFunc(maps.Keys(seen), func(one, other App) int { return cmp.Compare(seen[one], seen[other]) })
	for _, of := range oldest[:min(maxAddresses/2, len(oldest))] {
		a.known.Delete(of)
		a.n--
	}
}
