// This file holds Select, the way of one request.

package caddybokeh

import (
	"cmp"
	"context"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// decision says why an upstream was chosen.
type decision string

const (
	decisionBound  decision = "bound"  // the session is there
	decisionNew    decision = "new"    // nobody knows of the session, so it begins there
	decisionMoved  decision = "moved"  // the session's own upstream is lost
	decisionShared decision = "shared" // any upstream answers this
)

// begins says whether a session begins with it.
func (d decision) begins() bool { return d == decisionNew || d == decisionMoved }

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

// Select returns the upstream for r, or nil if there is none.
func (s *Selection) Select(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	v := s.visit(r)
	v.receive(r)
	cs := s.candidates(pool, v)
	if cs.index == nil {
		s.discovered(pool, cs)
	}
	for ; ; cs = s.candidates(pool, v) {
		home, tier := v.home(cs)
		p := v.choose(cs, home, tier)
		v.depart(cs, p)
		if p.candidate == nil && v.waitForSlot(r.Context(), cs) {
			continue
		}
		if p.candidate == nil {
			v.foundNobody(r.Context(), cs, w)
			return nil
		}
		if p.probes && !p.Breaker.BeginProbe(cs.now) {
			continue // another visit tries it already, so it weighs more now than it did
		}
		begins := p.decision.begins()
		v.sayWhenToComeBack(w, false)
		v.try(r, cs, p)
		// Whoever drains an upstream says so and then counts; we count and then look whether it drains.
		// So one of us sees the other. It is the same with what another visit counts.
		if v.isOver() {
			v.failed()
			v.tried = v.tried[:len(v.tried)-1]
			continue // with another look, or it would look free where the upstream was forgotten meanwhile
		}
		if begins && p.Drain.On() || p.Drain.IsClosed() {
			v.failed()
			continue
		}
		v.served()
		v.tell(p.member, p.decision)
		v.handedOn = true
		return p.upstream
	}
}

// depart does what a pick says of the upstreams before, whether or not it has found another one: a session that leaves one is over there,
// and where all have been tried the visit starts over.
func (v *visit) depart(cs *candidates, p pick) {
	if p.startsOver {
		v.tried = v.tried[:0]
	}
	if p.from == nil {
		return
	}
	t, u := v.s.table, p.from.Upstream
	if p.candidate != nil && !v.left {
		v.left = true
		reason := cs.whyLost(p.from)
		u.History.Moved.Add(reason)
		v.s.node.Publish(eventMoved, map[string]any{
			"from": u.Name, "to": p.Name, "reason": reason, "session": v.ring.Redact(v.ID).String(),
		})
	}
	t.Move(v.entry, u)
	u.Drain.Remember(v.entry)
	if v.Stamp != "" && v.Stamp != v.ID {
		t.Move(t.Key(v.Stamp), u)
	}
}

// foundNobody takes note that there is no upstream at present, and why. It counts if no later attempt
// finds one, and somebody is still there to be turned away.
func (v *visit) foundNobody(ctx context.Context, cs *candidates, w http.ResponseWriter) {
	why := v.s.whyNobody(cs, v)
	v.sayWhenToComeBack(w, why == nobodyDraining || why == nobodyFull)
	v.sayWaited()
	v.mu.Lock()
	defer v.mu.Unlock()
	if ctx.Err() == nil {
		v.nobody = why
	}
}

// whyNobody returns why there is no upstream, and logs what somebody should do about.
func (s *Selection) whyNobody(cs *candidates, v *visit) string {
	switch {
	case v.isFull(cs):
		s.warnFull(len(cs.all))
		return nobodyFull
	case cs.allDrain():
		if s.pacers.allDrain.allows(cs.now) {
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
func (v *visit) sayWhenToComeBack(w http.ResponseWriter, turnedAway bool) {
	switch {
	case w == nil:
	case turnedAway:
		w.Header().Set("Retry-After", retryAfter)
		v.turnedAway = true
	case v.turnedAway:
		w.Header().Del("Retry-After")
		v.turnedAway = false
	}
}

// sayWaited sets the placeholder of how long the visit has waited for a slot, in milliseconds.
func (v *visit) sayWaited() {
	if v.repl != nil && v.waiter != nil {
		v.repl.Set(placeholderWaited, cmp.Or(v.waited, v.s.table.Now()-v.queuedAt).Seconds()*1e3)
	}
}

// tell sets the placeholders and writes the log.
func (v *visit) tell(m *member, d decision) {
	m.History.Selected.Add(string(d))
	v.sayWaited()
	session := v.ring.Redact(v.shown)
	if v.repl != nil {
		v.repl.Set(placeholderDecision, string(d))
		v.repl.Set(placeholderSession, session)
	}
	if c := v.s.logger.Check(zapcore.DebugLevel, "selected upstream"); c != nil {
		c.Write(zap.String("upstream", m.Name), zap.String("decision", string(d)), zap.Stringer("session", session))
	}
}
