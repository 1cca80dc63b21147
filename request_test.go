// This file holds requests without Caddy, for tests of how they are chosen for.

package caddybokeh

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// testPool returns n upstreams named u0:80, u1:80 and so on.
func testPool(n int) reverseproxy.UpstreamPool {
	pool := make(reverseproxy.UpstreamPool, n)
	for i := range pool {
		pool[i] = &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: fmt.Sprintf("u%d:80", i)}
	}
	return pool
}

// newTestSelection returns a policy with a table of its own, for a handler with the given pool.
func newTestSelection(pool reverseproxy.UpstreamPool) *Selection {
	return newTestSelectionWith(newLedger(), pool)
}

// newTestSelectionWith returns a policy of another config of the same process.
func newTestSelectionWith(t *ledger, pool reverseproxy.UpstreamPool) *Selection {
	s := new(Selection)
	s.logger, s.ring = zap.NewNop(), new(atomic.Pointer[stamp.Keyring])
	s.setDefaults()
	s.ring.Store(&bokehtest.Ring)
	s.attach(t)
	s.owner = t.newOwner(true)
	s.knowPool(&reverseproxy.Handler{Upstreams: pool})
	return s
}

// discovers makes s the policy of a handler that discovers its upstreams, the same for every request.
func discovers(s *Selection) {
	s.knowPool(&reverseproxy.Handler{DynamicUpstreamsRaw: []byte(`{"source":"a","name":"app.test"}`)})
}

// request is one request on its way through a handler.
type request struct {
	*http.Request
	s    *Selection
	repl *caddy.Replacer
	end  context.CancelFunc
}

func newRequest(s *Selection, target string, header ...string) *request {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = []string{header[i+1]}
	}
	repl := caddy.NewReplacer()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl))
	return &request{r.WithContext(ctx), s, repl, cancel}
}

func newSocket(s *Selection, token string) *request {
	return newRequest(s, "/app/ws", "Upgrade", "websocket", "Connection", "Upgrade", "Sec-Websocket-Protocol", "bokeh, "+token)
}

// choose selects an upstream and returns its address, or nothing, and the decision.
func (r *request) choose(pool reverseproxy.UpstreamPool) (addr, why string) {
	u := r.s.Select(pool, r.Request, nil)
	if u == nil {
		return "", ""
	}
	why, _ = r.repl.GetString(placeholderDecision)
	return u.Dial, why
}

// visit returns what the policy knows of the request.
func (r *request) visit() *visit {
	if v, ok := r.Context().Value(visitKey{r.s}).(*visit); ok {
		return v
	}
	return r.s.visit(r.Request)
}

// answer plays the rest of an attempt that the upstream answers, and ends the request.
func (r *request) answer(status int) {
	v := r.visit()
	v.connected(v.attempt)
	v.firstByteCame(v.attempt)
	r.repl.Set(placeholderStatus, status)
	r.end()
}

// hang plays an attempt that the upstream takes and does not answer, until the client gives up.
func (r *request) hang() {
	v := r.visit()
	v.connected(v.attempt)
	time.Sleep(10 * time.Second)
	r.end()
}

// badGateway plays the end of a request whose last attempt has brought no answer.
func (r *request) badGateway() { r.proxyError(http.StatusBadGateway) }

// proxyError plays the end of a request by an error of the proxy's own.
func (r *request) proxyError(status int) {
	r.repl.Set(placeholderErrorID, "of this error")
	r.repl.Set(placeholderErrorStatus, status)
	r.end()
}

// refuse plays an attempt whose dial fails.
func (r *request) refuse() {
	v := r.visit()
	v.dialed(v.attempt, fmt.Errorf("connection refused"))
}

// landed requests a page and says where it was made, and the token for its socket.
func landed(t *testing.T, s *Selection, pool reverseproxy.UpstreamPool) (home, token string) {
	t.Helper()
	page := newRequest(s, "/app")
	home, _ = page.choose(pool)
	page.answer(200)
	synctest.Wait()
	return home, bokehtest.Token(t, page.stamp(), nil)
}

// stamp is what a page request carries after Select.
func (r *request) stamp() string {
	if s := r.Header.Get(bokeh.StampHeader); s != "" {
		return s
	}
	return r.Header.Get(bokeh.SessionIDHeader)
}
