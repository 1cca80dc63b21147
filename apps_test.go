// This file tests what is known of addresses by how they were answered.

package caddybokeh

import (
	"testing"
	"testing/synctest"
	"time"
)

// An address from which no page has ever come weighs like none, however long it takes to answer.
func TestAddressWithoutPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		ask := func() *request {
			r := newRequest(s, "/poll")
			r.choose(pool)
			r.run().connected(r.run().attempt)
			synctest.Wait()
			return r
		}
		first := ask()
		u := first.run().attempt.m
		if got := u.queue(); got != 1 {
			t.Errorf("%d pages are built where nothing is known yet, want 1", got)
		}
		rn := first.run()
		rn.firstByteCame(rn.attempt)
		rn.readAnswer(rn.attempt, false)
		first.end()
		next := ask()
		if got := u.queue(); got != 0 {
			t.Errorf("%d pages are built where none ever came", got)
		}
		rn = next.run()
		rn.firstByteCame(rn.attempt)
		rn.readAnswer(rn.attempt, true) // there is an app by now
		if got := u.counts[waiting].Load(); got != 1 {
			t.Errorf("a page that comes all the same counts %d times", got)
		}
		next.end()
		synctest.Wait()
		ask()
		if got := u.queue(); got != 1 {
			t.Errorf("%d pages are built at the address of an app, want 1", got)
		}
	})
}

// What is kept of addresses is bounded. Those that were seen last stay.
func TestAddressesAreBounded(t *testing.T) {
	var known answeredAt
	const mine app = 1 << 40
	for i := range app(10 * maxAddresses) {
		now := time.Duration(i+1) * 2 * time.Minute
		known.page(i, now)
		known.page(mine, now)
	}
	n := 0
	known.known.Range(func(any, any) bool {
		n++
		return true
	})
	if n > maxAddresses || n != known.n {
		t.Errorf("%d addresses are kept, %d are counted", n, known.n)
	}
	if !known.hasPages(mine) || !known.hasPages(10*maxAddresses-1) || known.hasPages(0) {
		t.Error("it is not the oldest that is forgotten")
	}
}
