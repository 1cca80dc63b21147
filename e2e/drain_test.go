// This file tests taking a server out while people work on it.

package e2e

import (
	"fmt"
	"testing"
)

// Nobody who works on a draining server notices: neither the reload, nor a cut connection, nor a restart of Caddy.
func TestDrainByConfig(t *testing.T) {
	f := start(t, plan{keepAlive: true})
	tabs := f.atWork(3)
	draining := tabs[0].place()
	f.plan.policy = fmt.Sprintf("bokeh {\n\t\t\tdrain %s\n\t\t}", f.server(draining).Addr())
	f.reload()
	newcomers := func() {
		t.Helper()
		for range 4 {
			b := f.visit()
			b.click(1)
			if b.place() == draining {
				t.Error("a new visit went to the draining server")
			}
			b.close()
		}
	}
	newcomers()
	for _, b := range tabs {
		b.click(3)
		if !b.kept() {
			t.Error("the reload closed a websocket")
		}
	}
	f.front.cut()
	for _, b := range tabs {
		b.reconnected()
		b.click(4)
		b.mark()
	}
	f.restartCaddy()
	for _, b := range tabs {
		b.reconnected()
		b.click(5)
	}
	if tabs[0].place() != draining {
		t.Errorf("the document moved from server %s to %s", draining, tabs[0].place())
	}
	newcomers()
	f.wantRuns(3 + 2*4)
}
