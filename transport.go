// This file holds the transport of a reverse proxy as a policy watches it: each visit hears of its answer before the proxy does.

package caddybokeh

import (
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// watchedTransport is the HTTP transport of a reverse proxy. All that Caddy finds out about a transport by its
// interfaces it finds in the one that is embedded.
type watchedTransport struct {
	*reverseproxy.HTTPTransport
	s *Selection
}

// RoundTrip implements http.RoundTripper.
func (t watchedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.send(r)
	if err == nil {
		t.s.tunnels.dig(res, nil)
	}
	return res, err
}

// send sends a request, and lets its visit hear of the answer.
func (t watchedTransport) send(r *http.Request) (*http.Response, error) {
	v, ok := r.Context().Value(visitKey{t.s}).(*visit)
	if !ok {
		return t.HTTPTransport.RoundTrip(r)
	}
	send := t.HTTPTransport.RoundTrip
	if v.mayHedge {
		send = func(r *http.Request) (*http.Response, error) { return t.roundTripHedged(v, r) }
	}
	res, err := send(r)
	if err != nil {
		return nil, v.noAnswer(err)
	}
	v.hasAnswer(res)
	return res, nil
}

// watchTransport puts itself before the handler's HTTP transport, and makes that where the config has none: Caddy would do
// so after its policy was set up. Any other transport is left alone; what became of its requests is known from Caddy's
// placeholders.
func (s *Selection) watchTransport(ctx caddy.Context, h *reverseproxy.Handler) error {
	switch t := h.Transport.(type) {
	case nil:
		own := new(reverseproxy.HTTPTransport)
		if err := own.Provision(ctx); err != nil {
			return fmt.Errorf("provisioning default transport: %w", err)
		}
		s.transport = own
		h.Transport = watchedTransport{own, s}
		s.hedges = s.HedgeAfter > 0 && canHedge(h, own)
	case *reverseproxy.HTTPTransport:
		h.Transport = watchedTransport{t, s}
		s.hedges = s.HedgeAfter > 0 && canHedge(h, t)
	}
	if _, s.watches = h.Transport.(watchedTransport); s.watches {
		s.tunnels = tunnelsOf(h)
	}
	return nil
}

// Interface guards
var (
	_ http.RoundTripper                                = watchedTransport{}
	_ reverseproxy.TLSTransport                        = watchedTransport{}
	_ reverseproxy.H2CTransport                        = watchedTransport{}
	_ reverseproxy.HealthCheckSchemeOverriderTransport = watchedTransport{}
	_ reverseproxy.ProxyProtocolTransport              = watchedTransport{}
	_ reverseproxy.RequestHeaderOpsTransport           = watchedTransport{}
)
