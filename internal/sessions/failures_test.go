// This file tests what is kept of pages that failed.

package sessions

import "testing"

// What is kept of apps that fail is bounded, and goes when they do not fail any more.
func TestFailingAppsAreBounded(t *testing.T) {
	var f FailingApps
	for i := range App(10 * maxFailingApps) {
		f.Failed(i)
	}
	if n := len(f.share); n != maxFailingApps {
		t.Errorf("%d apps are kept", n)
	}
	for a := range f.share {
		for range 10 * averageOf {
			f.Came(a)
		}
	}
	if n := f.n.Load(); n != 0 || len(f.share) != 0 {
		t.Errorf("%d apps are kept that do not fail", n)
	}
}
