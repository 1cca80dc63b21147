// This file holds which requests are sent to another server where their connection has broken.

package caddybokeh

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// restrictRetries keeps the reverse proxy from sending a request again that may have reached a server, but for a file. Caddy repeats
// every GET: one page that takes its server down took down all, and an app could run more than once for a visit. What has
// certainly reached nobody, as after a refused dial, Caddy repeats whatever we say, and lb_retry_match of the config stands.
func (s *Selection) restrictRetries(h *reverseproxy.Handler) {
	if h.LoadBalancing != nil && len(h.LoadBalancing.RetryMatchRaw) == 0 {
		h.LoadBalancing.RetryMatch = caddyhttp.MatcherSets{{repeatable{s}}}
	}
}

// repeatable matches the requests that may reach two servers.
type repeatable struct{ s *Selection }

// MatchWithError implements caddyhttp.RequestMatcherWithError.
func (m repeatable) MatchWithError(r *http.Request) (bool, error) {
	v, ok := r.Context().Value(visitKey(m)).(*visit)
	return ok && v.isForFile(r), nil
}

// isForFile says whether the visit's request is for a file and no app, whatever its headers say.
func (v *visit) isForFile(r *http.Request) bool {
	return (v.Kind == bokeh.Other || v.Kind == bokeh.MaybePage) && isFile(r) && bokeh.HasFileEnding(r.URL.Path) && !v.isAtApp()
}

// noAnswer takes note that the last attempt has ended with an error, and returns that in such a form that the reverse proxy takes it for
// one of a dial only where nothing can have reached a server. Where a connection breaks that was kept, Go sends what it may once more on a new one, and tells of that alone.
func (v *visit) noAnswer(err error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.attempt.leave() // until the next attempt it is nobody's
	if v.cut {
		return errCut
	}
	_, atDial := errors.AsType[reverseproxy.DialError](err)
	switch {
	case atDial && v.attempt.connected:
		return errors.New(err.Error())
	case v.attempt.noTLS && !v.attempt.connected:
		return reverseproxy.NewDialError(err) // Caddy does not know that nothing was sent
	}
	return err
}

// errCut is that of a request that was ended. As a request of its client's own it would look as if that had gone.
var errCut = errors.New("the upstream was closed meanwhile, for its grace period is over")

// Interface guard
var _ caddyhttp.RequestMatcherWithError = repeatable{}
