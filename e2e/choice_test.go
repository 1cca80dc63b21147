// This file tests where new sessions go: a limit of them, and users who are kept together.

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// With every server full, those who are there lose nothing, not by a cut connection either; the next visitor waits, over a
// reload, until somebody has left.
func TestMaxSessions(t *testing.T) {
	t.Parallel()
	f := start(t, plan{
		quick:     true,
		policy:    "bokeh {\n\t\t\tmax_sessions 1\n\t\t}",
		proxy:     "\t\tlb_try_duration 10m",
		keepAlive: true,
	})
	tabs := f.atWork(3)
	places := map[string]bool{}
	for _, b := range tabs {
		places[b.place()] = true
		b.mark()
	}
	if len(places) != 3 {
		t.Errorf("three sessions are on the servers %v", places)
	}
	f.front.cut()
	for _, b := range tabs {
		b.reconnected()
		b.click(3)
	}

	next, answered := newTab(t), make(chan int, 1)
	go func() { answered <- next.goTo(f.url("/counter")) }()
	waiting := func(n int) {
		t.Helper()
		f.await(func() error {
			if _, metrics, err := f.ask("/metrics"); err != nil || !strings.Contains(metrics, fmt.Sprintf("\ncaddy_bokeh_visits_waiting %d\n", n)) {
				return fmt.Errorf("not %d visits wait: %w", n, err)
			}
			return nil
		})
	}
	waiting(1)
	f.reload()
	left := tabs[0].place()
	tabs[0].close()
	if status := <-answered; status != http.StatusOK {
		t.Fatalf("who waited is answered %d", status)
	}
	next.ready()
	next.click(1)
	if next.place() != left {
		t.Errorf("the place is on server %s, and the visitor on %s", left, next.place())
	}
	waiting(0)
	for _, b := range tabs[1:] {
		b.click(4)
	}
	f.wantRuns(4)
}

// The tabs of a user are on one server, through every Caddy.
func TestGroupBy(t *testing.T) {
	t.Parallel()
	f := start(t, plan{policy: "bokeh {\n\t\t\tsecret_key ours\n\t\t\tgroup_by {query.user}\n\t\t}"})
	g := f.another()
	used := map[string]bool{}
	for user := range 5 {
		var places []string
		for _, node := range []*fleet{f, g, f} {
			b := newTab(t)
			if status := b.goTo(node.url(fmt.Sprint("/counter?user=", user))); status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
			b.ready()
			b.click(1)
			places = append(places, b.place())
			b.close()
		}
		if places[0] != places[1] || places[0] != places[2] {
			t.Errorf("user %d is on the servers %v", user, places)
		}
		used[places[0]] = true
	}
	if len(used) < 2 {
		t.Errorf("five users are on the servers %v", used)
	}
	f.wantRuns(15)
}
