// This file holds what is logged at load where a reverse proxy can never be reached, as one before it takes every request.

package caddybokeh

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// warnOfUnreached says so where one of two proxies in a row gets no visit, and one of them has this policy: labels of several
// Docker containers are merged to that.
func (s *Selection) warnOfUnreached(app *caddyhttp.App) {
	for _, srv := range app.Servers {
		look := routeWalk{s.logger, make(map[string]bool)}
		look.through(readRoutes(srv.Routes))
		if srv.Errors != nil {
			look.through(readRoutes(srv.Errors.Routes))
		}
		for _, named := range srv.NamedRoutes {
			look.through(readRoutes(caddyhttp.RouteList{*named}))
		}
	}
}

// rawRoute is a route in the JSON of a config.
type rawRoute struct {
	Group  string            `json:"group"`
	Match  []json.RawMessage `json:"match"`
	Handle []json.RawMessage `json:"handle"`
}

// rawHandler is a handler in the JSON of a config, as a subroute or as a reverse proxy.
type rawHandler struct {
	Handler        string            `json:"handler"`
	Routes         []rawRoute        `json:"routes"`
	Errors         json.RawMessage   `json:"errors"`
	HandleResponse []json.RawMessage `json:"handle_response"`
	Upstreams      []struct {
		Dial string `json:"dial"`
	} `json:"upstreams"`
}

// readRoutes returns routes as they are in JSON. Caddy has thrown away that of their matchers already.
func readRoutes(routes caddyhttp.RouteList) []rawRoute {
	raw := make([]rawRoute, len(routes))
	for i, route := range routes {
		raw[i] = rawRoute{Group: route.Group, Handle: route.HandlersRaw}
		if len(route.MatcherSetsRaw) > 0 || len(route.MatcherSets) > 0 {
			raw[i].Match = []json.RawMessage{nil}
		}
	}
	return raw
}

// rawProxy is a reverse proxy in the JSON of a config.
type rawProxy struct {
	dials []string
	ours  bool // whether it has this policy
}

// routeWalk goes through the routes of a server, in the order of requests.
type routeWalk struct {
	logger *zap.Logger
	groups map[string]bool // that it has come by: of each, only the first route that matches is run
}

// through logs of the proxies in a list of routes that another one hides. It returns the one that takes every
// request which comes to the list, or nil. In doubt none does.
func (w routeWalk) through(routes []rawRoute) (taker *rawProxy) {
	var hidden []rawProxy
	for _, route := range routes {
		always := len(route.Match) == 0 && (route.Group == "" || !w.groups[route.Group])
		w.groups[route.Group] = true
		for _, raw := range route.Handle {
			if taker != nil {
				hidden = appendProxies(hidden, raw)
			} else if t := w.takesAll(raw); always {
				taker = t
			}
		}
	}
	var never []string
	for _, p := range hidden {
		if p.ours || taker.ours {
			never = append(never, p.dials...)
		}
	}
	if len(never) > 0 {
		w.logger.Warn("reverse proxies can never be reached, for one before them has no matcher and takes every request"+
			" (name all servers in one bokeh_proxy, or give each a handle; in Docker labels write reverse_proxy with lb_policy bokeh, whose upstreams are joined)",
			zap.Strings("takes_all", taker.dials), zap.Strings("never_reached", never))
	}
	return taker
}

// takesAll returns the proxy by which a handler answers every request, or nil.
func (w routeWalk) takesAll(raw json.RawMessage) *rawProxy {
	h, ok := readHandler(raw)
	switch {
	case !ok:
	case h.Handler == "subroute":
		if taker := w.through(h.Routes); h.Errors == nil { // those may hand on
			return taker
		}
	case h.Handler == "reverse_proxy" && h.HandleResponse == nil: // as that of forward_auth, which hands on
		return h.proxy(raw)
	}
	return nil
}

// appendProxies adds all proxies of a handler.
func appendProxies(ps []rawProxy, raw json.RawMessage) []rawProxy {
	h, ok := readHandler(raw)
	if ok && h.Handler == "reverse_proxy" {
		return append(ps, *h.proxy(raw))
	}
	for _, route := range h.Routes {
		for _, raw := range route.Handle {
			ps = appendProxies(ps, raw)
		}
	}
	return ps
}

func (h *rawHandler) proxy(raw json.RawMessage) *rawProxy {
	p := &rawProxy{ours: policyName.Match(raw)}
	for _, u := range h.Upstreams {
		p.dials = append(p.dials, u.Dial)
	}
	if p.dials == nil {
		p.dials = []string{"(discovered)"}
	}
	return p
}

func readHandler(raw json.RawMessage) (h rawHandler, ok bool) {
	err := json.Unmarshal(raw, &h)
	return h, err == nil
}
