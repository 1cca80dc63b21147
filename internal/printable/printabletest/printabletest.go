// Package printabletest finds text that steers a terminal, for tests.
//
// This file holds all of it.
package printabletest

import (
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// Hostile moves the cursor, forges lines, turns the direction of text, and is no UTF-8.
const Hostile = "x\n127.0.0.1:1\tdrained\r\x1b[2J\x1b]0;title\x07\u009b31m\x7f\u202etxet\u2066\u2028\ufeff\xff\x9b"

// bare is what a terminal must not get: Hostile has one of each, and there is no such letter in what it becomes.
const bare = "\r\x1b\x07\u009b\x7f\u202e\u2066\u2028\ufeff"

// Check looks whether all of a text just shows on a terminal, beside the ends of its lines. If not, the test has failed.
func Check(t *testing.T, what, text string) {
	t.Helper()
	if got := strings.ReplaceAll(text, "\n", ""); printable.Text(got) != got || strings.ContainsAny(text, bare) {
		t.Errorf("%s is not printable: %q", what, text)
	}
}
