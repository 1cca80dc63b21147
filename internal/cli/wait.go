// This file holds how --wait waits.

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

const (
	// waitSlice is how long --wait lets Caddy keep an answer back. Caddy answers earlier only if the upstream is drained, and not when
	// the number of sessions changes, of which people are shown every second. Each slice is a request of its own, so that Caddy may
	// reload or restart meanwhile.
	waitSlice = time.Second

	// retryInterval is how often --wait asks at most.
	retryInterval = time.Second
)

// awaitDrained returns when the named upstreams are drained, or ctx ends, and how to exit then. It asks for all upstreams first, so that
// something is shown, and whenever an answer leaves a doubt; else it lets Caddy wait.
func (c *adminClient) awaitDrained(ctx context.Context, p progress, names []string) (int, error) {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for waits := false; ; {
		left, err := c.remaining(ctx, names, waits)
		switch {
		case err == nil && len(left) == 0:
			p.done("drained: " + strings.Join(names, ", "))
			return caddy.ExitCodeSuccess, nil
		case errors.Is(err, errNotDraining):
			p.end()
			return caddy.ExitCodeFailedStartup, err
		case ctx.Err() != nil: // that the answer did not come any more is no trouble
		case errors.Is(err, errDoubt): // nor is this
			waits = false
		case err != nil:
			p.trouble(err)
			waits = false
		default:
			p.show(left)
			if !waits {
				waits = true
				continue
			}
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

var (
	errNotDraining = errors.New("is not draining any more; somebody has taken it back")

	// errDoubt is said of an answer that tells too little: Caddy loads a config or ends and lets nobody wait, or the upstream does not
	// drain, as far as Caddy knows. All answers together tell more.
	errDoubt = errors.New("the answer leaves a doubt")
)

// remaining returns those of the named upstreams that are not drained: at once, or after a slice of waiting. What was drained by then may have
// been so at different moments; so where there are several, it is asked whether they are at one.
func (c *adminClient) remaining(ctx context.Context, names []string, waits bool) ([]api.Upstream, error) {
	if !waits {
		return c.list(ctx, names)
	}
	left, err := c.wait(ctx, names)
	if err == nil && len(left) == 0 && len(names) > 1 {
		return c.list(ctx, names)
	}
	return left, err
}

// list asks for all upstreams, and returns those of the named ones that are not drained.
func (c *adminClient) list(ctx context.Context, names []string) (left []api.Upstream, err error) {
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

// wait asks for each of the named upstreams when it is drained, for all at the same time, and returns those that are not after a slice.
func (c *adminClient) wait(ctx context.Context, names []string) (left []api.Upstream, err error) {
	all, errs := make([]api.Upstream, len(names)), make([]error, len(names))
	var asked sync.WaitGroup
	for i, name := range names {
		asked.Go(func() { all[i], errs[i] = c.waitForOne(ctx, name) })
	}
	asked.Wait()
	for i, st := range all {
		switch {
		case errs[i] != nil:
			return nil, errs[i]
		case st.State != api.StateDrained:
			left = append(left, st)
		}
	}
	return left, nil
}

// waitForOne asks for the named upstream when it is drained, and returns what is told of it then, or after a slice.
func (c *adminClient) waitForOne(ctx context.Context, name string) (st api.Upstream, err error) {
	uri := api.UpstreamsPath + "/" + url.PathEscape(name) + "?wait=" + waitSlice.String()
	err = c.do(ctx, http.MethodGet, uri, nil, &st)
	if _, said := errors.AsType[saidError](err); said || err == nil && st.Drain == nil {
		err = errDoubt
	}
	return st, err
}
