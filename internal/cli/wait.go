// This file holds how --wait waits.

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

const (
	// pollPause is how often --wait asks. Each time is a request of its own, so that Caddy may reload
	// or restart meanwhile.
	pollPause = time.Second

	// restartWait is how long --wait tries to reach a Caddy before anything is marked.
	restartWait = 10 * time.Second
)

// awaitCaddy waits for a moment where no Caddy answers: it may be restarting, and whoever waits for a drain
// waits for that as well.
func (c *adminClient) awaitCaddy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restartWait)
	defer cancel()
	for said := false; ; said = true {
		err := c.do(ctx, http.MethodGet, api.NodePath, nil, new(api.Node))
		if _, silent := errors.AsType[silentError](err); !silent {
			return
		}
		if !said {
			say(os.Stderr, "%v; trying for %v\n", err, restartWait)
		}
		select {
		case <-time.After(pollPause / 4):
		case <-ctx.Done():
			return
		}
	}
}

// awaitDrained returns when the named upstreams are drained, or ctx ends, and how to exit then.
func (c *adminClient) awaitDrained(ctx context.Context, p progress, names []string) (int, error) {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		left, err := c.left(ctx, names)
		switch {
		case err == nil && len(left) == 0:
			p.done("drained: " + strings.Join(names, ", "))
			return caddy.ExitCodeSuccess, nil
		case errors.Is(err, errNotDraining):
			p.end()
			return caddy.ExitCodeFailedStartup, err
		case ctx.Err() != nil: // that the answer did not come any more is no trouble
		case err != nil:
			p.trouble(err)
		default:
			p.show(left)
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		p.end()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return exitTimeout, fmt.Errorf("the time is up; the drain stays on; still there: %s", p.last())
		}
		return exitInterrupted, fmt.Errorf("interrupted; the drain stays on, caddy bokeh undrain takes it back: %s", strings.Join(names, " "))
	}
}

var errNotDraining = errors.New("is not draining any more; somebody has taken it back")

// left returns those of the named upstreams that are not drained.
func (c *adminClient) left(ctx context.Context, names []string) (left []api.Upstream, err error) {
	var all []api.Upstream
	if err := c.do(ctx, http.MethodGet, api.UpstreamsPath, nil, &all); err != nil {
		return nil, err
	}
	known := make(map[string]api.Upstream)
	read := len(all) > 0 // whether Caddy has read the marks since it started
	for _, st := range all {
		known[st.Address] = st
		read = read && st.State != api.StateUnknown
	}
	for _, name := range names {
		switch st := known[name]; {
		case !read:
			return nil, fmt.Errorf("no word of %s at present", name)
		case st.Drain == nil:
			return nil, fmt.Errorf("%s %w", name, errNotDraining)
		case st.State != api.StateDrained:
			left = append(left, st)
		}
	}
	return left, nil
}
