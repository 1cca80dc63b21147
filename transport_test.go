package caddybokeh

import (
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// foreignTransport is of some other module.
type foreignTransport struct{ http.RoundTripper }

func TestWatchTransport(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	for name, test := range map[string]struct {
		given   http.RoundTripper
		watched bool
		makes   bool // whether the policy makes one, and so has to clean it up
	}{
		"none":    {nil, true, true},
		"http":    {new(reverseproxy.HTTPTransport), true, false},
		"foreign": {foreignTransport{}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, h := new(Selection), &reverseproxy.Handler{Transport: test.given}
			if err := s.watchTransport(ctx, h); err != nil {
				t.Fatal(err)
			}
			if _, watched := h.Transport.(watchedTransport); watched != test.watched {
				t.Errorf("the transport is a %T", h.Transport)
			}
			if makes := s.transport != nil; makes != test.makes {
				t.Errorf("made one: %v, want %v", makes, test.makes)
			}
			if err := s.Cleanup(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A transport that the handler's own config has set up for TLS is still known to be that.
func TestWatchedTransportKeepsItsInterfaces(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	s, h := new(Selection), &reverseproxy.Handler{Transport: &reverseproxy.HTTPTransport{TLS: new(reverseproxy.TLSConfig)}}
	if err := s.watchTransport(ctx, h); err != nil {
		t.Fatal(err)
	}
	if tls, ok := h.Transport.(reverseproxy.TLSTransport); !ok || !tls.TLSEnabled() {
		t.Errorf("%T does not say that it has TLS", h.Transport)
	}
}
