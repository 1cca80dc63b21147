// This file tests the events as a subscriber in a running Caddy gets them.

package caddybokeh

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

func init() { caddy.RegisterModule(recorder{}) }

// recorder is a subscriber that writes down what it hears.
type recorder struct{}

var recorded struct {
	mu     sync.Mutex // guards all below
	events []string
}

func (recorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.bokeh_recorder", New: func() caddy.Module { return new(recorder) }}
}

func (*recorder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

func (recorder) Handle(_ context.Context, e caddy.Event) error {
	recorded.mu.Lock()
	defer recorded.mu.Unlock()
	var text strings.Builder
	text.WriteString(e.Name())
	for _, k := range slices.Sorted(maps.Keys(e.Data)) {
		fmt.Fprintf(&text, " %s=%v", k, e.Data[k])
	}
	recorded.events = append(recorded.events, text.String())
	return nil
}

func heard(text string) (n int) {
	recorded.mu.Lock()
	defer recorded.mu.Unlock()
	for _, e := range recorded.events {
		if strings.Contains(e, text) {
			n++
		}
	}
	return n
}

func TestEvents(t *testing.T) {
	recorded.mu.Lock()
	recorded.events = nil
	recorded.mu.Unlock()
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, "")
	a.config = strings.Replace(a.config, "persist_config off", "persist_config off\n\tevents {\n\t\ton bokeh_drain_started bokeh_recorder\n\t\ton bokeh_drained bokeh_recorder\n\t\ton bokeh_session_moved bokeh_recorder\n\t}", 1)
	a.reload(fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh {\n%s}\n lb_try_duration 2s\n}", b1.addr(), b2.addr(), shortLived))
	soon(t, "read", func() bool {
		all := thisNode().Upstreams()
		return len(all) > 0 && all[0].State != api.StateUnknown
	})
	p, w := a.visit()
	a.want(200, "draining", "PUT", "/bokeh/draining/"+w.server, `{"reason":"new version"}`)
	soon(t, "told that it began", func() bool {
		return heard("bokeh_drain_started by=admin API") == 1 && heard("config=false reason=new version upstream="+w.server) == 1
	})
	at([]*bokehServer{b1, b2}, w.server).stop()
	w.Close()
	a.open(p.Token)
	soon(t, "told that a session moved", func() bool { return heard("bokeh_session_moved from="+w.server+" reason=unreachable session=") == 1 })
	a.want(200, `"state":"drained"`, "GET", "/bokeh/upstreams/"+w.server+"?wait=1m", "")
	soon(t, "told that it is drained", func() bool { return heard("bokeh_drained upstream="+w.server) == 1 })
	if id := bokeh.ReadToken(p.Token, nil).ID; id == "" || heard(id) > 0 {
		t.Errorf("an event shows the session's id %q", id)
	}
}
