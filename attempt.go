// This file holds an attempt: one upstream tried by a visit, and what its connection tells.

package caddybokeh

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptrace"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// attempt is one upstream tried by a visit. The hooks of its connection may be called long after
// the next attempt has begun. From address on all may change, and the visit's mu guards it.
type attempt struct {
	m         *member
	startedAt time.Duration // on the table's clock
	peers     []candidate   // m, and those of its pool
	unwell    bool          // none of peers was well
	stamp     string        // that a GET was sent with, if it was
	asID      bool          // it was sent as the session's id

	address  string // of m, as the reverse proxy has it
	probes   bool   // it tries whether its upstream is well again
	finished bool
	work
	connection
	answer
}

// work is what an attempt asks of its upstream, until it is over.
type work struct {
	ahead    int64 // pages that the upstream had to build before this one
	question sessions.Question
	load     sessions.Load
	count    func() sessions.Load // when its body has come to its end; nil if that was done, or is not to be
	open     sessions.OpenRequest
	talk     *sessions.Talk // on the websocket that it has become; nil if it has become none
}

// connection is how an attempt has reached its upstream.
type connection struct {
	connected bool   // the request went out on a connection
	noTLS     bool   // a TLS handshake has failed
	hostname  string // that was looked up last
	addrs     int    // that it has, 0 if it needed no look-up
	failures  int    // of dials
	dialErr   error  // of the last dial that failed, while none has succeeded
}

// answer is what came of an attempt.
type answer struct {
	answered bool          // a first byte has come
	status   int           // of the answer, 0 if it has none or came by a transport that is not watched
	noPage   bool          // the answer to a page request is none
	refused  bool          // the server closes the websocket that it has just opened
	took     time.Duration // the upstream, to build the page
}

// try begins an attempt at the upstream that was picked: it counts it, stamps a page, and listens.
func (v *visit) try(r *http.Request, cs *candidates, p pick) {
	m := p.member
	v.tried = append(v.tried, m)
	if asked := v.asked; asked != nil && p.decision == decisionShared {
		asked.add(m, false)
		asked.left = cs.any(v.unasked(cs))
	}
	a := &attempt{m: m, startedAt: cs.now, probes: p.probes, peers: cs.all, unwell: p.unwell}
	if v.repl != nil && v.attempt != nil {
		v.repl.Delete(placeholderStatus) // is the last attempt's
	}
	t, k := v.s.table, v.entry
	v.shown = v.ID
	switch v.Kind {
	case bokeh.Page:
		a.stamp = m.stamp(v.ring)
		a.asID = v.s.stampIsID(v, m)
		v.stampRequest(r, a.stamp, a.asID)
		if v.ID == "" {
			k, v.shown = t.Key(a.stamp), a.stamp
		}
		v.begin(a, func() sessions.Load { return t.BeginPage(k, m.Upstream, v.terms) })
	case bokeh.Socket:
		page := k
		if v.Stamp != "" && v.Stamp != v.ID {
			page = t.Key(v.Stamp)
		}
		v.begin(a, func() sessions.Load { return t.BeginSocket(k, page, m.Upstream, v.terms) })
	case bokeh.MaybePage:
		// Beside the id it cannot be refused. To a draining upstream a session must not come back.
		if !m.Drain.On() {
			a.stamp = m.stamp(v.ring)
		}
		v.stampRequest(r, a.stamp, false)
		v.begin(a, nil)
	case bokeh.Other:
		v.begin(a, nil)
	}
	if v.mayHedge {
		v.pool = cs.from
		v.mayHedge = !slices.ContainsFunc(v.pool, func(u *reverseproxy.Upstream) bool { return hasPlaceholder(u.Dial) })
	}
	*r = *r.WithContext(httptrace.WithClientTrace(v.ctx, v.trace(a)))
	if v.Kind == bokeh.Socket {
		v.awaitAnswer(a)
	}
}

// begin makes a the visit's attempt and counts its load, unless the client has gone already.
func (v *visit) begin(a *attempt, count func() sessions.Load) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.attempt = a
	v.nobody = ""
	a.finished = v.over
	if v.over {
		if a.probes {
			a.m.Breaker.EndProbe(a.startedAt)
		}
		return
	}
	a.open.Of = v
	a.m.Drain.Requests.Add(&a.open)
	if !v.hasBody {
		a.m.Unanswered.Ask(&a.question, a.startedAt)
	}
	switch {
	case count == nil:
	case v.body.whole:
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
func (v *visit) trace(a *attempt) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		ConnectDone:          func(_, _ string, err error) { v.dialed(a, err) },
		DNSStart:             func(info httptrace.DNSStartInfo) { v.looksUp(a, info.Host) },
		DNSDone:              func(info httptrace.DNSDoneInfo) { v.lookedUp(a, info) },
		TLSHandshakeDone:     func(_ tls.ConnectionState, err error) { v.shookHands(a, err) },
		GotConn:              func(httptrace.GotConnInfo) { v.connected(a) },
		GotFirstResponseByte: func() { v.firstByteCame(a) },
	}
}

// looksUp takes note of the name that is looked up: that of the upstream, or of a proxy on the way to it.
func (v *visit) looksUp(a *attempt, host string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a.hostname = host
}

// lookedUp takes note of the addresses of the upstream's name.
func (v *visit) lookedUp(a *attempt, info httptrace.DNSDoneInfo) {
	if info.Err != nil {
		v.dialed(a, info.Err)
		return
	}
	v.mu.Lock()
	a.addrs = len(info.Addrs)
	host := a.hostname
	v.mu.Unlock()
	if isHostOf(a.m.Name, host) {
		v.s.lookedUp(a.m, info.Addrs)
	}
}

// dialed takes note of a connection made, or not made. A name may have several addresses, of
// which one that takes the connection is enough. When all have failed the next request must know
// at once; where not all are tried, it is known when the attempt is over.
func (v *visit) dialed(a *attempt, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	a.dialErr = err
	defer v.logBreaker(a.m, err)
	if err == nil {
		a.m.Dialed(a.startedAt, v.s.table.Now(), v.s.pause, nil)
		return
	}
	if a.failures++; a.failures >= a.addrs && !a.finished {
		a.m.Dialed(a.startedAt, v.s.table.Now(), v.s.pause, err)
	}
}

// logBreaker logs once that an upstream has begun to fail, and once that it is well again. The error is that of its last
// connection, if that failed.
func (v *visit) logBreaker(m *member, err error) {
	tripped, changed := m.Breaker.Changed()
	if !changed {
		return
	}
	if !tripped {
		v.s.logger.Info("upstream is well again", zap.String("upstream", m.Name))
		return
	}
	if err == nil {
		err = errors.New("page requests are answered with 5xx, or not at all")
	}
	v.s.logger.Warn("upstream fails; new sessions go elsewhere as long as another one is well, and a visit tries it from time to time"+
		" (look at that server; when it is back nothing needs to be done here)", zap.String("upstream", m.Name), zap.Error(err))
}

// shookHands takes note of the end of a TLS handshake.
func (v *visit) shookHands(a *attempt, err error) {
	a.m.shookHands(v.s.table.Now(), err)
	v.mu.Lock()
	defer v.mu.Unlock()
	a.noTLS = err != nil
}

// connected takes note of a connection that the request goes out on.
func (v *visit) connected(a *attempt) {
	v.dialed(a, nil)
	v.mu.Lock()
	defer v.mu.Unlock()
	a.connected = true
	v.leaveQueue()
	if v.repl != nil && a.address == "" {
		a.address, _ = v.repl.GetString(placeholderUpstream)
	}
}

// firstByteCame takes note of the first byte of an answer. Of a page it says nothing where the answer itself is seen: it may be
// that of an informational one, as 103 Early Hints, which is no page yet.
func (v *visit) firstByteCame(a *attempt) {
	if v.Kind == bokeh.Page && v.s.watches {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.isAnswered(a)
}

// isAnswered takes note of an answer to an attempt: a page is built. v.mu is locked.
func (v *visit) isAnswered(a *attempt) {
	if a.answered || a.finished {
		return
	}
	a.answered = true
	now := v.s.table.Now()
	a.m.Unanswered.Answered(&a.question, now)
	a.m.LeftPages.Outlived(a.startedAt)
	if a.count != nil {
		a.weigh(a.count)
	}
	switch v.Kind {
	case bokeh.Page:
		a.load.PageBuilt()
		a.took = a.m.ServiceTime(a.startedAt, now)
		if a.probes { // what comes after this may take long
			a.probes = false
			a.m.Breaker.EndProbe(a.startedAt)
		}
	case bokeh.Socket:
		a.m.Drain.Requests.Opened(&a.open)
		if !v.s.watches { // or the answer says whether it is open
			a.load.SocketOpened()
		}
	case bokeh.MaybePage, bokeh.Other: // weigh nothing
	}
}

// hasAnswer takes note of the answer to the last attempt.
func (v *visit) hasAnswer(res *http.Response) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.isAnswered(v.attempt)
	v.attempt.status = res.StatusCode
	v.learn(v.attempt, res)
	v.listen(v.attempt, res)
	v.setCookie(v.attempt, res)
}
