// This file holds what is known of addresses by how they were answered: where apps are, and where none are.

package caddybokeh

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

// answeredAt is what has been answered at addresses of apps, and of what may be some, since this process began.
type answeredAt struct {
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

// hasPages says whether a page has come from the address.
func (a *answeredAt) hasPages(of app) bool {
	known, ok := a.known.Load(of)
	return ok && known.(*address).pages.Load()
}

// hasOthers says whether an answer that was no page has come from the address.
func (a *answeredAt) hasOthers(of app) bool {
	known, ok := a.known.Load(of)
	return ok && known.(*address).others.Load()
}

// page takes note of a page from the address.
func (a *answeredAt) page(of app, now time.Duration) {
	a.at(of, now).pages.Store(true)
	if !a.any.Load() {
		a.any.Store(true)
	}
}

// other takes note of an answer from the address that is no page.
func (a *answeredAt) other(of app, now time.Duration) { a.at(of, now).others.Store(true) }

func (a *answeredAt) at(of app, now time.Duration) *address {
	known, ok := a.known.Load(of)
	if !ok {
		known = a.add(of)
	}
	found := known.(*address)
	if last := found.seen.Load(); last == 0 || now-time.Duration(last) > time.Minute {
		found.seen.Store(int64(now))
	}
	return found
}

func (a *answeredAt) add(of app) any {
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
func (a *answeredAt) forget() {
	seen := make(map[app]int64)
	a.known.Range(func(of, known any) bool {
		if at := known.(*address).seen.Load(); at != 0 { // or it is just being added
			seen[of.(app)] = at
		}
		return true
	})
	oldest := slices.SortedFunc(maps.Keys(seen), func(one, other app) int { return cmp.Compare(seen[one], seen[other]) })
	for _, of := range oldest[:min(maxAddresses/2, len(oldest))] {
		a.known.Delete(of)
		a.n--
	}
}
