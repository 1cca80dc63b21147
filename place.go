// This file holds where in its config a policy stands: the one that stands there after a reload follows it, whatever its upstreams are.

package caddybokeh

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// place stands for the addresses of a server and all that requests must match on their way to a policy. It is empty where that is
// not known, or leads to two policies.
type place [sha256.Size]byte

// placesIn returns where the reverse proxies of a config stand, as far as that is known.
func placesIn(app *caddyhttp.App) map[*reverseproxy.Handler]place {
	found := make(map[place][]*reverseproxy.Handler)
	for _, srv := range app.Servers {
		lookThrough(srv.Routes, fmt.Sprintf("%q", srv.Listen), func(way string, h *reverseproxy.Handler) {
			at := place(sha256.Sum256([]byte(way)))
			found[at] = append(found[at], h)
		})
	}
	places := make(map[*reverseproxy.Handler]place)
	for at, hs := range found {
		if len(hs) == 1 {
			places[hs[0]] = at
		}
	}
	return places
}

// lookThrough calls yield with the reverse proxies in some routes, and the way to each.
func lookThrough(routes caddyhttp.RouteList, way string, yield func(string, *reverseproxy.Handler)) {
	for _, route := range routes {
		here := way
		if len(route.MatcherSets) > 0 {
			text, ok := matcherText(route.MatcherSets)
			if !ok {
				continue
			}
			here += text
		}
		for _, h := range route.Handlers {
			switch h := h.(type) {
			case *caddyhttp.Subroute:
				lookThrough(h.Routes, here, yield)
			case *reverseproxy.Handler:
				yield(here, h)
			}
		}
	}
}

// matcherText writes matchers down, the same for the same ones, if they are Caddy's own. Others may say of themselves what they want.
func matcherText(sets []caddyhttp.MatcherSet) (string, bool) {
	var texts []string
	for _, set := range sets {
		var one []string
		for _, m := range set {
			text, ok := textOfMatcher(m)
			if !ok {
				return "", false
			}
			one = append(one, fmt.Sprintf("%T%s", m, text))
		}
		slices.Sort(one) // Caddy has them in no order
		texts = append(texts, strings.Join(one, ""))
	}
	return fmt.Sprintf("%q", texts), true
}

func textOfMatcher(matcher any) (string, bool) {
	if not, ok := matcher.(*caddyhttp.MatchNot); ok { // it has thrown away its JSON
		return matcherText(not.MatcherSets)
	}
	kind := reflect.TypeOf(matcher)
	if kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if !strings.HasPrefix(kind.PkgPath(), "github.com/caddyserver/caddy/v2/") {
		return "", false
	}
	text, err := json.Marshal(matcher)
	return string(text), err == nil
}
