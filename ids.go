// This file holds which stamp a request is sent with, and which servers take it as the id of their session.

package caddybokeh

import (
	"maps"
	"net/http"
	"reflect"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// refusal is how a Bokeh server refuses a session id whose signature is not right
// (bokeh/server/core.py, create_session), where nothing on the way has dropped the text.
const refusal = "403 Invalid token or session ID"

// outgoing is what is sent of a visit.
type outgoing struct {
	header   http.Header // the map that Caddy copies from for each attempt where there are header operations
	sent     http.Header // the map on the request after our last change
	handedOn bool        // the proxy was given an upstream, so it may still be writing what it sends
	shown    string      // the session's id as far as it is known, for the hash that may be shown
}

// stampRequest puts the stamp on a GET, as the session's id or beside it, or takes off that of the last attempt. Where there
// are header operations Caddy copies the headers of every attempt from the map that r had at the
// first; where there are none it sends what r has.
func (v *visit) stampRequest(r *http.Request, stamp string, asID bool) {
	h := v.header
	if v.handedOn && sameMap(r.Header, v.sent) {
		// The last attempt may still be writing this map to its connection.
		h = maps.Clone(v.sent)
		r.Header, v.sent = h, h
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
	if !v.GaveID {
		delete(h, bokeh.SessionIDHeader)
	}
	h[bokeh.StampHeader] = []string{stamp}
}

func sameMap(a, b http.Header) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// stampIsID says whether the stamp goes to m as the session's id.
func (s *Selection) stampIsID(v *visit, m *member) bool {
	if !s.givesIDs || v.GaveID {
		return false
	}
	takes, known := m.TakesIDs((*v.ring)[0].Fingerprint())
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
func (s *Selection) refused(m *member, v *visit, forThat bool) {
	k := (*v.ring)[0]
	if takes, known := m.TakesIDs(k.Fingerprint()); known && (!takes || !forThat) {
		return
	}
	m.SetTakesIDs(k.Fingerprint(), false)
	mend := "if the server runs with --session-ids signed, set session_ids signed, and secret_key to its BOKEH_SECRET_KEY; if with external-signed, set that, and no key"
	if s.SessionIDs == sessionIDsSigned {
		mend = "compare the first secret_key with the server's BOKEH_SECRET_KEY: it seems to be another one"
	}
	s.logger.Error("upstream refused a page request with a session id of ours; stamping its pages in a header of our own from now on ("+mend+")",
		zap.String("site", v.host),
		zap.String("upstream", m.Name),
		zap.String("header", bokeh.StampHeader))
}
