// This file holds the cookie that names the server of a browser's newest page, for requests that name no session.

package caddybokeh

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"path"
	"slices"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// defaultCookie is the name of the cookie where the Caddyfile gives none.
const defaultCookie = "bokeh_server"

// readCookie reads what the browser brings.
func (v *visit) readCookie(r *http.Request) {
	if v.s.Cookie == "" {
		return
	}
	// Caddy has set this by what it knows of the connection.
	v.secure = r.Header.Get("X-Forwarded-Proto") == "https"
	if c, err := r.Cookie(v.s.Cookie); err == nil {
		v.cookie = c.Value
	}
}

// ofItsBrowser returns the upstream where the browser's newest page is, if that is well and takes new
// sessions, or nil. A tag cannot be guessed, so nobody names an upstream that he was not given. A page goes where it is
// ready first; but what may be one, under a path that has never been a page's, is more likely a link to what a page has made.
func (v *visit) ofItsBrowser(cs *candidates) *candidate {
	if v.cookie == "" || v.Kind == bokeh.Page && (bokeh.IsEmbedded(path.Base(v.path)) || v.isAtApp()) {
		return nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(v.cookie)
	if err != nil || len(raw) != stamp.TagLen {
		return nil
	}
	room := v.room(cs)
	for _, k := range *v.ring {
		c := cs.named(k, stamp.Tag(raw))
		if c == nil || c.gone {
			continue
		}
		if room.isFor(c) && !c.Breaker.Tripped() && !v.avoids(c.member, cs.now) && !slices.Contains(v.tried, c.member) {
			return c
		}
	}
	return nil
}

// setCookie lets the browser know where its newest page is, with the answer that is that page. v.mu is locked.
func (v *visit) setCookie(a *attempt, res *http.Response) {
	if v.s.Cookie == "" || v.Kind != bokeh.Page || a.noPage || res.StatusCode != http.StatusOK {
		return
	}
	t := a.m.keyedBy(v.ring).tags[0]
	c := http.Cookie{ //nolint:gosec // over HTTP a browser would not keep one that is Secure
		Name:     v.s.Cookie,
		Value:    base64.RawURLEncoding.EncodeToString(t[:]),
		Path:     "/",
		Secure:   v.secure,
		HttpOnly: true,
		SameSite: http.SameSiteLaxMode,
	}
	if c.Value != v.cookie {
		res.Header.Add("Set-Cookie", c.String())
	}
}

// checkCookie is here and in the Caddyfile, which can say the line.
func checkCookie(name string) error {
	if err := (&http.Cookie{Name: name, Value: "x"}).Valid(); err != nil { //nolint:gosec // nobody gets this one
		return fmt.Errorf("invalid cookie %q: it is the name of a cookie, of letters, digits, - and _, as in %s", name, defaultCookie)
	}
	return nil
}
