// This file holds the cookie that names the server of a browser's newest page, for requests that name no session.

package caddybokeh

import (
	"encoding/base64"
	"fmt"
	"net/http"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// defaultCookie is the name of the cookie where the Caddyfile gives none.
const defaultCookie = "bokeh_server"

// readCookie reads what the browser brings.
func (v *visit) readCookie(r *http.Request) {
	// Caddy has set this by what it knows of the connection.
	v.secure = r.Header.Get("X-Forwarded-Proto") == "https"
	if c, err := r.Cookie(v.s.Cookie); err == nil {
		v.cookie = c.Value
	}
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
