// This file tests what is known of addresses by how they were answered.

package sessions

import (
	"testing"
	"time"
)

// What is kept of addresses is bounded. Those that were seen last stay.
func TestAddressesAreBounded(t *testing.T) {
	var known Addresses
	const mine App = 1 << 40
	for i := range App(10 * maxAddresses) {
		now := time.Duration(i+1) * 2 * time.Minute
		known.SawPage(i, now)
		known.SawPage(mine, now)
	}
	n := 0
	known.known.Range(func(any, any) bool {
		n++
		return true
	})
	if n > maxAddresses || n != known.n {
		t.Errorf("%d addresses are kept, %d are counted", n, known.n)
	}
	if !known.HasPages(mine) || !known.HasPages(10*maxAddresses-1) || known.HasPages(0) {
		t.Error("it is not the oldest that is forgotten")
	}
}

// Pages and other answers are kept apart, and for each address.
func TestAnsweredAt(t *testing.T) {
	var known Addresses
	want := func(of App, pages, others bool) {
		t.Helper()
		if known.HasPages(of) != pages || known.HasOthers(of) != others {
			t.Errorf("address %d has pages: %v, others: %v; want %v, %v", of, known.HasPages(of), known.HasOthers(of), pages, others)
		}
	}
	want(1, false, false)
	known.SawOther(1, time.Minute)
	want(1, false, true)
	if known.any.Load() {
		t.Error("a page has come from somewhere")
	}
	known.SawPage(2, time.Minute)
	want(2, true, false)
	if !known.any.Load() {
		t.Error("no page has come from anywhere")
	}
	known.SawPage(1, time.Minute)
	want(1, true, true)
	want(3, false, false)
	if known.n != 2 {
		t.Errorf("%d addresses are counted, want 2", known.n)
	}
}

// One that two requests find at once is counted once.
func TestAddressIsAddedOnce(t *testing.T) {
	var known Addresses
	if known.add(1) != known.add(1) || known.n != 1 {
		t.Errorf("%d addresses are counted, want 1", known.n)
	}
}

// When there are too many the half goes that was seen longest ago; an address that is seen again counts as seen by then.
func TestHalfOfTheAddressesGoes(t *testing.T) {
	var known Addresses
	for i := range App(maxAddresses) {
		known.SawPage(i, time.Hour+time.Duration(i))
	}
	if known.n != maxAddresses || !known.HasPages(0) {
		t.Fatalf("%d addresses are kept while there is room, want %d", known.n, maxAddresses)
	}
	known.SawPage(0, 2*time.Hour)
	known.SawPage(1, time.Hour+time.Minute) // not a minute later than it was seen
	known.SawPage(2, time.Hour+time.Minute+3)
	known.SawPage(3, time.Hour+time.Minute+3)
	known.SawPage(maxAddresses, 2*time.Hour)
	if want := maxAddresses/2 + 1; known.n != want {
		t.Errorf("%d addresses are left, want %d", known.n, want)
	}
	for of, want := range map[App]bool{0: true, 1: false, 2: true, 3: false, maxAddresses/2 + 1: false, maxAddresses/2 + 2: true, maxAddresses - 1: true, maxAddresses: true} {
		if got := known.HasPages(of); got != want {
			t.Errorf("address %d is kept: %v, want %v", of, got, want)
		}
	}
}
