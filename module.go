// Package caddybokeh pins every Bokeh session to one upstream of a Caddy reverse proxy.
//
// This file holds the module: its config, its life in Caddy, and the state that outlives it.
package caddybokeh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
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

// Bokeh's own defaults (bokeh/server/core.py), which Bokeh counts in milliseconds.
const (
	defaultUnusedSessionLifetime = 15 * time.Second
	defaultCheckUnusedSessions   = 17 * time.Second
)

// maxLifetime bounds both, so that their sum cannot overflow.
const maxLifetime = 8760 * time.Hour

// shortestHedge bounds hedge_after.
const shortestHedge = 100 * time.Millisecond

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
// `{http.reverse_proxy.bokeh.waited_ms}` | How long the visit has waited for a place, in milliseconds, where `max_sessions` made it wait
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

	// The most sessions that an upstream may have through this Caddy. Only new sessions are refused
	// there: one that is bound to it always gets through, and so does one whose id a program or another
	// site has named. When every upstream that takes new sessions has so many, a visit waits for a place,
	// whoever came first first, as long as the handler's `lb_try_duration` allows, also over a reload of
	// the config (which may end the wait where upstreams are discovered); without that it does not wait.
	// Then it takes a place at an upstream that has failed, if one is free, or gets 503 with a `Retry-After` header.
	// A session has its place until its server gives it up, `unused_session_lifetime` and `check_unused_sessions`
	// after its last websocket. A page whose websocket has not come 5 seconds after its answer gives its place away; one that comes later
	// is let in all the same, so there may be up to twice as many. Default: no limit.
	MaxSessions int `json:"max_sessions,omitempty"`

	// What the new sessions of a group have in common, as one placeholder: `{http.auth.user.id}`, or
	// `{http.vars.client_ip}`, which a Caddyfile calls `{client_ip}`. They go to the same
	// upstream, the first one in an order that depends on the value and the key, of those that take new sessions, do not fail and have a place; so to the same one through every
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

	logger   *zap.Logger
	table    *ledger
	node     *node
	members  *members
	lifetime time.Duration // of a session without a socket
	givesIDs bool          // whether a stamp may be a session's id
	ring     *atomic.Pointer[stamp.Keyring]
	keyed    <-chan struct{}                         // closed when the storage was looked at for the key; nil where the config has it
	raise    func(event string, data map[string]any) // nil in tests
	healthy  func(*reverseproxy.Upstream) bool

	patience    time.Duration                   // of the handler: how long it goes on looking for an upstream
	tryInterval time.Duration                   // between two times that it looks
	pause       time.Duration                   // the first one of an upstream that fails, before it is tried again
	unloaded    <-chan struct{}                 // closed when the config is replaced; nil in tests
	static      reverseproxy.UpstreamPool       // the handler's own pool, if it is the same for every request
	index       atomic.Pointer[index]           // of the static pool
	owner       *owner                          // by which its sessions are known from those of other policies
	offered     atomic.Pointer[admission.Offer] // to the one who waited last
	fallback    reverseproxy.UpstreamPool       // of the config, for when discovery fails

	pacers pacers

	watches   bool                        // whether each run hears of its answer
	hedges    bool                        // whether a file may be asked of a second server
	transport *reverseproxy.HTTPTransport // made by this policy for its handler, which had none; or nil
}

// thisLedger is the one table of this process. It outlives configs, because sessions do: a reload
// changes nothing about where documents live.
var thisLedger = sync.OnceValue(newLedger)

// thisNode is this process among the Caddys that share its storage.
var thisNode = sync.OnceValue(func() *node {
	n := newNode(thisLedger().Table, runningStorage, printable.Log(caddy.Log().Named("bokeh")))
	caddy.OnExit(func(context.Context) { n.exit() }) // the last config may have no policy that does
	return n
})

// runningStorage returns the storage of the config that runs, or nil if none does.
func runningStorage() recordStorage {
	ctx := caddy.ActiveContext()
	if ctx.Context == nil {
		return nil
	}
	return ctx.Storage()
}

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
		whenStopped(servers, thisNode().serversStopped)
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

// join lets the node tell of the upstreams, and waits until it knows which of them are marked, for the first visitor must
// not be sent to a draining one; and for the key. Both are looked for at the same time.
func (s *Selection) join(n *node, st recordStorage) {
	s.node = n
	<-n.attach(s, st)
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

// each calls yield with every upstream that s knows, and whether it is in its pool.
func (s *Selection) each(yield func(m *member, inPool bool)) {
	src := s.members.source
	last := src.lastFound()
	for _, dial := range last.dials {
		s.members.get(dial) // another policy may have found it
	}
	s.members.byDial.Range(func(_, value any) bool {
		m := value.(*member)
		// Where the pool depends on the request, m was in it lately, and is forgotten in a while.
		yield(m, m.static || src == nil || last.names[m.Name])
		return true
	})
}

// knowsPool says whether the upstreams are known. Discovered ones are from the first request on, and
// where they depend on requests they never all are.
func (s *Selection) knowsPool() bool {
	return s.static != nil || len(s.members.source.lastFound().dials) > 0
}

// poolVaries says whether the upstreams depend on the request.
func (s *Selection) poolVaries() bool { return s.static == nil && s.members.source == nil }

// isUnloaded says whether the config has been replaced.
func (s *Selection) isUnloaded() bool {
	select {
	case <-s.unloaded:
		return true
	default:
		return false
	}
}

// stampKeys returns the keys of the stamps; none until the storage was looked at for them, for what signs until then may not
// be what will.
func (s *Selection) stampKeys() stamp.Keyring {
	if s.keyed != nil {
		select {
		case <-s.keyed:
		default:
			return nil
		}
	}
	return *s.ring.Load()
}

// settles returns how long a session lives without a socket.
func (s *Selection) settles() time.Duration { return s.lifetime }

// emit raises an event.
func (s *Selection) emit(event string, data map[string]any) {
	if s.raise != nil {
		s.raise(event, data)
	}
}

// placeholder finds one in the JSON of a module's config.
var placeholder = regexp.MustCompile(`\{[^"{}\s]+\}`)

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

// Validate checks s.
func (s *Selection) Validate() error {
	if err := checkSessionIDs(s.SessionIDs); err != nil {
		return err
	}
	if err := checkLifetime("unused_session_lifetime", time.Duration(s.UnusedSessionLifetime)); err != nil {
		return err
	}
	if err := checkLifetime("check_unused_sessions", time.Duration(s.CheckUnusedSessions)); err != nil {
		return err
	}
	if s.MaxSessions < 0 {
		return fmt.Errorf("invalid max_sessions %d: it is at least 1, or 0 for no limit", s.MaxSessions)
	}
	if s.GroupBy != "" {
		if err := checkGroupBy(s.GroupBy); err != nil {
			return err
		}
	}
	if s.Cookie != "" {
		if err := checkCookie(s.Cookie); err != nil {
			return err
		}
	}
	if s.HedgeAfter != 0 {
		if err := checkHedgeAfter(time.Duration(s.HedgeAfter)); err != nil {
			return err
		}
	}
	for _, addr := range s.Drain {
		if err := checkDrain(addr); err != nil {
			return err
		}
	}
	return nil
}

// checkSessionIDs, checkLifetime, checkGroupBy, checkHedgeAfter and checkDrain are here and in the Caddyfile, which can say the line.
func checkSessionIDs(v string) error {
	switch v {
	case sessionIDsUnsigned, sessionIDsSigned, sessionIDsExternalSigned:
		return nil
	}
	return fmt.Errorf("invalid session_ids %q: it is one of %s", v,
		strings.Join([]string{sessionIDsUnsigned, sessionIDsSigned, sessionIDsExternalSigned}, ", "))
}

func checkLifetime(option string, d time.Duration) error {
	switch {
	case d < time.Second:
		return fmt.Errorf("invalid %s %v: it is at least 1s; Bokeh's flag counts milliseconds, here write 15s for 15000", option, d)
	case d > maxLifetime:
		return fmt.Errorf("invalid %s %v: it is at most %v", option, d, maxLifetime)
	}
	return nil
}

// checkGroupBy returns an error unless v is one placeholder. With more text, all sessions that have no value would be
// one group.
func checkGroupBy(v string) error {
	if placeholder.FindString(v) != v {
		return fmt.Errorf("invalid group_by %q: it is one placeholder and nothing else, as in {http.auth.user.id}", v)
	}
	return nil
}

// checkHedgeAfter keeps it above what usual answers take, or every file would be asked for twice.
func checkHedgeAfter(d time.Duration) error {
	if d < shortestHedge {
		return fmt.Errorf("invalid hedge_after %v: it is at least %v, or off", d, shortestHedge)
	}
	return nil
}

func checkDrain(addr string) error {
	parsed, err := caddy.ParseNetworkAddress(addr)
	switch {
	case addr == "":
		return errors.New(`drain "": it names no upstream`)
	case len(addr) > maxAddress:
		return fmt.Errorf("drain: an address of %d bytes names no upstream: it has at most %d", len(addr), maxAddress)
	case hasPlaceholder(addr):
		return fmt.Errorf("drain %s: an upstream whose address depends on the request cannot be named", addr)
	case err != nil:
		return fmt.Errorf("drain %q: %w", addr, err)
	case parsed.PortRangeSize() != 1:
		return fmt.Errorf("drain %q: in JSON an address has exactly one port", addr)
	}
	return nil
}

// Cleanup lets go of the upstreams that s knows. After a Provision that failed it knows none.
func (s *Selection) Cleanup() error {
	if s.node != nil {
		if last := s.node.detach(s); last && caddy.Exiting() {
			s.node.exit() // where there is no server, or none that could be asked
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
