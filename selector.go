// This file holds Select, the way of one request.

package caddybokeh

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-bokeh/caddy-bokeh/internal/admission"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// decision says why an upstream was chosen.
type decision string

const (
	decisionBound  decision = "bound"  // the session is there
	decisionNew    decision = "new"    // nobody knows of the session, so it begins there
	decisionMoved  decision = "moved"  // the session's own upstream is lost
	decisionShared decision = "shared" // any upstream answers this
)

// decisions are all that there are.
var decisions = []string{string(decisionBound), string(decisionNew), string(decisionMoved), string(decisionShared)}

// Why a session leaves its upstream.
const (
	movedUnreachable = "unreachable" // it refused a connection
	movedUnhealthy   = "unhealthy"   // health checks have called it down for a minute
	movedClosed      = "closed"      // its grace period is over
	movedReassigned  = "reassigned"  // it has left the pool, and another pool has its address by now
)

var moveReasons = []string{movedUnreachable, movedUnhealthy, movedClosed, movedReassigned}

// Why there is no upstream for a request.
const (
	nobodyDraining    = "draining"    // all healthy ones are draining
	nobodyFull        = "full"        // all that take new sessions have max_sessions of them
	nobodyUnavailable = "unavailable" // all are unhealthy, or have their limit of requests
	nobodyThere       = "none"        // there is none
)

var nobodyReasons = []string{nobodyDraining, nobodyFull, nobodyUnavailable, nobodyThere}

// Placeholders that Select sets.
const (
	placeholderDecision = "http.reverse_proxy.bokeh.decision"
	placeholderSession  = "http.reverse_proxy.bokeh.session"
	placeholderWaited   = "http.reverse_proxy.bokeh.waited_ms"
)

// Placeholders that the reverse proxy sets: when it has chosen an upstream, and when that has
// answered.
const (
	placeholderUpstream   = "http.reverse_proxy.upstream.address"
	placeholderStatus     = "http.reverse_proxy.status_code"
	placeholderStatusText = "http.reverse_proxy.status_text"
	placeholderServer     = "http.reverse_proxy.header.Server"
)

// Placeholders that Caddy sets when a handler has ended with an error.
const (
	placeholderErrorID     = "http.error.id"
	placeholderErrorStatus = "http.error.status_code"
)

// refusal is how a Bokeh server refuses a session id whose signature is not right
// (bokeh/server/core.py, create_session), where nothing on the way has dropped the text.
const refusal = "403 Invalid token or session ID"

// varRun is the request's variable that holds the run of the last handler with a policy like this.
const varRun = "http.reverse_proxy.bokeh.run"

// Select returns the upstream for r, or nil if there is none.
func (s *Selection) Select(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	run := s.run(r)
	run.failed()
	run.receive(r)
	cs := s.candidates(pool, run)
	s.discovered(pool, cs)
	for ; ; cs = s.candidates(pool, run) {
		p := run.choose(cs, run.home(cs))
		run.depart(cs, p)
		if p.candidate == nil && run.waitForSlot(r.Context(), cs) {
			continue
		}
		if p.candidate == nil {
			run.foundNobody(r.Context(), cs, w)
			return nil
		}
		if p.probes && !p.Breaker.BeginProbe(cs.now) {
			continue // another visit tries it already, so it weighs more now than it did
		}
		run.sayWhenToComeBack(w, false)
		run.try(r, cs, p)
		// Whoever drains an upstream marks it and then counts; we count and then look for the mark.
		// So one of us sees the other. It is the same with what another visit counts.
		if run.isOver() {
			run.failed()
			run.tried = run.tried[:len(run.tried)-1]
			continue // with another look, or it would look free where the upstream was forgotten meanwhile
		}
		if p.begins() && p.Drain.On() || p.Drain.IsClosed() {
			run.failed()
			continue
		}
		run.served()
		run.tell(p.member, p.decision)
		run.handedOn = true
		return p.upstream
	}
}

// begins says whether a session begins with the pick.
func (p pick) begins() bool { return p.decision == decisionNew || p.decision == decisionMoved }

// foundNobody takes note that there is no upstream at present, and why. It counts if no later attempt
// finds one, and somebody is still there to be turned away.
func (rn *run) foundNobody(ctx context.Context, cs *candidates, w http.ResponseWriter) {
	why := rn.s.whyNobody(cs, rn)
	rn.sayWhenToComeBack(w, why == nobodyDraining || why == nobodyFull)
	rn.sayWaited()
	rn.mu.Lock()
	defer rn.mu.Unlock()
	if ctx.Err() == nil {
		rn.nobody = why
	}
}

// whyNobody returns why there is no upstream, and logs what somebody should do about.
func (s *Selection) whyNobody(cs *candidates, rn *run) string {
	switch {
	case rn.isFull(cs):
		s.tellFull(len(cs.all))
		return nobodyFull
	case cs.allDrain():
		if s.pacers.allDrain.lets(cs.now) {
			s.logger.Error("every healthy upstream is draining; new visitors get 503 (add an upstream, or take a drain back: caddy bokeh undrain, or the drain line of the config)",
				zap.Int("upstreams", len(cs.all)))
		}
		return nobodyDraining
	case len(cs.all) > 0:
		return nobodyUnavailable
	}
	return nobodyThere
}

// retryAfter is how long a visitor is told to wait, in seconds, when every upstream is draining or full.
const retryAfter = "5"

// sayWhenToComeBack sets the header that tells a visitor to come back, or takes it off where a
// later attempt found an upstream. There is nobody to tell where the policy is the fallback of one
// that hands no writer on.
func (rn *run) sayWhenToComeBack(w http.ResponseWriter, turnedAway bool) {
	switch {
	case w == nil:
	case turnedAway:
		w.Header().Set("Retry-After", retryAfter)
		rn.turnedAway = true
	case rn.turnedAway:
		w.Header().Del("Retry-After")
		rn.turnedAway = false
	}
}

// runKey is the key of a policy's run in the context of a request.
type runKey struct{ s *Selection }

// run is what a policy knows of one request in its handler, through all attempts.
type run struct {
	bokeh.Request
	s          *Selection
	entry      sessions.Key // of the id, in the table
	ring       *stamp.Keyring
	repl       *caddy.Replacer
	ctx        context.Context // of the request, with this run in it
	host, path string
	client     string // its address, or nothing where Caddy does not know
	terms      sessions.Terms
	cookie     string                    // that names the upstream of the browser's newest page, as the browser has it
	secure     bool                      // it came by HTTPS
	begun      time.Duration             // on the table's clock
	pool       reverseproxy.UpstreamPool // that it was last chosen from, where it may be hedged
	mayHedge   bool
	hedged     bool               // another server was asked too; guarded by mu
	hasBody    bool               // so its client has a hand in when it is answered
	body       body               // of a page or a websocket
	odd        bool               // it has a body or a long header
	tier       bool               // it is a page whose session a Caddy in front of this one has begun
	mayFail    bool               // by its own fault, so its errors count for nothing, and it tries no upstream that has failed
	hangUp     context.CancelFunc // ends the request
	cut        bool               // it was ended because the grace period of its upstream is over; guarded by mu
	origin     string             // of the page that opens it
	headerSize int                // of a websocket, in bytes
	longest    int                // line of that header, in bytes
	header     http.Header        // the map that Caddy copies from for each attempt where there are header operations
	sent       http.Header        // the map on the request after our last change
	tried      []*member
	waiter     *admission.Waiter // for a slot, nil as long as it has waited for none
	blames     bool              // a page of this run has failed, and it was counted where
	lastChance bool              // its patience is over, so it takes a slot where it may fail
	queuedAt   time.Duration     // since when it waits for a slot, on the table's clock
	waited     time.Duration     // until it had one
	handedOn   bool              // the proxy was given an upstream, so it may still be writing what it sends
	left       bool              // it was counted that the session has moved
	turnedAway bool              // w has been told when to come back
	shown      string            // the session's id as far as it is known, for the hash that may be shown

	mu      sync.Mutex // guards all below
	attempt *attempt   // the last one, nil before the first
	nobody  string     // why there was no upstream when last looked for one, or nothing
	over    bool
}

// attempt is one upstream tried by a run. The hooks of its connection may be called long after
// the next attempt has begun.
type attempt struct {
	m         *member
	begun     time.Duration // on the table's clock
	ahead     int64         // pages that m had to build before this one
	address   string        // of m, as the reverse proxy has it
	question  sessions.Question
	load      sessions.Load
	count     func() sessions.Load // when its body has come to its end; nil if that was done, or is not to be
	stamp     string               // that a GET was sent with, if it was
	asID      bool                 // it was sent as the session's id
	noPage    bool                 // the answer to a page request is none
	refused   bool                 // the server closes the websocket that it has just opened
	connected bool                 // the request went out on a connection
	noTLS     bool                 // a TLS handshake has failed
	host      string               // that was looked up last
	addrs     int                  // that it has, 0 if it needed no look-up
	failures  int                  // of dials
	dialErr   error                // of the last dial that failed, while none has succeeded
	answered  bool
	answer    int           // status of the answer, 0 if it has none or came by a transport that is not watched
	took      time.Duration // m, to build the page
	others    []candidate   // where none was well
	peers     []candidate   // m, and those of its pool
	settled   bool
	probe     bool                 // whether it tries if its upstream is well again
	open      sessions.OpenRequest // until it is over
}

// run returns the run that r is part of; the first Select for a request in a handler begins it.
func (s *Selection) run(r *http.Request) *run {
	if rn, ok := r.Context().Value(runKey{s}).(*run); ok {
		return rn
	}
	ring := s.ring.Load()
	rn := &run{s: s, ring: ring, Request: bokeh.ReadRequest(r, *ring), host: r.Host, path: r.URL.Path, header: r.Header, sent: r.Header, begun: s.table.Now()}
	if rn.ID != "" {
		rn.entry = s.table.Key(rn.ID)
	}
	path, port := appPath(r.URL.Path), portOf(r)
	rn.terms = sessions.Terms{Lifetime: s.lifetime, App: s.table.App(plainHost(r.Host), port, path), Path: s.table.App("", port, path), Owner: s.owner}
	rn.Kind = rn.kindAt(r)
	rn.client, _ = caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	rn.readCookie(r)
	r.Header.Del(bokeh.StampHeader) // a client's own is never passed on
	if rn.Unknown {
		s.unknownStamp(rn.Kind)
	}
	if asked := askedOf(r.Context()); asked != nil && s.poolVaries() {
		asked.vary = true
	}
	// A websocket over HTTP/2 has the unknown length of the CONNECT that it was, and no body.
	rn.hasBody = bokeh.BringsBody(r) && (r.ProtoMajor < 2 || !bokeh.IsWebsocket(r.Header))
	rn.mayHedge = s.hedges && rn.isShared(r.Context()) && isFile(r) && !rn.isAtApp()
	if rn.Kind == bokeh.Page {
		size, _ := headerSize(r)
		rn.odd = size > plainHeader
		rn.mayFail = rn.GaveID || rn.odd
		// Where the first byte says that a page is built, "100 Continue" must be none. Go's server sends that by itself.
		r.Header.Del("Expect")
		// Bokeh runs the app and compares then: with this it could be run for an answer that is no page.
		r.Header.Del("If-None-Match")
	}
	rn.repl, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	// Where one handler takes over the answer of another, this run's status is not that one's.
	if before, ok := caddyhttp.GetVar(r.Context(), varRun).(*run); ok {
		before.end()
	}
	caddyhttp.SetVar(r.Context(), varRun, rn)
	if rn.repl != nil {
		// What an earlier handler of this request left must not be taken for our answer.
		rn.repl.Delete(placeholderStatus)
	}
	// The request's context ends when its handler returns, upgraded or not, and by panic too.
	context.AfterFunc(r.Context(), rn.end)
	rn.ctx, rn.hangUp = context.WithCancel(context.WithValue(r.Context(), runKey{s}, rn))
	if rn.Kind == bokeh.Socket {
		rn.origin = r.Header.Get("Origin")
		s.examine(r, rn)
	}
	if rn.LacksUpgrade {
		s.lostUpgrade(r)
	}
	*r = *r.WithContext(rn.ctx)
	return rn
}

// kindAt says what a request means by what has come from its address so far. Where apps are, a GET is for a page, whatever the client
// says that it wants it for; where answers have come and none was a page, it weighs like one only if it turns out to be one.
func (rn *run) kindAt(r *http.Request) bokeh.Kind {
	last := path.Base(r.URL.Path)
	switch {
	case rn.Kind == bokeh.Socket || r.Method != http.MethodGet || last == "ws" || bokeh.IsEmbedded(last):
	case rn.isAtApp():
		return bokeh.Page
	case rn.Kind == bokeh.Page && rn.s.table.Addresses.HasOthers(rn.terms.App):
		return bokeh.MaybePage
	}
	return rn.Kind
}

// isAtApp says whether pages have come from the path of the run, whatever host was asked: where a server answers for any, clients can
// make hosts up.
func (rn *run) isAtApp() bool { return rn.s.table.Addresses.HasPages(rn.terms.Path) }

// plainHost returns a host in the one spelling that is known by: Caddy takes every other one for the same.
func plainHost(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// portOf returns the port at which r was asked, or 0 for a unix socket.
func portOf(r *http.Request) int {
	switch addr := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.TCPAddr:
		return addr.Port
	case *net.UDPAddr: // HTTP/3
		return addr.Port
	}
	return 0
}

// appPath returns the path of the app that a page or a socket belongs to.
func appPath(path string) string {
	for _, end := range []string{"/ws", "/autoload.js", "/embed.json", "/"} {
		if app, ok := strings.CutSuffix(path, end); ok {
			return app
		}
	}
	return path
}

// isShared says whether any server may answer the run: nothing in it names a session, or the server of one, or its content is the same
// wherever it is.
func (rn *run) isShared(ctx context.Context) bool {
	return (rn.Kind == bokeh.Other || rn.Kind == bokeh.MaybePage) && (askedOf(ctx) != nil || rn.ID == "" && rn.Stamp == "" && rn.cookie == "")
}

// home returns the upstream to which the run's session is bound, or nil: the one where it is known to be, else the one its
// stamp names. What the pool tells of the request it takes note of.
func (rn *run) home(cs *candidates) *candidate {
	if rn.ID == "" && rn.Stamp == "" || rn.isForAnyServer() {
		return nil
	}
	home := rn.homeIn(cs)
	if home == nil && rn.isOfAnotherTier(cs) {
		rn.tier, rn.mayFail = true, rn.odd
	}
	return home
}

// isForAnyServer says whether the content that the run asks for is the same wherever it is.
func (rn *run) isForAnyServer() bool { return rn.isNoVisit() && askedOf(rn.ctx) != nil }

// isNoVisit says whether the run asks for neither a page nor a websocket.
func (rn *run) isNoVisit() bool { return rn.Kind == bokeh.Other || rn.Kind == bokeh.MaybePage }

// choose picks the upstream for this attempt, by where the run's session is bound.
func (rn *run) choose(cs *candidates, home *candidate) pick {
	switch {
	case rn.isNoVisit():
		return rn.chooseShared(cs, home)
	case rn.ID == "" && rn.Stamp == "":
		if c := rn.ofItsBrowser(cs); c != nil {
			return pick{candidate: c, decision: decisionNew}
		}
		return rn.fresh(cs)
	case home != nil && !cs.isLost(home):
		return pick{candidate: home, decision: decisionBound}
	case home == nil && rn.isOfAnotherTier(cs):
		return rn.fresh(cs)
	}
	p := pick{candidate: rn.elsewhere(cs, home), decision: decisionBound}
	switch {
	case home != nil && p.candidate == home:
	case home != nil || rn.Stamp != "":
		p.decision, p.from = decisionMoved, home
	case rn.Kind == bokeh.Page:
		p.decision = decisionNew
	}
	return p
}

// chooseShared picks the upstream that has what a session has made, if the request names one that is known. It binds nothing, and no
// session moves for it. Anything else is shared.
func (rn *run) chooseShared(cs *candidates, home *candidate) pick {
	if rn.isForAnyServer() {
		return rn.shared(cs)
	}
	if home != nil && !cs.isLost(home) {
		return pick{candidate: home, decision: decisionBound}
	}
	if c := rn.ofItsBrowser(cs); c != nil {
		return pick{candidate: c, decision: decisionShared}
	}
	return rn.shared(cs)
}

// isOfAnotherTier says whether a page has its id from a Caddy in front of this one, which has begun a session: its stamp
// names nobody here, whether we have the key or not. To us that is a new session like any other.
func (rn *run) isOfAnotherTier(cs *candidates) bool {
	return rn.Kind == bokeh.Page && stamp.HasForm(rn.ID) && (rn.Stamp == "" || cs.named(rn.Key, rn.Tag) == nil)
}

// homeIn finds the home of the run's session.
func (rn *run) homeIn(cs *candidates) *candidate {
	var room [4]*candidate
	var roomOfThose [4]sessions.Sighting
	places, those := room[:0], roomOfThose[:0]
	rn.s.table.Find(rn.entry, func(s sessions.Sighting) {
		if rn.Kind == bokeh.Page && s.IsGuess {
			return // whoever asks once more need not be there
		}
		those = append(those, s)
	})
	for _, s := range those {
		c := cs.at(s.At)
		if c == nil && s.App == rn.terms.App && rn.s.inherits(s.Owner.(*owner), s.At) {
			c = cs.left(s)
		}
		if c != nil {
			places = append(places, c)
		}
	}
	alive := slices.IndexFunc(places, func(c *candidate) bool { return !cs.isLost(c) })
	switch {
	case len(places) == 0 && rn.Stamp != "":
		if rn.Stamp == rn.ID {
			rn.ReadPackedStamp(*rn.ring)
		}
		return rn.named(cs)
	case len(places) == 0:
		return nil
	case alive < 0:
		return places[0]
	case len(places) > 1 && rn.Stamp == "":
		// An id that others made may be used on another site with some of these upstreams. Ours is
		// the one that its order names.
		if c := cs.first(rn.ID, func(c *candidate) bool { return slices.Contains(places, c) && !cs.isLost(c) }); c != nil {
			return c
		}
	}
	return places[alive]
}

// named returns the upstream that the stamp names, or nil. Where that drains or is gone,
// only a socket may still go there, for its session may live from before a restart or through
// another node. Another request may begin a session, and so would the socket of one that has ended.
func (rn *run) named(cs *candidates) *candidate {
	c := cs.named(rn.Key, rn.Tag)
	for c == nil && rn.TryAll(rn.Others, *rn.ring) {
		c = cs.named(rn.Key, rn.Tag)
	}
	if c == nil || !c.isLeaving() {
		return c
	}
	if rn.Kind != bokeh.Socket || c.Drain.HasEnded(cs.now, rn.entry, rn.s.table.Key(rn.Stamp)) {
		return nil
	}
	return c
}

// depart does what a pick says of the upstreams before, whether or not it has found another one: a session that leaves one is over there,
// and where all have been tried the run starts over.
func (rn *run) depart(cs *candidates, p pick) {
	if p.startsOver {
		rn.tried = rn.tried[:0]
	}
	if p.from == nil {
		return
	}
	t, u := rn.s.table, p.from.Upstream
	if p.candidate != nil && !rn.left {
		rn.left = true
		reason := cs.whyLost(p.from)
		u.History.Moved.Add(reason)
		rn.s.node.happened(eventMoved, map[string]any{
			"from": u.Name, "to": p.Name, "reason": reason, "session": rn.ring.Redact(rn.ID).String(),
		})
	}
	t.Move(rn.entry, u)
	u.Drain.Remember(rn.entry)
	if rn.Stamp != "" && rn.Stamp != rn.ID {
		t.Move(t.Key(rn.Stamp), u)
	}
}

// elsewhere returns an upstream for a session that others named or whose upstream
// is lost, such that all nodes find the same.
func (rn *run) elsewhere(cs *candidates, home *candidate) *candidate {
	may := func(c *candidate) bool {
		// With a page it is most likely the first that we hear of the session.
		return !c.Drain.On() && (rn.Kind != bokeh.Page || cs.isHealthy(c))
	}
	if c := cs.first(rn.ID, func(c *candidate) bool { return may(c) && !cs.isLost(c) }); c != nil {
		return c
	}
	// No other is any better, and one that has just refused a connection may be back. But a
	// process that comes back has lost its sessions, so to one that takes no other this is a new one.
	if home != nil && !home.reassigned && !home.Drain.IsClosed() && (!home.isLeaving() || !home.failing(cs.now)) {
		return home
	}
	return cs.first(rn.ID, may)
}

// try begins an attempt at the upstream that was picked: it counts it, stamps a page, and listens.
func (rn *run) try(r *http.Request, cs *candidates, p pick) {
	m := p.member
	rn.tried = append(rn.tried, m)
	if asked := askedOf(rn.ctx); asked != nil && p.decision == decisionShared {
		asked.members = append(asked.members, m)
		asked.left = cs.any(rn.unasked(cs))
	}
	a := &attempt{m: m, begun: cs.now, probe: p.probes, peers: cs.all}
	if p.unwell {
		a.others = cs.all
	}
	if rn.repl != nil && rn.attempt != nil {
		rn.repl.Delete(placeholderStatus) // is the last attempt's
	}
	t, k := rn.s.table, rn.entry
	rn.shown = rn.ID
	switch rn.Kind {
	case bokeh.Page:
		a.stamp = rn.newStamp(m)
		a.asID = rn.s.stampIsID(rn, m)
		rn.stampRequest(r, a.stamp, a.asID)
		if rn.ID == "" {
			k, rn.shown = t.Key(a.stamp), a.stamp
		}
		rn.begin(a, func() sessions.Load { return t.BeginPage(k, m.Upstream, rn.terms) })
	case bokeh.Socket:
		page := k
		if rn.Stamp != "" && rn.Stamp != rn.ID {
			page = t.Key(rn.Stamp)
		}
		rn.begin(a, func() sessions.Load { return t.BeginSocket(k, page, m.Upstream, rn.terms) })
		rn.awaitAnswer(a)
	case bokeh.MaybePage:
		// Beside the id it cannot be refused. To a draining upstream a session must not come back.
		if !m.Drain.On() {
			a.stamp = rn.newStamp(m)
		}
		rn.stampRequest(r, a.stamp, false)
		rn.begin(a, nil)
	case bokeh.Other:
		rn.begin(a, nil)
	}
	if rn.mayHedge {
		rn.pool = cs.from
		rn.mayHedge = !slices.ContainsFunc(rn.pool, func(u *reverseproxy.Upstream) bool { return hasPlaceholder(u.Dial) })
	}
	*r = *r.WithContext(httptrace.WithClientTrace(rn.ctx, rn.trace(a)))
}

// newStamp makes a stamp that names m.
func (rn *run) newStamp(m *member) string { return (*rn.ring)[0].Stamp(m.keyedBy(rn.ring).tags[0]) }

// begin makes a the run's attempt and counts its load, unless the client has gone already.
func (rn *run) begin(a *attempt, count func() sessions.Load) {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	rn.attempt = a
	rn.nobody = ""
	a.settled = rn.over
	if rn.over {
		if a.probe {
			a.m.Breaker.EndProbe(a.begun)
		}
		return
	}
	a.open.Of = rn
	a.m.Drain.Requests.Add(&a.open)
	if !rn.hasBody {
		a.m.Unanswered.Ask(&a.question, a.begun)
	}
	switch {
	case count == nil:
	case rn.body.whole:
		a.weigh(count)
	default:
		a.count = count
	}
}

// weigh counts the load of an attempt.
func (a *attempt) weigh(count func() sessions.Load) {
	a.ahead, a.count = a.m.Backlog(), nil
	a.load = count()
	a.m.LeftPages.AskedAgain(a.load.Key())
}

// leave takes note that the upstream is not asked any more.
func (a *attempt) leave() { a.m.Drain.Requests.Remove(&a.open) }

// trace listens to the connection that an attempt takes or makes. That is the only way to hear
// of a failed dial where nothing is retried.
func (rn *run) trace(a *attempt) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		ConnectDone:          func(_, _ string, err error) { rn.dialed(a, err) },
		DNSStart:             func(info httptrace.DNSStartInfo) { rn.looksUp(a, info.Host) },
		DNSDone:              func(info httptrace.DNSDoneInfo) { rn.lookedUp(a, info) },
		TLSHandshakeDone:     func(_ tls.ConnectionState, err error) { rn.shookHands(a, err) },
		GotConn:              func(httptrace.GotConnInfo) { rn.connected(a) },
		GotFirstResponseByte: func() { rn.firstByteCame(a) },
	}
}

// looksUp takes note of the name that is looked up: that of the upstream, or of a proxy on the way to it.
func (rn *run) looksUp(a *attempt, host string) {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	a.host = host
}

// lookedUp takes note of the addresses of the upstream's name.
func (rn *run) lookedUp(a *attempt, info httptrace.DNSDoneInfo) {
	if info.Err != nil {
		rn.dialed(a, info.Err)
		return
	}
	rn.mu.Lock()
	a.addrs = len(info.Addrs)
	host := a.host
	rn.mu.Unlock()
	if isHostOf(a.m.Name, host) {
		rn.s.lookedUp(a.m, info.Addrs)
	}
}

// dialed takes note of a connection made, or not made. A name may have several addresses, of
// which one that takes the connection is enough. When all have failed the next request must know
// at once; where not all are tried, it is known when the attempt is settled.
func (rn *run) dialed(a *attempt, err error) {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	a.dialErr = err
	defer rn.tellBreaker(a.m, err)
	if err == nil {
		a.m.Dialed(a.begun, rn.s.table.Now(), rn.s.pause, nil)
		return
	}
	if a.failures++; a.failures >= a.addrs && !a.settled {
		a.m.Dialed(a.begun, rn.s.table.Now(), rn.s.pause, err)
	}
}

// shookHands takes note of the end of a TLS handshake.
func (rn *run) shookHands(a *attempt, err error) {
	a.m.shookHands(rn.s.table.Now(), err)
	rn.mu.Lock()
	defer rn.mu.Unlock()
	a.noTLS = err != nil
}

// connected takes note of a connection that the request goes out on.
func (rn *run) connected(a *attempt) {
	rn.dialed(a, nil)
	rn.mu.Lock()
	defer rn.mu.Unlock()
	a.connected = true
	rn.leaveQueue()
	if rn.repl != nil && a.address == "" {
		a.address, _ = rn.repl.GetString(placeholderUpstream)
	}
}

// firstByteCame takes note of the first byte of an answer. Of a page it says nothing where the answer itself is seen: it may be
// that of an informational one, as 103 Early Hints, which is no page yet.
func (rn *run) firstByteCame(a *attempt) {
	if rn.Kind == bokeh.Page && rn.s.watches {
		return
	}
	rn.mu.Lock()
	defer rn.mu.Unlock()
	rn.isAnswered(a)
}

// isAnswered takes note of an answer to an attempt: a page is built. rn.mu is locked.
func (rn *run) isAnswered(a *attempt) {
	if a.answered || a.settled {
		return
	}
	a.answered = true
	now := rn.s.table.Now()
	a.m.Unanswered.Answered(&a.question, now)
	a.m.LeftPages.Outlived(a.begun)
	if a.count != nil {
		a.weigh(a.count)
	}
	switch rn.Kind {
	case bokeh.Page:
		a.load.PageBuilt()
		a.took = a.m.ServiceTime(a.begun, now)
		if a.probe { // what comes after this may take long
			a.probe = false
			a.m.Breaker.EndProbe(a.begun)
		}
	case bokeh.Socket:
		a.m.Drain.Requests.Opened(&a.open)
		if !rn.s.watches { // or the answer says whether it is open
			a.load.SocketOpened()
		}
	case bokeh.MaybePage, bokeh.Other: // weigh nothing
	}
}

// hasAnswer takes note of the answer to the last attempt.
func (rn *run) hasAnswer(res *http.Response) {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	rn.isAnswered(rn.attempt)
	rn.attempt.answer = res.StatusCode
	rn.learn(rn.attempt, res)
	rn.listen(rn.attempt, res)
	rn.setCookie(rn.attempt, res)
}

// failed settles the last attempt when another one is asked for.
func (rn *run) failed() {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	if a := rn.attempt; a != nil {
		rn.settle(a, rn.retried(a))
		a.leave()
	}
}

// retried returns the status of an attempt that another one follows: of the answer, if it is that which is retried
// (lb_retry_match), 0 if that was no error, else of the proxy's own error. rn.mu is locked.
func (rn *run) retried(a *attempt) int {
	if a.answered {
		if status := rn.status(a); status >= http.StatusBadRequest {
			return status
		} else if status != 0 {
			return 0
		}
	}
	return http.StatusBadGateway
}

// end settles the last attempt when the request is over, or another handler has taken it on.
func (rn *run) end() {
	rn.mu.Lock()
	defer rn.mu.Unlock()
	if rn.over {
		return
	}
	rn.over = true
	rn.leaveQueue()
	if rn.nobody != "" {
		rn.s.table.nobody.Add(rn.nobody)
	}
	if rn.attempt == nil {
		return
	}
	rn.settle(rn.attempt, rn.status(rn.attempt))
	rn.attempt.leave()
}

// CutOff ends the request and what is counted of it, also where its client does not read the answer.
func (rn *run) CutOff() {
	rn.mu.Lock()
	rn.cut = true
	rn.mu.Unlock()
	rn.hangUp()
	rn.end()
}

// status returns the status of the answer to an attempt, or that of the proxy's own error, or 0 if none
// is known: the client has gone. Where a response route asked another upstream, what the proxy last set
// is that one's. rn.mu is locked.
func (rn *run) status(a *attempt) int {
	if rn.repl == nil {
		return 0
	}
	if a.answer != 0 {
		return a.answer
	}
	if !a.answered {
		return rn.proxyError()
	}
	if address, _ := rn.repl.GetString(placeholderUpstream); address != a.address {
		return 0
	}
	v, _ := rn.repl.Get(placeholderStatus)
	status, _ := v.(int)
	return status
}

// proxyError returns the status of the error that this handler has ended with, or 0.
func (rn *run) proxyError() int {
	// Where errors are handled, that of the handler before is in the context.
	of, _ := rn.ctx.Value(caddyhttp.ErrorCtxKey).(error)
	before, _ := errors.AsType[caddyhttp.HandlerError](of)
	if id, _ := rn.repl.GetString(placeholderErrorID); id == before.ID {
		return 0
	}
	v, _ := rn.repl.Get(placeholderErrorStatus)
	status, _ := v.(int)
	return status
}

// settle takes the load of an attempt off its upstream, or turns it into that of a session which
// waits for its socket; status is that of the answer, of an error, or 0 if neither came. rn.mu is locked.
func (rn *run) settle(a *attempt, status int) {
	if a.settled {
		return
	}
	a.settled = true
	if a.probe {
		defer a.m.Breaker.EndProbe(a.begun)
	}
	defer rn.tellBreaker(a.m, a.dialErr)
	now, hasPage := rn.s.table.Now(), status == http.StatusOK && !a.noPage
	a.m.Unanswered.GivenUp(&a.question, now)
	if a.dialErr != nil && a.failures < a.addrs && !a.answered {
		a.m.Dialed(a.begun, now, rn.s.pause, a.dialErr)
	}
	switch rn.Kind {
	case bokeh.Page:
		rn.pageIsOver(a, status, hasPage, now)
		switch {
		case hasPage:
			rn.s.table.PageBuilt(a.m.Upstream, rn.terms, rn.lesson(a, now))
			a.m.answeredAs(rn.repl)
			if a.asID {
				rn.s.took(a.m, (*rn.ring)[0])
			}
		case status == http.StatusForbidden && a.asID:
			text, _ := rn.repl.GetString(placeholderStatusText)
			rn.s.refused(a.m, rn, text == refusal)
		case !a.connected || !a.load.IsCounted():
		case status >= http.StatusInternalServerError:
			rn.weighFailed(a, now)
		}
		if hasPage {
			a.m.Breaker.Success()
			a.m.FailedPages.Outlived(a.begun)
			rn.clear(a, now)
			for _, m := range a.others {
				// It may be over for them, too, and whoever tries first is not to have all that follow.
				m.Breaker.ProbeNow(now)
				m.FailedPages.Outlived(now)
			}
		}
	case bokeh.Socket:
		a.load.SocketEnded(status == http.StatusSwitchingProtocols && !a.refused)
		switch status {
		case http.StatusForbidden:
			rn.s.refusedSocket(a.m, rn)
		case http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge:
			rn.s.headerTooLong(a.m, rn, status)
		case http.StatusBadGateway:
			if a.connected && !a.answered { // it hung up
				rn.s.headerTooLong(a.m, rn, status)
			}
		}
	case bokeh.MaybePage, bokeh.Other:
		if a.load.IsCounted() {
			a.load.PageEnded(true, true)
			rn.s.table.PageBuilt(a.m.Upstream, rn.terms, 0)
		}
	}
}

// pageIsOver takes a page off its upstream, or turns it into a session that waits for its socket.
func (rn *run) pageIsOver(a *attempt, status int, hasPage bool, now time.Duration) {
	switch {
	case !a.load.IsCounted():
	case a.connected && !a.answered && status != http.StatusBadGateway:
		work := rn.s.table.LeftWork(a.m.Upstream, rn.terms.App, a.begun, a.ahead, now)
		if a.load.PageLeft(work) && status < http.StatusInternalServerError {
			a.m.LeftPages.Add(a.load.Key(), now, work)
		}
	default:
		// A request for a script that embeds an app and does not say where makes a session all the same (bokeh/server/views/autoload_js_handler.py).
		a.load.PageEnded(a.answered, hasPage || status == http.StatusBadRequest && bokeh.IsEmbedded(path.Base(rn.path)))
	}
}

// stampRequest puts the stamp on a GET, as the session's id or beside it, or takes off that of the last attempt. Where there
// are header operations Caddy copies the headers of every attempt from the map that r had at the
// first; where there are none it sends what r has.
func (rn *run) stampRequest(r *http.Request, stamp string, asID bool) {
	h := rn.header
	if rn.handedOn && sameMap(r.Header, rn.sent) {
		// The last attempt may still be writing this map to its connection.
		h = maps.Clone(rn.sent)
		r.Header, rn.sent = h, h
	}
	if stamp == "" {
		delete(h, bokeh.StampHeader)
		return
	}
	if asID {
		h[bokeh.SessionIDHeader] = []string{stamp}
		delete(h, bokeh.StampHeader)
		return
	}
	if !rn.GaveID {
		delete(h, bokeh.SessionIDHeader)
	}
	h[bokeh.StampHeader] = []string{stamp}
}

func sameMap(a, b http.Header) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// stampIsID says whether the stamp goes to m as the session's id.
func (s *Selection) stampIsID(rn *run, m *member) bool {
	if !s.givesIDs || rn.GaveID {
		return false
	}
	takes, known := m.TakesIDs((*rn.ring)[0].Fingerprint())
	return takes || !known
}

// took takes note that a server takes session ids from us.
func (s *Selection) took(m *member, k *stamp.Key) {
	if _, known := m.TakesIDs(k.Fingerprint()); !known {
		m.SetTakesIDs(k.Fingerprint(), true)
	}
}

// refused takes note that a server answered 403 to a page with a session id of ours. Unless it
// says what for, that may be the app's own verdict on the visitor; then it counts only while the
// server has never taken an id.
func (s *Selection) refused(m *member, rn *run, forThat bool) {
	k := (*rn.ring)[0]
	if takes, known := m.TakesIDs(k.Fingerprint()); known && (!takes || !forThat) {
		return
	}
	m.SetTakesIDs(k.Fingerprint(), false)
	mend := "if the server runs with --session-ids signed, set session_ids signed, and secret_key to its BOKEH_SECRET_KEY; if with external-signed, set that, and no key"
	if s.SessionIDs == sessionIDsSigned {
		mend = "compare the first secret_key with the server's BOKEH_SECRET_KEY: it seems to be another one"
	}
	s.logger.Error("upstream refused a page request with a session id of ours; stamping its pages in a header of our own from now on ("+mend+")",
		zap.String("site", rn.host),
		zap.String("upstream", m.Name),
		zap.String("header", bokeh.StampHeader))
}

// served takes note that the run has an upstream. Who only tries one that has failed stays in the line
// until it takes the connection.
func (rn *run) served() {
	if rn.waiter != nil && rn.waited == 0 {
		rn.waited = rn.s.table.Now() - rn.queuedAt
	}
	if !rn.attempt.probe {
		rn.leaveQueue()
	}
}

// sayWaited sets the placeholder of how long the visit has waited for a slot, in milliseconds.
func (rn *run) sayWaited() {
	if rn.repl != nil && rn.waiter != nil {
		rn.repl.Set(placeholderWaited, cmp.Or(rn.waited, rn.s.table.Now()-rn.queuedAt).Seconds()*1e3)
	}
}

// tell sets the placeholders and writes the log.
func (rn *run) tell(m *member, d decision) {
	m.History.Selected.Add(string(d))
	rn.sayWaited()
	session := rn.ring.Redact(rn.shown)
	if rn.repl != nil {
		rn.repl.Set(placeholderDecision, string(d))
		rn.repl.Set(placeholderSession, session)
	}
	if c := rn.s.logger.Check(zapcore.DebugLevel, "selected upstream"); c != nil {
		c.Write(zap.String("upstream", m.Name), zap.String("decision", string(d)), zap.Stringer("session", session))
	}
}
