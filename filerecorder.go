// This file holds the recorder of an answer that may be a file to keep.

package caddybokeh

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-bokeh/caddy-bokeh/internal/contentcache"
)

// errAborted says that the answer of a server ended early.
var errAborted = errors.New("the answer is not whole")

// fileRecorder is a response writer that holds an answer back for as long as it may be the file. Where it cannot be, or is too
// large, what has come so far goes to the visitor, and the rest as it comes.
type fileRecorder struct {
	w       http.ResponseWriter // nil if the answer is for nobody
	base    http.Header         // what w had before
	header  http.Header
	ask     fileAsk
	turn    *contentcache.Turn
	end     context.CancelFunc // of the request to next
	status  int                // 0 before there is one
	body    []byte
	held    int64  // bytes that the turn has reserved for body
	only    string // the result with which all is handed on as it comes, if that is known before
	passing bool   // all goes to w
	dropped bool   // it cannot be recorded, and is nothing for w
	whole   bool   // next has answered
	right   bool   // it is known to be the file
}

func newFileRecorder(w http.ResponseWriter, ask fileAsk, turn *contentcache.Turn) *fileRecorder {
	rec := &fileRecorder{w: w, header: http.Header{}, ask: ask, turn: turn}
	if w != nil {
		rec.base, rec.header = w.Header().Clone(), w.Header().Clone()
	}
	return rec
}

// record lets next answer r.
func (rec *fileRecorder) record(next caddyhttp.Handler, r *http.Request) (err error) {
	// The policy takes a request for over when its context ends.
	var ctx context.Context
	ctx, rec.end = context.WithCancel(r.Context())
	defer rec.end()
	defer func() {
		if p := recover(); p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so, too
			err = errAborted
		} else if p != nil {
			panic(p)
		}
	}()
	err = next.ServeHTTP(rec, r.WithContext(ctx))
	rec.whole = err == nil
	return err
}

// Header implements http.ResponseWriter.
func (rec *fileRecorder) Header() http.Header {
	if rec.passing {
		return rec.w.Header()
	}
	return rec.header
}

// WriteHeader implements http.ResponseWriter. Early hints are left out: a file has none.
func (rec *fileRecorder) WriteHeader(status int) {
	if rec.status != 0 || status < http.StatusOK {
		return
	}
	rec.status = status
	if rec.only != "" {
		rec.pass(rec.only)
		return
	}
	if rec.turn.Context().Err() != nil { // this is what the proxy says of that
		rec.dropped = true
		return
	}
	length, err := strconv.ParseInt(rec.header.Get("Content-Length"), 10, 64)
	known := err == nil && length >= 0
	if !rec.mayBeFile() || known && !rec.reserve(length) {
		rec.stream()
		return
	}
	if known {
		rec.body = make([]byte, 0, length)
	}
}

// mayBeFile says whether the answer is the file, as far as its header shows, or says that there is none.
func (rec *fileRecorder) mayBeFile() bool {
	h := rec.header
	plain := h.Get("Content-Encoding") == "" && h.Get("Trailer") == ""
	return plain && (rec.status == http.StatusOK || rec.status == http.StatusNotFound)
}

// reserve asks for room for n bytes more of the body.
func (rec *fileRecorder) reserve(n int64) bool {
	if !rec.turn.Reserve(rec.held, n) {
		return false
	}
	rec.held += n
	return true
}

// Write implements http.ResponseWriter.
func (rec *fileRecorder) Write(p []byte) (int, error) {
	rec.WriteHeader(http.StatusOK)
	if !rec.passing && !rec.dropped {
		// Of what is reserved, not of what the body has grown into: that is always a part more.
		if more := int64(len(rec.body)+len(p)) - rec.held; more > 0 && !rec.reserve(more) {
			rec.stream()
		}
	}
	switch {
	case rec.dropped:
		return 0, context.Canceled
	case rec.passing:
		return rec.w.Write(p)
	default:
		rec.body = append(rec.body, p...)
	}
	return len(p), nil
}

// FlushError implements what http.ResponseController looks for.
func (rec *fileRecorder) FlushError() error {
	if rec.passing {
		return http.NewResponseController(rec.w).Flush()
	}
	return nil
}

// Unwrap gives http.ResponseController what it does not find here.
func (rec *fileRecorder) Unwrap() http.ResponseWriter { return rec.w }

// stream lets the answer go where it was meant to, since it cannot be kept. Nobody has to wait for it.
func (rec *fileRecorder) stream() {
	if rec.w == nil || !rec.turn.GiveUp() {
		rec.drop()
		return
	}
	rec.pass(filesUnkept)
}

// drop lets go of an answer, and of its request, for it may never end.
func (rec *fileRecorder) drop() {
	rec.dropped, rec.body = true, nil
	rec.turn.Release(rec.held)
	rec.held = 0
	rec.end()
}

// pass hands on what was recorded, and lets the rest through.
func (rec *fileRecorder) pass(result string) {
	if rec.passing {
		return
	}
	rec.passing = true
	h := rec.w.Header()
	clear(h)
	maps.Copy(h, rec.header)
	if rec.status == 0 {
		return
	}
	h.Add("Cache-Status", cacheStatus[result])
	// What is not the file must not be taken for it for ten years. The server's word is enough where it was not verified: it may have read
	// the file, and named it so, before that was changed.
	if rec.status == http.StatusOK && !rec.right && (result == filesWrong || h.Get("Etag") != strconv.Quote(rec.ask.v)) {
		h.Set("Cache-Control", "no-store")
		h.Del("Expires")
	}
	rec.turn.HandOn() // this visitor may be slow
	rec.w.WriteHeader(rec.status)
	_, _ = rec.w.Write(rec.body) // the visitor may have gone
	rec.body = nil
	rec.turn.ReleaseAll()
}

// isRight says whether the answer is the file.
func (rec *fileRecorder) isRight() bool {
	rec.right = rec.isRecorded() && rec.status == http.StatusOK && rec.turn.Matches(rec.body)
	return rec.right
}

// isWrong says whether the server has told that it has no such file, or has another one.
func (rec *fileRecorder) isWrong() bool {
	return rec.isRecorded() && (rec.status == http.StatusNotFound || rec.status == http.StatusOK)
}

func (rec *fileRecorder) isRecorded() bool { return rec.whole && !rec.passing && !rec.dropped }

// ofOneAnswer are the header fields that say nothing of a file, or that are made anew.
var ofOneAnswer = []string{
	"Accept-Ranges", "Age", "Cache-Control", "Connection", "Content-Length", "Content-Type", "Date", "Etag", "Expires", "Last-Modified", "Vary",
}

// kept returns the header to keep the file with, and whether it may be kept: not where the answer is meant for
// this one visitor, or not to be compressed.
func (rec *fileRecorder) kept() (http.Header, bool) {
	if !rec.isRecorded() {
		return nil, false
	}
	h := http.Header{}
	for name, values := range rec.header {
		if values = addedTo(rec.base[name], values); len(values) > 0 && !slices.Contains(ofOneAnswer, name) {
			h[name] = values
		}
	}
	control := strings.ToLower(strings.Join(rec.header["Cache-Control"], ","))
	vary := strings.ToLower(strings.Join(rec.header["Vary"], ","))
	origin := rec.header.Get("Access-Control-Allow-Origin")
	barred := h["Set-Cookie"] != nil ||
		strings.Contains(control, "private") || strings.Contains(control, "no-store") || strings.Contains(control, "no-transform") ||
		vary != "" && vary != "accept-encoding" ||
		origin != "" && origin != "*"
	return h, !barred && rec.mayRun()
}

// addedTo returns what a proxy has added to the values of a field: what was there before is of this one visitor. If it is not there
// any more, all is new.
func addedTo(before, values []string) []string {
	if len(values) >= len(before) && slices.Equal(values[:len(before)], before) {
		return values[len(before):]
	}
	return values
}

// mayRun says whether the answer may be called what its ending says, as far as that gives it a right which the server did not. A browser that
// is sent to an SVG file runs its scripts, so somebody else's is told to be text.
func (rec *fileRecorder) mayRun() bool {
	svg := fileTypes[".svg"]
	return fileTypes[rec.ask.ending] != svg || strings.HasPrefix(strings.ToLower(rec.header.Get("Content-Type")), svg)
}
