// This file holds what came of an attempt, and who learns of it.

package caddybokeh

import (
	"errors"
	"net/http"
	"path"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
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

// retried returns the status of an attempt that another one follows: of the answer, if it is that which is retried
// (lb_retry_match), 0 if that was no error, else of the proxy's own error. v.mu is locked.
func (v *visit) retried(a *attempt) int {
	if a.answered {
		if status := v.status(a); status >= http.StatusBadRequest {
			return status
		} else if status != 0 {
			return 0
		}
	}
	return http.StatusBadGateway
}

// status returns the status of the answer to an attempt, or that of the proxy's own error, or 0 if none
// is known: the client has gone. Where a response route asked another upstream, what the proxy last set
// is that one's. v.mu is locked.
func (v *visit) status(a *attempt) int {
	if v.repl == nil {
		return 0
	}
	if a.status != 0 {
		return a.status
	}
	if !a.answered {
		return v.proxyError()
	}
	if address, _ := v.repl.GetString(placeholderUpstream); address != a.address {
		return 0
	}
	value, _ := v.repl.Get(placeholderStatus)
	status, _ := value.(int)
	return status
}

// proxyError returns the status of the error that this handler has ended with, or 0.
func (v *visit) proxyError() int {
	// Where errors are handled, that of the handler before is in the context.
	of, _ := v.ctx.Value(caddyhttp.ErrorCtxKey).(error)
	before, _ := errors.AsType[caddyhttp.HandlerError](of)
	if id, _ := v.repl.GetString(placeholderErrorID); id == before.ID {
		return 0
	}
	value, _ := v.repl.Get(placeholderErrorStatus)
	status, _ := value.(int)
	return status
}

// outcome is what came of an attempt.
type outcome struct {
	status  int           // of the answer, or of the proxy's own error, or 0 if neither came: the client has gone
	hasPage bool          // the browser has the page that it asked for
	at      time.Duration // on the table's clock
}

// finish ends an attempt: it takes its load off its upstream, or turns it into that of a session which
// waits for its socket, and lets all who learn from the outcome know of it. v.mu is locked.
func (v *visit) finish(a *attempt, status int) {
	if a.finished {
		return
	}
	a.finished = true
	if a.probes {
		defer a.m.Breaker.EndProbe(a.startedAt)
	}
	defer v.logBreaker(a.m, a.dialErr)
	o := outcome{status: status, hasPage: status == http.StatusOK && !a.noPage, at: v.s.table.Now()}
	a.m.Unanswered.GivenUp(&a.question, o.at)
	a.talk.End(o.at)
	if a.dialErr != nil && a.failures < a.addrs && !a.answered {
		a.m.Dialed(a.startedAt, o.at, v.s.pause, a.dialErr)
	}
	switch v.Kind {
	case bokeh.Page:
		v.pageIsOver(a, o)
		v.learnOfIDs(a, o)
		v.learnOfPages(a, o)
	case bokeh.Socket:
		a.load.SocketEnded(status == http.StatusSwitchingProtocols && !a.refused)
		v.adviseOnSocket(a, o)
	case bokeh.MaybePage, bokeh.Other:
		if a.load.IsCounted() {
			a.load.PageEnded(true, true)
			v.s.table.PageBuilt(a.m.Upstream, v.terms, 0)
		}
	}
}

// pageIsOver takes a page off its upstream, or turns it into a session that waits for its socket.
func (v *visit) pageIsOver(a *attempt, o outcome) {
	switch {
	case !a.load.IsCounted():
	case a.connected && !a.answered && o.status != http.StatusBadGateway:
		work := v.s.table.LeftWork(a.m.Upstream, v.terms.App, a.startedAt, a.ahead, o.at)
		if a.load.PageLeft(work) && o.status < http.StatusInternalServerError {
			a.m.LeftPages.Add(a.load.Key(), o.at, work)
		}
	default:
		// A request for a script that embeds an app and does not say where makes a session all the same (bokeh/server/views/autoload_js_handler.py).
		a.load.PageEnded(a.answered, o.hasPage || o.status == http.StatusBadRequest && bokeh.IsEmbedded(path.Base(v.path)))
	}
}

// learnOfIDs takes note whether the upstream takes session ids from us.
func (v *visit) learnOfIDs(a *attempt, o outcome) {
	switch {
	case !a.asID:
	case o.hasPage:
		v.s.took(a.m, (*v.ring)[0])
	case o.status == http.StatusForbidden:
		text, _ := v.repl.GetString(placeholderStatusText)
		v.s.refused(a.m, v, text == refusal)
	}
}

// learnOfPages takes note whether the upstream builds pages, or fails at them. That it refuses an id says nothing of that.
func (v *visit) learnOfPages(a *attempt, o outcome) {
	switch {
	case o.hasPage:
		v.pageCame(a, o)
	case a.connected && a.load.IsCounted() && o.status >= http.StatusInternalServerError:
		v.weighFailed(a, o.at)
	}
}

// pageCame takes note of how long a page took, and that its upstream is well.
func (v *visit) pageCame(a *attempt, o outcome) {
	v.s.table.PageBuilt(a.m.Upstream, v.terms, v.lesson(a, o.at))
	a.m.answeredAs(v.repl)
	a.m.Breaker.Success()
	a.m.FailedPages.Outlived(a.startedAt)
	v.clear(a, o.at)
	if !a.unwell {
		return
	}
	for _, c := range a.peers {
		// It may be over for them, too, and whoever tries first is not to have all that follow.
		c.Breaker.ProbeNow(o.at)
		c.FailedPages.Outlived(o.at)
	}
}

// adviseOnSocket looks at what a websocket's end says of the servers' flags and the client's headers.
func (v *visit) adviseOnSocket(a *attempt, o outcome) {
	switch o.status {
	case http.StatusForbidden:
		v.s.refusedSocket(a.m, v)
	case http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge:
		v.s.headerTooLong(a.m, v, o.status)
	case http.StatusBadGateway:
		if a.connected && !a.answered { // it hung up
			v.s.headerTooLong(a.m, v, o.status)
		}
	}
}
