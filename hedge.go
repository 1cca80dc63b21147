// This file holds the asking of a second server for a file that the first one does not answer.

package caddybokeh

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// What became of a file that two servers were asked for.
const (
	hedgeWon  = "won"  // the second one's answer came first
	hedgeLost = "lost" // it did not
)

var hedgeOutcomes = []string{hedgeWon, hedgeLost}

// isFile says whether r asks for a file that a page loads. Asking twice changes nothing then, as it might with a login or
// whatever else an app does for a GET. What a browser would show as a page may be one, whatever its name.
func isFile(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.Header.Get("Upgrade") != "" || bokeh.BringsBody(r) || r.Header.Get("Content-Type") != "" ||
		strings.Contains(r.Header.Get("Accept"), "text/html") {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "script", "style", "font":
		return true
	}
	return bokeh.IsInFileFolder(r.URL.Path) && bokeh.HasFileEnding(r.URL.Path)
}

// canHedge says whether a request that was made for one upstream can be sent to another one by t. It cannot where its
// headers or its TLS handshake name the upstream, or where the connection tells of the client.
func canHedge(h *reverseproxy.Handler, t *reverseproxy.HTTPTransport) bool {
	if t.ProxyProtocol != "" || t.TLS != nil && strings.Contains(t.TLS.ServerName, "{") {
		return false
	}
	if h.Headers == nil || h.Headers.Request == nil {
		return true
	}
	return !strings.Contains(fmt.Sprint(*h.Headers.Request), "{http.reverse_proxy.upstream.")
}

// hedging is whether and where a visit may ask a second server.
type hedging struct {
	pool     reverseproxy.UpstreamPool // that it was last chosen from, where it may be hedged
	mayHedge bool
}

// hedge is a request for a file that another server may be asked for as well.
type hedge struct {
	v           *visit
	transport   *reverseproxy.HTTPTransport
	first       *http.Request
	cancelFirst context.CancelFunc
	slow        *member       // the first server
	ended       chan struct{} // closed when the second server has answered, or was not asked

	// The second server's, when it has won.

	answer *http.Response
	a      *attempt
	dial   reverseproxy.DialInfo

	mu           sync.Mutex // guards all below
	decided      bool       // who wins
	cancelSecond context.CancelFunc
}

// roundTripHedged sends r, and asks another server too if no answer has come after a while. The first good answer wins: one
// without an error, and from the second server none of 4xx either, for that may not know a file yet.
func (t watchedTransport) roundTripHedged(v *visit, r *http.Request) (*http.Response, error) {
	t.SetScheme(r) // before anybody else looks at r
	ctx, cancel := context.WithCancel(r.Context())
	h := &hedge{v: v, transport: t.HTTPTransport, first: r, cancelFirst: cancel, ended: make(chan struct{})}
	timer := time.AfterFunc(time.Duration(t.s.HedgeAfter), h.askSecond)
	res, err := t.HTTPTransport.RoundTrip(r.WithContext(ctx))
	if timer.Stop() || err == nil && res.StatusCode < http.StatusInternalServerError && h.decide(false) {
		return res, err
	}
	<-h.ended
	if h.answer == nil {
		return res, err
	}
	if err == nil {
		res.Body.Close()
	}
	h.adopt(err == nil)
	return h.answer, nil
}

// decide says whether the caller's answer is the first good one. Nobody waits for the other one then.
func (h *hedge) decide(second bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.decided {
		return false
	}
	h.decided = true
	switch {
	case second:
		h.cancelFirst()
	case h.cancelSecond != nil:
		h.cancelSecond()
	}
	return true
}

// askSecond asks another server, if there is one that answers.
func (h *hedge) askSecond() {
	defer close(h.ended)
	r, a := h.begin()
	if r == nil {
		return
	}
	res, err := h.transport.RoundTrip(r)
	if err == nil && res.StatusCode < http.StatusBadRequest && h.decide(true) {
		h.slow.History.Hedged.Add(hedgeWon)
		h.answer, h.a = res, a
		return
	}
	h.slow.History.Hedged.Add(hedgeLost)
	h.cancelSecond()
	if err == nil {
		res.Body.Close()
	}
	h.v.drop(a)
}

// begin returns the request to another server, and the attempt as which it is counted; or nil.
func (h *hedge) begin() (*http.Request, *attempt) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.decided {
		return nil, nil
	}
	v := h.v
	h.slow = v.lastAttempt().m
	cs := v.s.candidates(v.pool, v)
	c := v.second(cs)
	if c == nil {
		return nil, nil
	}
	addr, err := caddy.ParseNetworkAddress(c.upstream.Dial)
	if err != nil || addr.PortRangeSize() != 1 {
		return nil, nil
	}
	h.dial = reverseproxy.DialInfo{
		Upstream: c.upstream, Network: addr.Network, Address: addr.JoinHostPort(0),
		Host: addr.Host, Port: fmt.Sprint(addr.StartPort),
	}
	a := &attempt{m: c.member, startedAt: cs.now, address: h.dial.String()}
	if !v.beginSecond(a) {
		return nil, nil
	}
	// The context of the visit knows nothing of the first server. The transport keeps variables of its own in that map.
	ctx := context.WithValue(v.ctx, caddyhttp.VarsCtxKey, make(map[string]any))
	ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), h.dial) // as reverseproxy.GetDialInfo finds it
	ctx, h.cancelSecond = context.WithCancel(ctx)
	first := *h.first
	first.Trailer = nil // the first server may just be sent what ends an empty body
	r := first.Clone(httptrace.WithClientTrace(ctx, v.trace(a)))
	r.Body, r.ContentLength = nil, 0
	r.Header.Del(bokeh.StampHeader) // it names the first server
	if to, ok := reverseproxy.GetDialInfo(first.Context()); ok && h.transport.TLSEnabled() && r.Host == to.Address {
		r.Host = h.dial.Address
	}
	r.URL.Scheme, r.URL.Host = "", h.dial.Address
	if c := v.s.logger.Check(zap.DebugLevel, "asking another upstream too"); c != nil {
		c.Write(zap.String("upstream", a.m.Name))
	}
	return r, a
}

// adopt makes the second server's answer the visit's. It is told whether the first one has answered, too.
func (h *hedge) adopt(both bool) {
	h.v.adopt(h.a, both)
	repl, u := h.v.repl, h.dial.Upstream
	if repl == nil {
		return
	}
	repl.Set(placeholderUpstream, h.dial.String())
	repl.Set("http.reverse_proxy.upstream.hostport", h.dial.Address)
	repl.Set("http.reverse_proxy.upstream.host", h.dial.Host)
	repl.Set("http.reverse_proxy.upstream.port", h.dial.Port)
	repl.Set("http.reverse_proxy.upstream.requests", u.NumRequests())
	repl.Set("http.reverse_proxy.upstream.max_requests", u.MaxRequests)
	repl.Set("http.reverse_proxy.upstream.fails", u.Fails())
}

// second returns an upstream that may be asked as well, or nil. If it might not answer either, asking it
// would only double the work.
func (v *visit) second(cs *candidates) *candidate {
	unasked := v.unasked(cs)
	return cs.least(func(c *candidate) bool {
		w := v.ease(c.member, cs.now)
		return unasked(c) && w.avoided == 0 && w.stall == 0 && !slices.Contains(v.tried, c.member)
	}, func(m *member) weight { return v.ease(m, cs.now) })
}

// beginSecond counts a second attempt beside the last one, once in a visit.
func (v *visit) beginSecond(a *attempt) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over || v.hedged || v.attempt.answered {
		return false
	}
	v.hedged = true
	a.open.Of = v
	a.m.Drain.Requests.Add(&a.open)
	a.m.Unanswered.Ask(&a.question, a.startedAt)
	a.m.History.Selected.Add(string(decisionShared))
	return true
}

func (v *visit) lastAttempt() *attempt {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.attempt
}

// drop ends an attempt whose answer nobody takes.
func (v *visit) drop(a *attempt) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.finish(a, 0)
	a.leave()
}

// adopt makes a the visit's last attempt, in the place of the one before, which was answered as well or was not.
func (v *visit) adopt(a *attempt, both bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	first := v.attempt
	v.finish(first, 0)
	first.leave()
	v.attempt = a
	v.tried = append(v.tried, a.m)
	if asked := v.asked; asked != nil {
		if !both { // the first one has not said whether it has the file
			asked.members = slices.DeleteFunc(asked.members, func(m *member) bool { return m == first.m })
			asked.left = true
		}
		asked.add(a.m, asked.left)
	}
	if v.over {
		v.finish(a, 0)
		a.leave()
	}
}
