// This file holds what the answer to a GET says of it: whether it is a page of Bokeh's, which has a session.

package caddybokeh

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"io"
	"net/http"
	"path"
	"strings"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// tokenMark is in every page of Bokeh's, in front of the token for its websocket (bokeh/embed/util.py,
// RenderItem.to_json).
const tokenMark = `"token":`

// learn takes note of what an answer says of its request: that no session has been made, that one has, or that
// only the body will tell. Where nobody can tell it is what its name says. v.mu is locked.
func (v *visit) learn(a *attempt, res *http.Response) {
	switch {
	case v.Kind == bokeh.Socket || v.Kind == bokeh.Other && (res.Request == nil || res.Request.Method != http.MethodGet):
	case res.StatusCode >= http.StatusMultipleChoices:
		// What becomes of an error, or where a redirect leads, is soon known.
	case res.StatusCode == http.StatusOK && bokeh.IsEmbedded(path.Base(v.path)):
	case res.StatusCode != http.StatusOK || !mayBeHTML(res.Header):
		v.isNoPage(a, res.StatusCode)
	case res.Header.Get("Content-Encoding") != "":
	default:
		res.Body = &tokenFinder{ReadCloser: res.Body, done: func(found bool) { v.readAnswer(a, found) }}
	}
}

// mayBeHTML says whether an answer may be HTML by its type.
func mayBeHTML(h http.Header) bool {
	t := strings.ToLower(h.Get("Content-Type"))
	return t == "" || strings.HasPrefix(t, "text/html") || strings.HasPrefix(t, "application/xhtml+xml")
}

// readAnswer takes note that a token was found in the body of an answer, or that there is none in it.
func (v *visit) readAnswer(a *attempt, found bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !found:
		v.isNoPage(a, http.StatusOK)
	case v.Kind != bokeh.Page:
		v.isPage(a)
	}
}

// isNoPage ends what is counted of an attempt whose answer is no page, though a download may go on for long.
// v.mu is locked.
func (v *visit) isNoPage(a *attempt, status int) {
	a.noPage = true
	if v.Kind == bokeh.Page {
		v.s.table.Addresses.SawOther(v.terms.App, v.s.table.Now())
	}
	v.finish(a, status)
}

// isPage counts the session of a page that has a name like a file, or was said to be one. The browser does not have it yet.
// v.mu is locked.
func (v *visit) isPage(a *attempt) {
	if a.finished {
		return
	}
	k := v.entry
	if v.ID == "" {
		k = v.s.table.Key(cmp.Or(a.stamp, rand.Text()))
	}
	a.load = v.s.table.BeginPage(k, a.m.Upstream, v.terms)
	a.load.PageBuilt()
}

// tokenFinder is a body in which a token is looked for as it passes. It keeps none of it but what a mark may have
// begun with.
type tokenFinder struct {
	io.ReadCloser
	done func(found bool) // called once, unless the body breaks off before it is known; nil after that
	tail []byte           // the last bytes that have passed, fewer than a mark has
}

// Read implements io.Reader.
func (f *tokenFinder) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.done == nil {
		return n, err
	}
	if found := f.isIn(p[:n]); found || err == io.EOF {
		f.done(found)
		f.done = nil
	}
	return n, err
}

// isIn says whether a mark ends in the next part of the body.
func (f *tokenFinder) isIn(part []byte) bool {
	const most = len(tokenMark) - 1
	seam := append(f.tail, part[:min(len(part), most)]...)
	if bytes.Contains(seam, []byte(tokenMark)) || bytes.Contains(part, []byte(tokenMark)) {
		return true
	}
	if len(part) > most {
		seam = part
	}
	f.tail = append(f.tail[:0], seam[max(0, len(seam)-most):]...)
	return false
}
