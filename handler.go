// This file holds what a policy learns of the handler and the servers that it stands in, and what it warns of there.

package caddybokeh

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"weak"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
)

// innermost returns the closest parent of a type. A reverse proxy may stand in the answers of another one.
func innermost[T caddy.Module](ctx caddy.Context) (parent T, ok bool) {
	for _, m := range slices.Backward(ctx.Modules()) {
		if parent, ok = m.(T); ok {
			return parent, true
		}
	}
	return parent, false
}

// whenStopped lets f be called when all servers of a config have stopped. Its storage is in use until then; it may be
// closed before the Cleanup of a policy, for modules are cleaned up in any order.
func whenStopped(app *caddyhttp.App, f func()) {
	for _, srv := range app.Servers {
		srv.RegisterOnStop(func(context.Context) error {
			f()
			return nil
		})
		return // when Caddy calls the first of these, all have stopped
	}
}

// whenStarted is called when Caddy has started a config. It is a struct because Caddy logs it in JSON.
type whenStarted struct{ call func() }

// Handle implements caddyevents.Handler.
func (w whenStarted) Handle(context.Context, caddy.Event) error {
	w.call()
	return nil
}

// knowPool learns what there is to know of the handler's upstreams before the first request.
func (s *Selection) knowPool(h *reverseproxy.Handler) {
	s.members.attach(h.Upstreams)
	if h.LoadBalancing != nil {
		s.patience = time.Duration(h.LoadBalancing.TryDuration)
		s.tryInterval = time.Duration(h.LoadBalancing.TryInterval)
		if h.LoadBalancing.TryDuration > 0 || h.LoadBalancing.Retries > 0 {
			s.pause = breaker.QuickBackoff
		}
	}
	if h.DynamicUpstreamsRaw != nil || h.DynamicUpstreams != nil {
		s.fallback = h.Upstreams
		if isShared(h.DynamicUpstreamsRaw) {
			src := s.table.holdSource(string(h.DynamicUpstreamsRaw))
			s.members.discoverBy(src)
			s.owner.source = src
		}
		return
	}
	for _, u := range h.Upstreams {
		if hasPlaceholder(u.Dial) {
			return
		}
	}
	s.static = h.Upstreams
	s.owner.static = make(map[string]bool)
	for _, u := range h.Upstreams {
		s.owner.static[upstreamName(u.Dial)] = true
	}
}

// warnOfStrangers says so where an address on the drain line is none of the handler's.
func (s *Selection) warnOfStrangers(h *reverseproxy.Handler) {
	names := make(map[string]bool)
	for _, u := range h.Upstreams {
		names[upstreamName(u.Dial)] = true
	}
	for _, addr := range s.Drain {
		if !names[upstreamName(addr)] {
			s.logger.Warn("drain names an upstream that is none of this reverse_proxy's (compare the addresses, unless it is a discovered one)",
				zap.String("upstream", addr))
		}
	}
}

// warnOfBuffers says so where the proxy waits for the end of an answer before it hands it on, and so of a websocket.
func (s *Selection) warnOfBuffers(h *reverseproxy.Handler) {
	if h.ResponseBuffers != 0 {
		s.logger.Warn("response_buffers holds up websockets for ever, so every page stays empty (take that line off)")
	}
}

// warnedOf is the app of the config whose routes were last looked at.
var warnedOf atomic.Value // of weak.Pointer[caddyhttp.App]

// isFirstOf says whether this is the first policy of an app. That one sees the routes of all servers, so once will do.
func isFirstOf(app *caddyhttp.App) bool {
	this := weak.Make(app)
	return warnedOf.Swap(this) != this
}

// warnOfHeaderLimit says so where a websocket with a large token would be refused.
func (s *Selection) warnOfHeaderLimit(app *caddyhttp.App) {
	var small []string
	for _, srv := range app.Servers {
		if srv.MaxHeaderBytes < tokenHeaderBytes && holdsPolicy(srv) {
			small = append(small, strings.Join(srv.Listen, " "))
		}
	}
	if len(small) == 0 {
		return
	}
	s.logger.Warn("server takes less header than a Bokeh websocket may need, which grows with the visitor's cookies;"+
		" such a visitor sees an empty page (set max_header_size 64KB in the servers option)",
		zap.Strings("listening_on", small),
		zap.Int("wanted_bytes", tokenHeaderBytes))
}

// policyName finds policies like this in the JSON of routes. Caddy throws that away as it
// provisions them, but a policy is provisioned before its own route is thrown away.
var policyName = regexp.MustCompile(`"policy"\s*:\s*"bokeh"`)

func holdsPolicy(srv *caddyhttp.Server) bool {
	routes := slices.Clone(srv.Routes)
	if srv.Errors != nil {
		routes = append(routes, srv.Errors.Routes...)
	}
	for _, named := range srv.NamedRoutes {
		routes = append(routes, *named)
	}
	for _, route := range routes {
		if slices.ContainsFunc(route.HandlersRaw, func(raw json.RawMessage) bool { return policyName.Match(raw) }) {
			return true
		}
	}
	return false
}
