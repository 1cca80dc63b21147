// This file holds a visit: one request in one handler, through all attempts.

package caddybokeh

import (
	"context"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// visitKey is the key of a policy's visit in the context of a request.
type visitKey struct{ s *Selection }

// varVisit is the request's variable that holds the visit of the last handler with a policy like this.
const varVisit = "http.reverse_proxy.bokeh.visit"

// visit is what a policy knows of one request in its handler, through all attempts. The goroutine of the handler reads and writes it; what
// others do (hooks of a connection, a second server that is asked, the end of the request) is done with the lock of progress.
type visit struct {
	bokeh.Request // what it says of its session
	facts

	s      *Selection
	ring   *stamp.Keyring
	repl   *caddy.Replacer // nil where there is none
	ctx    context.Context // of the request, with this visit in it
	hangUp context.CancelFunc
	entry  sessions.Key   // of the session's id
	terms  sessions.Terms // by which the session is counted
	body   body           // of a page or a websocket
	findings
	outgoing
	slotWait
	hedging
	progress
}

// facts are what is read of a request beside its session: once, and what depends on its body when that has come.
type facts struct {
	host, path string
	client     string        // its address, or nothing where Caddy does not know
	origin     string        // of the page that opens a websocket
	cookie     string        // that names the upstream of the browser's newest page, as the browser has it
	secure     bool          // it came by HTTPS
	startedAt  time.Duration // when it had come as far as it is waited for, on the table's clock
	hasBody    bool          // its client has a hand in when it is answered
	odd        bool          // it has a body or a long header
	headerSize int           // of a websocket, in bytes
	longest    int           // line of that header, in bytes

	asked *askedUpstreams // for the content that it asks for, which is the same wherever it is; nil if nobody wants to know
}

// findings are what the attempts and the pools have told of a visit.
type findings struct {
	tried      []*member
	tier       bool // it is a page whose session a Caddy in front of this one has begun
	mayFail    bool // by its own fault, so its errors count for nothing, and it tries no upstream that has failed
	blames     bool // a page of it has failed, and it was counted where
	left       bool // it was counted that the session has moved
	turnedAway bool // the client was told when to come back
}

// progress is how far a visit is. The hooks of its connections and the end of its request come from goroutines of their own.
type progress struct {
	mu      sync.Mutex // guards all below
	attempt *attempt   // the last one, nil before the first
	hedged  bool       // another server was asked too
	nobody  string     // why there was no upstream when last looked for one, or nothing
	cut     bool       // it was ended because the grace period of its upstream is over
	over    bool
}

// visit returns the visit that r is part of. The first Select for a request in a handler begins it; any further one
// means that the attempt before has failed.
func (s *Selection) visit(r *http.Request) *visit {
	if v, ok := r.Context().Value(visitKey{s}).(*visit); ok {
		v.failed()
		return v
	}
	v := s.newVisit(r)
	v.readFacts(r)
	v.takeOver(r)
	// The request's context ends when its handler returns, upgraded or not, and by panic too.
	context.AfterFunc(r.Context(), v.end)
	v.ctx, v.hangUp = context.WithCancel(context.WithValue(r.Context(), visitKey{s}, v))
	if v.Kind == bokeh.Socket {
		s.examine(r, v)
	}
	if v.LacksUpgrade {
		s.lostUpgrade(r)
	}
	*r = *r.WithContext(v.ctx)
	return v
}

// newVisit reads what a request says of its session, and what kind it is.
func (s *Selection) newVisit(r *http.Request) *visit {
	ring := s.ring.Load()
	v := &visit{s: s, ring: ring, Request: bokeh.ReadRequest(r, *ring)}
	v.host, v.path, v.startedAt = r.Host, r.URL.Path, s.table.Now()
	v.header, v.sent = r.Header, r.Header
	v.repl, _ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if v.ID != "" {
		v.entry = s.table.Key(v.ID)
	}
	v.asked, _ = r.Context().Value(askedKey{}).(*askedUpstreams)
	path, port := appPath(r.URL.Path), portOf(r)
	v.terms = sessions.Terms{Lifetime: s.lifetime, App: s.table.App(plainHost(r.Host), port, path), Path: s.table.App("", port, path), Owner: s.owner}
	v.Kind = v.kindAt(r)
	r.Header.Del(bokeh.StampHeader) // a client's own is never passed on
	if v.Unknown {
		s.unknownStamp(v.Kind)
	}
	return v
}

// readFacts reads what else matters of a request, and takes off what its server is not to see.
func (v *visit) readFacts(r *http.Request) {
	v.client, _ = caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	if v.s.Cookie != "" {
		v.readCookie(r)
	}
	if v.asked != nil && v.s.poolVaries() {
		v.asked.vary = true
	}
	// A websocket over HTTP/2 has the unknown length of the CONNECT that it was, and no body.
	v.hasBody = bokeh.BringsBody(r) && (r.ProtoMajor < 2 || !bokeh.IsWebsocket(r.Header))
	v.mayHedge = v.isShared() && v.s.hedges && isFile(r) && !v.isAtApp()
	switch v.Kind {
	case bokeh.Page:
		size, _ := headerSize(r)
		v.odd = size > plainHeader
		v.mayFail = v.GaveID || v.odd
		// Where the first byte says that a page is built, "100 Continue" must be none. Go's server sends that by itself.
		r.Header.Del("Expect")
		// Bokeh runs the app and compares then: with this it could be run for an answer that is no page.
		r.Header.Del("If-None-Match")
	case bokeh.Socket:
		v.origin = r.Header.Get("Origin")
		v.headerSize, v.longest = headerSize(r)
	case bokeh.MaybePage, bokeh.Other:
	}
}

// takeOver sees to it that nothing of another handler of this request is taken for what is this visit's.
func (v *visit) takeOver(r *http.Request) {
	// Where one handler takes over the answer of another, this visit's status is not that one's.
	if before, ok := caddyhttp.GetVar(r.Context(), varVisit).(*visit); ok {
		before.end()
	}
	caddyhttp.SetVar(r.Context(), varVisit, v)
	if v.repl != nil {
		// What an earlier handler of this request left must not be taken for our answer.
		v.repl.Delete(placeholderStatus)
	}
}

// kindAt says what a request means by what has come from its address so far. Where apps are, a GET is for a page, whatever the client
// says that it wants it for; where answers have come and none was a page, it weighs like one only if it turns out to be one.
func (v *visit) kindAt(r *http.Request) bokeh.Kind {
	last := path.Base(r.URL.Path)
	switch {
	case v.Kind == bokeh.Socket || r.Method != http.MethodGet || last == "ws" || bokeh.IsEmbedded(last):
	case v.isAtApp():
		return bokeh.Page
	case v.Kind == bokeh.Page && v.s.table.Addresses.HasOthers(v.terms.App):
		return bokeh.MaybePage
	}
	return v.Kind
}

// isAtApp says whether pages have come from the path of the visit, whatever host was asked: where a server answers for any, clients can
// make hosts up.
func (v *visit) isAtApp() bool { return v.s.table.Addresses.HasPages(v.terms.Path) }

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

// isShared says whether any server may answer the visit: nothing in it names a session, or the server of one, or its content is the same
// wherever it is.
func (v *visit) isShared() bool {
	return v.isForAnyServer() || v.isNoVisit() && v.ID == "" && v.Stamp == "" && v.cookie == ""
}

// isNoVisit says whether the visit asks for neither a page nor a websocket.
func (v *visit) isNoVisit() bool { return v.Kind == bokeh.Other || v.Kind == bokeh.MaybePage }

// isForAnyServer says whether the content that the visit asks for is the same wherever it is.
func (v *visit) isForAnyServer() bool { return v.isNoVisit() && v.asked != nil }

// failed finishes the last attempt when another one is asked for.
func (v *visit) failed() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a := v.attempt; a != nil {
		v.finish(a, v.retried(a))
		a.leave()
	}
}

// end finishes the last attempt when the request is over, or another handler has taken it on.
func (v *visit) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return
	}
	v.over = true
	v.leaveQueue()
	if v.nobody != "" {
		v.s.table.nobody.Add(v.nobody)
	}
	if v.attempt == nil {
		return
	}
	v.finish(v.attempt, v.status(v.attempt))
	v.attempt.leave()
}

// CutOff ends the request and what is counted of it, also where its client does not read the answer.
func (v *visit) CutOff() {
	v.mu.Lock()
	v.cut = true
	v.mu.Unlock()
	v.hangUp()
	v.end()
}

// headerSize returns how many bytes the header of r took, and how many its longest line, about.
func headerSize(r *http.Request) (all, longest int) {
	all = len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			line := len(name) + len(": \r\n") + len(v)
			all, longest = all+line, max(longest, line)
		}
	}
	return all, longest
}
