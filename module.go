// Package caddybokeh pins every Bokeh session to one upstream of a Caddy reverse proxy.
//
// This file holds the module: its config, its life in Caddy, and the state that outlives it.
package caddybokeh

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

func init() {
	caddy.RegisterModule(new(Selection))
}

// The values of session_ids, which are those of Bokeh's option.
const (
	sessionIDsUnsigned       = "unsigned"
	sessionIDsSigned         = "signed"
	sessionIDsExternalSigned = "external-signed"
)

// tokenHeaderBytes is what a server's headers may need: a Bokeh token grows with the cookies of
// the page request, and travels beside them.
const tokenHeaderBytes = 64_000

// Selection is a load balancing policy that pins Bokeh sessions to upstreams.
//
// A Bokeh server runs the app once for each page request and keeps the document in that one
// process; the websocket of the page has to come back to it. This policy sends both to one
// upstream, without cookies, also after a restart of Caddy and through another Caddy. A new
// session goes to the upstream that is soonest done with the pages being built there, by their number
// and by how slow it has been lately at the same app's pages; then to the one with the fewest sessions. A
// session whose upstream is lost moves to another one, the same through every Caddy.
//
// The page request leaves with a stamp, a signed string that names the upstream: as the
// session's id in the `Bokeh-Session-Id` header where the server takes ids from us, else in
// `Caddy-Bokeh-Stamp`. Bokeh brings both back in the token of the websocket.
//
// Several policies, handlers and configs that dial the same upstream count its sessions
// together. The counts survive reloads.
//
// Upstreams that `dynamic` discovers are kept when a look-up fails or finds nobody, also over a reload, and one that is not found
// any more keeps its sessions, where all requests share what is found: with `a`, `srv` and `multi` of these without placeholders,
// and sources that say so (`SharedSource`).
//
// It sets these placeholders:
//
// Placeholder | Description
// ------------|-------------
// `{http.reverse_proxy.bokeh.decision}` | Why the upstream was chosen: `bound` (the session is there, or what it has made), `new` (a new session, unless the answer is no page), `moved` (its own upstream is lost) or `shared` (any upstream answers this: static files, logins)
// `{http.reverse_proxy.bokeh.session}` | A short keyed hash of the session's id, the same through every Caddy with the same key; empty for shared requests. Where the server makes the ids itself, a page's differs from its socket's
// `{http.reverse_proxy.bokeh.waited_ms}` | How long the visit has waited for a slot, in milliseconds, where `max_sessions` made it wait
type Selection struct {
	// How the servers make session ids, as given to `bokeh serve --session-ids`: `unsigned`,
	// `signed` or `external-signed`. Default: `unsigned`, as in Bokeh.
	//
	// It decides where the stamp of a page request goes. With `unsigned` it is the session's
	// id. With `signed` it is too if `secret_key` is given, which then must be the servers'
	// `BOKEH_SECRET_KEY`; without it the servers make the ids, and the stamp travels beside
	// them. With `external-signed` the visitor brings the id, and the stamp travels beside it.
	// A server that refuses our ids with 403 gets the stamp beside them from then on.
	SessionIDs string `json:"session_ids,omitempty"`

	// The keys that stamps are signed with: the first one signs, all verify, so that a key can
	// be replaced without losing a session. Placeholders like `{env.BOKEH_SECRET_KEY}` and
	// `{file./run/secrets/bokeh}` are replaced when the config is loaded; an empty key is an
	// error. Every Caddy in front of the same servers needs the same first key.
	//
	// Default: a random key that is made once and kept in Caddy's storage, which Caddys with a
	// common storage share. One that is lost there is written back by those that have it; one that
	// is replaced there signs within seconds. While the storage fails, the key that this process
	// had before, or a random one of its own, signs; the log says so.
	SecretKey []string `json:"secret_key,omitempty"`

	// How long the servers keep a session without a socket, as given to `bokeh serve
	// --unused-session-lifetime`, there in milliseconds. From 1s to 8760h. Default: 15s, as in Bokeh.
	UnusedSessionLifetime caddy.Duration `json:"unused_session_lifetime,omitempty"`

	// How often the servers look for such sessions, as given to `bokeh serve
	// --check-unused-sessions`, there in milliseconds. A session is counted until the sum of
	// both is over. From 1s to 8760h. Default: 17s, as in Bokeh.
	CheckUnusedSessions caddy.Duration `json:"check_unused_sessions,omitempty"`

	// Loading a config closes the open websockets of the one before, unless that had a
	// `stream_close_delay`, as `bokeh_proxy` has: have one before you drain.
	//
	// Upstreams that get no new session and keep their own, by their addresses, as in the
	// handler's `upstreams`; one with a placeholder, or with more than one port, is an error. In the
	// Caddyfile port ranges and schemes may be used, as with `to`.
	// They drain in all policies of this process, for as long as this config is loaded. When
	// every healthy upstream is draining, new visitors get 503 with a `Retry-After` header. An
	// address that matches none of the handler's upstreams is logged as a warning. Default: none.
	Drain []string `json:"drain,omitempty"`

	// The most sessions that an upstream may have through this Caddy: so many slots it has. Only new sessions are refused
	// there: one that is bound to it always gets through, and so does one whose id a program or another
	// site has named. When every upstream that takes new sessions has so many, a visit waits for a slot,
	// whoever came first first, as long as the handler's `lb_try_duration` allows, also over a reload of
	// the config (which may end the wait where upstreams are discovered); without that it does not wait.
	// Then it takes a slot at an upstream that has failed, if one is free, or gets 503 with a `Retry-After` header.
	// A session has its slot until its server gives it up, `unused_session_lifetime` and `check_unused_sessions`
	// after its last websocket. A page whose websocket has not come 5 seconds after its answer gives its slot away; one that comes later
	// is let in all the same, so there may be up to twice as many. Default: no limit.
	MaxSessions int `json:"max_sessions,omitempty"`

	// What the new sessions of a group have in common, as one placeholder: `{http.auth.user.id}`, or
	// `{http.vars.client_ip}`, which a Caddyfile calls `{client_ip}`. They go to the same
	// upstream, the first one in an order that depends on the value and the key, of those that take new sessions, do not fail and have a slot; so to the same one through every
	// Caddy, with nothing to remember. A session whose value is empty, or that somebody else has named, goes where
	// it would without. When upstreams come or go, the groups that are first there move with their next session.
	// Default: sessions are not grouped, and each goes where it is ready first.
	GroupBy string `json:"group_by,omitempty"`

	// The name of a cookie that tells where a browser's newest page is, for what a session has made and a link does not
	// name it: files that an app writes to its server's disk, results in its memory. Requests that name no session go to
	// that server as long as it is well and takes new sessions. Pages, `autoload.js` and websockets do not depend on it;
	// only the first page of an app since Caddy's start may be built there. It is set with HTML that may be a page, names the server by a
	// keyed hash, lives as long as the browser, and is `HttpOnly`, `SameSite=Lax` and, over HTTPS, `Secure`. Where two
	// sites share a host each needs a name of its own. It needs the `http` transport. In the Caddyfile the name may be
	// left out: `bokeh_server`. Default: no cookie.
	Cookie string `json:"cookie,omitempty"`

	// After how long without a byte of an answer a second server is asked for the same file as well, once; the first good
	// answer is served, and the other request is cancelled. That is for a `GET` or `HEAD` without a body and without a session, for a script,
	// a style sheet or a font by its `Sec-Fetch-Dest` header, or a file by its extension in a folder named `static` or `components`. Pages,
	// websockets, logins and whatever else an app answers are asked for once, and so is what brings the cookie of `cookie`, unless
	// `bokeh_files` asks for it. No server is
	// asked in addition that has itself answered nothing for a moment, drains or fails. An answer of 4xx or 5xx, or an error, of
	// the second server is passed over. It needs the `http` transport without `proxy_protocol`, upstreams and TLS
	// server names without placeholders, and request headers that do not name the upstream. Caddy's own
	// numbers (`num_requests`, passive health checks) count such a request at the first server. At least 100ms. Default: 0, which is off; `bokeh_proxy` sets 1s.
	HedgeAfter caddy.Duration `json:"hedge_after,omitempty"`

	surroundings
	keys
	ownPool
	proxy

	pacers pacers
}

// surroundings are where a policy is.
type surroundings struct {
	logger   *zap.Logger
	table    *ledger
	node     *cluster.Cluster
	raise    func(event string, data map[string]any) // nil in tests
	unloaded <-chan struct{}                         // closed when the config is replaced; nil in tests
}

// keys are what a policy signs stamps with.
type keys struct {
	ring     *atomic.Pointer[stamp.Keyring]
	keyed    <-chan struct{} // closed when the storage was looked at for the key; nil where the config has it
	givesIDs bool            // whether a stamp may be a session's id
}

// ownPool is what a policy knows of its upstreams, and of their sessions.
type ownPool struct {
	members  *members
	healthy  func(*reverseproxy.Upstream) bool
	static   reverseproxy.UpstreamPool       // the handler's own pool, if it is the same for every request
	fallback reverseproxy.UpstreamPool       // of the config, for when discovery fails
	index    atomic.Pointer[index]           // of the static pool
	offered  atomic.Pointer[admission.Offer] // to the one who waited last
	owner    *owner                          // by which its sessions are known from those of other policies
	lifetime time.Duration                   // of a session without a socket
}

// proxy is what a policy knows of its reverse proxy.
type proxy struct {
	patience    time.Duration               // how long it goes on looking for an upstream
	tryInterval time.Duration               // between two times that it looks
	pause       time.Duration               // the first one of an upstream that fails, before it is tried again
	watches     bool                        // whether each visit hears of its answer
	tunnels     tunnels                     // that connections become which it upgrades
	hedges      bool                        // whether a file may be asked of a second server
	transport   *reverseproxy.HTTPTransport // made by this policy for its handler, which had none; or nil
}

// thisLedger is the one table of this process. It outlives configs, because sessions do: a reload
// changes nothing about where documents live.
var thisLedger = sync.OnceValue(newLedger)

// thisNode is this process among the Caddys that share its storage.
var thisNode = sync.OnceValue(func() *cluster.Cluster {
	n := cluster.New(context.Background(), processConfig())
	caddy.OnExit(func(context.Context) { n.Close() }) // the last config may have no policy that does
	return n
})

// CaddyModule returns the Caddy module information.
func (*Selection) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.selection_policies.bokeh",
		New: func() caddy.Module { return new(Selection) },
	}
}

// Provision sets up s.
func (s *Selection) Provision(ctx caddy.Context) error {
	s.logger = printable.Log(ctx.Logger())
	s.unloaded = ctx.Done()
	s.setDefaults()
	if err := s.provideKeys(ctx); err != nil {
		return err
	}
	s.attach(thisLedger())
	s.members.drain(s.Drain)
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting the events app: %w", err)
	}
	events := app.(*caddyevents.App)
	s.raise = func(name string, data map[string]any) { events.Emit(ctx, name, data) }
	servers, ok := innermost[*caddyhttp.App](ctx)
	first := ok && isFirstOf(servers)
	s.owner = s.table.newOwner(first)
	if first {
		s.warnOfHeaderLimit(servers)
		s.warnOfUnreached(servers)
		whenStopped(servers, thisNode().ServersStopped)
	}
	if h, ok := innermost[*reverseproxy.Handler](ctx); ok {
		s.owner.standIn(servers, h)
		s.knowPool(h)
		s.warnOfStrangers(h)
		s.warnOfBuffers(h)
		s.restrictRetries(h)
		if err := s.watchTransport(ctx, h); err != nil {
			return err
		}
		if err := events.On("started", whenStarted{func() {
			s.members.started(h.Upstreams)
			s.table.ownersOf(s.owner.config)
		}}); err != nil {
			return fmt.Errorf("asking for the event of the start: %w", err)
		}
	}
	if err := registerOnce(ctx.GetMetricsRegistry(), metrics{thisNode(), s.table}); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	s.join(thisNode(), ctx.Storage())
	return nil
}

// join lets the node tell of the upstreams, and waits until it knows which of them drain, for the first visitor must
// not be sent to a draining one; and for the key. Both are looked for at the same time.
func (s *Selection) join(n *cluster.Cluster, st store.Storage) {
	s.node = n
	<-n.Attach(policyOf{s}, st)
	if s.keyed != nil {
		<-s.keyed
	}
}

// setDefaults fills in what the config leaves out.
func (s *Selection) setDefaults() {
	if s.SessionIDs == "" {
		s.SessionIDs = sessionIDsUnsigned
	}
	if s.UnusedSessionLifetime == 0 {
		s.UnusedSessionLifetime = caddy.Duration(defaultUnusedSessionLifetime)
	}
	if s.CheckUnusedSessions == 0 {
		s.CheckUnusedSessions = caddy.Duration(defaultCheckUnusedSessions)
	}
}

// attach makes s work with the given table.
func (s *Selection) attach(t *ledger) {
	s.table = t
	s.members = &members{l: t}
	s.healthy = (*reverseproxy.Upstream).Healthy
	s.pause = breaker.Backoff
	s.lifetime = time.Duration(s.UnusedSessionLifetime + s.CheckUnusedSessions)
	s.givesIDs = s.SessionIDs == sessionIDsUnsigned || s.SessionIDs == sessionIDsSigned && len(s.SecretKey) > 0
}

// Cleanup lets go of the upstreams that s knows. After a Provision that failed it knows none.
func (s *Selection) Cleanup() error {
	if s.node != nil {
		if last := s.node.Detach(policyOf{s}); last && caddy.Exiting() {
			s.node.Close() // where there is no server, or none that could be asked
		}
	}
	if s.members != nil {
		s.members.close()
		s.table.disown(s.owner)
	}
	if s.transport != nil {
		return s.transport.Cleanup()
	}
	return nil
}

// Interface guards
var (
	_ caddy.Module          = (*Selection)(nil)
	_ caddy.Provisioner     = (*Selection)(nil)
	_ caddy.Validator       = (*Selection)(nil)
	_ caddy.CleanerUpper    = (*Selection)(nil)
	_ reverseproxy.Selector = (*Selection)(nil)
	_ caddyevents.Handler   = whenStarted{}
)
