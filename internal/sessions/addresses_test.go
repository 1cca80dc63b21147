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
