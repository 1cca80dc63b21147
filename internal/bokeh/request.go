// Package bokeh reads what a request says of its Bokeh session: whether it is for a page or a websocket, and the ids and stamps that it brings.
//
// All of it is pure: it depends on nothing but the request and the keys. What is read of a request is bounded, whatever a client sends.
//
// This file holds what a request that is no websocket says.
package bokeh

import (
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

const (
	// SessionIDHeader is Bokeh's own header by which a page request names its session
	// (bokeh/server/core.py, create_session).
	SessionIDHeader = "Bokeh-Session-Id"

	// StampHeader carries a stamp where it cannot be the session's id. Bokeh packs the headers
	// of the page request into the token, so the stamp comes back with the socket.
	StampHeader = "Caddy-Bokeh-Stamp"
)

// Kind says what a request means to a Bokeh server.
type Kind uint8

const (
	Other     Kind = iota // a file by what the browser says of it, or no GET: any server answers it
	MaybePage             // a file, a login or the like by its name, which may be an app's all the same
	Page                  // makes the server build a session, unless the answer says that it did not
	Socket                // the websocket of a session
)

// Request is what a request says of its session. It belongs to one goroutine.
type Request struct {
	Kind Kind

	// ID is the session's id, or nothing if none was given. It is a capability: who knows it can join the session.
	ID string

	// GaveID says that the request brings an id or a token, readable or not. Bokeh refuses two of them, so no other may be added.
	GaveID bool

	// Stamp is one that is verified, or nothing; Tag is that of the upstream it names, and Key has signed it.
	Stamp string
	Tag   stamp.Tag
	Key   *stamp.Key

	// Others may be stamps too, to look at if Stamp names nobody here.
	Others []string

	// Unknown says that the request brings what looks like a stamp and that no key of the ring has signed it.
	Unknown bool

	// Expires is when Bokeh refuses the token, in Unix seconds; 0 if the token does not say, or there is none.
	Expires int64

	// LacksUpgrade says that it is the request of a websocket from which a proxy in front has taken its Upgrade header. No server opens it.
	LacksUpgrade bool

	token string // that told of the session, if one did
}

// IsExpired says whether Bokeh refuses the token for its age.
func (r *Request) IsExpired(now time.Time) bool { return r.Expires != 0 && now.Unix() > r.Expires }

// ReadRequest reads what r says of its session.
func ReadRequest(r *http.Request, ks stamp.Keyring) Request {
	if token, ok := SubprotocolToken(r.Header); ok && IsWebsocket(r.Header) && path.Base(r.URL.Path) == "ws" {
		c := ReadToken(token, ks)
		if c.ID != "" {
			c.Kind = Socket
		}
		return c
	}
	if lacksUpgrade(r) {
		return Request{LacksUpgrade: true}
	}
	c := readNames(r, ks)
	c.Kind = kindOf(r)
	if c.Kind != Page && c.Stamp == "" {
		c.try(r.Header.Get(StampHeader), ks)
	}
	return c
}

// readNames reads the ways in which a request that is no websocket can name a session.
func readNames(r *http.Request, ks stamp.Keyring) Request {
	token, hasToken := queryArgument(r.URL.RawQuery, "bokeh-token")
	id, hasID := queryArgument(r.URL.RawQuery, "bokeh-session-id")
	if lines := r.Header[SessionIDHeader]; len(lines) > 0 {
		id, hasID = strings.Join(lines, ","), true // as Tornado does
	}
	c := Request{ID: id, GaveID: hasID || hasToken || bringsForm(r)}
	switch {
	case hasID:
		c.try(id, ks)
	case hasToken:
		c = ReadToken(token, ks)
		c.GaveID = true
	}
	return c
}

// bringsForm says whether r may have a body that Tornado reads arguments from (tornado/httputil.py,
// parse_body_arguments). Over HTTP/3 nobody knows the length of a body before it ends, nor whether there
// is one.
func bringsForm(r *http.Request) bool {
	content := r.Header.Get("Content-Type")
	return r.ContentLength != 0 &&
		(strings.HasPrefix(content, "application/x-www-form-urlencoded") || strings.HasPrefix(content, "multipart/form-data"))
}

// BringsBody says whether r has a body, with which it may fail by itself: one that is broken, or too large, or never
// comes. Over HTTP/3, where nobody knows, it has none.
func BringsBody(r *http.Request) bool {
	return r.ContentLength > 0 || r.ContentLength < 0 && r.ProtoMajor < 3
}

// try takes s as the request's stamp if it is one of ours.
func (c *Request) try(s string, ks stamp.Keyring) bool {
	t, k, ok := ks.Verify(s)
	if ok {
		c.Stamp, c.Tag, c.Key = s, t, k
	}
	c.Unknown = c.Stamp == "" && (c.Unknown || stamp.IsLikely(s))
	return ok
}

// IsWebsocket says whether the client wants to upgrade to a websocket. Caddy has turned the
// extended CONNECT of HTTP/2 and HTTP/3 into this form before a policy sees it.
func IsWebsocket(h http.Header) bool {
	return strings.EqualFold(h.Get("Upgrade"), "websocket")
}

// lacksUpgrade says whether r is the request of a websocket that has lost its Upgrade header on the way, as all do through a proxy that
// was not told to hand that on. The headers by which we know it are none that a page's script can set.
func lacksUpgrade(r *http.Request) bool {
	return r.Method == http.MethodGet && path.Base(r.URL.Path) == "ws" && !IsWebsocket(r.Header) &&
		(r.Header.Get("Sec-Websocket-Key") != "" || r.Header.Get("Sec-Websocket-Version") != "" || r.Header.Get("Sec-Websocket-Protocol") != "")
}

// SubprotocolToken returns the token of a Bokeh websocket: the second of exactly two
// subprotocols, as Bokeh reads it (bokeh/server/views/ws.py, select_subprotocol), whether they
// stand on one header line or two.
func SubprotocolToken(h http.Header) (string, bool) {
	lines := h["Sec-Websocket-Protocol"]
	if lines == nil {
		lines = h["Sec-WebSocket-Protocol"] //nolint:staticcheck // as Caddy writes it for old servers
	}
	protocol, token, ok := strings.Cut(strings.Join(lines, ","), ",")
	token = strings.TrimSpace(token)
	if !ok || strings.TrimSpace(protocol) != "bokeh" || token == "" || strings.Contains(token, ",") {
		return "", false
	}
	return token, true
}

// kindOf says what r, which is no websocket of Bokeh's, means to a Bokeh server, as far as its name and what the browser
// says of it tell. In doubt it is a page: a wrong guess costs a count until the answer comes.
func kindOf(r *http.Request) Kind {
	last := path.Base(r.URL.Path)
	switch {
	case r.Method != http.MethodGet:
		return Other
	case IsEmbedded(last):
		return Page
	case IsWebsocket(r.Header) && last == "ws": // without a token Bokeh refuses it
		return Other
	case IsWebsocket(r.Header): // of somebody else's, unless it is the address of an app, which pays no attention to that
		return MaybePage
	}
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "script", "style", "image", "font":
		return Other
	}
	if isNamedLikeFile(r.URL.Path, last) {
		return MaybePage
	}
	return Page
}

// IsEmbedded says whether a path ends in the name by which another site's page asks for a session. No answer to that
// but an error is anything else than a session.
func IsEmbedded(last string) bool { return last == "autoload.js" || last == "embed.json" }

// isNamedLikeFile says whether a path is that of a file or of a side page of Bokeh's or Panel's, and not of an app,
// unless somebody has given an app such a name.
func isNamedLikeFile(whole, last string) bool {
	switch last {
	case "metadata", "favicon.ico", "liveness", "login", "logout":
		return true
	}
	return IsInFileFolder(whole) || HasFileEnding(last)
}

// IsInFileFolder says whether a path lies in a folder in which servers keep files.
func IsInFileFolder(whole string) bool {
	for segment := range strings.SplitSeq(path.Dir(path.Clean(whole)), "/") {
		if segment == "static" || segment == "components" {
			return true
		}
	}
	return false
}

// HasFileEnding says whether a path ends as that of a file does which dashboards load.
func HasFileEnding(whole string) bool { return assetExtensions[strings.ToLower(path.Ext(whole))] }

// assetExtensions are the endings of files that dashboards load beside the page. An ending that
// is not listed may be the name of an app, as in /sales.v2.
var assetExtensions = map[string]bool{
	".js": true, ".mjs": true, ".css": true, ".map": true, ".json": true, ".wasm": true,
	".png": true, ".jpg": true, ".jpeg": true, ".gif": true, ".svg": true, ".ico": true, ".webp": true, ".avif": true,
	".woff": true, ".woff2": true, ".ttf": true, ".otf": true, ".eot": true,
	".txt": true, ".xml": true, ".csv": true, ".pdf": true, ".zip": true, ".gz": true,
	".mp3": true, ".mp4": true, ".webm": true,
}

// queryArgument returns the last value of a query argument, stripped, which is the one Tornado
// takes. It is as lenient as Tornado: what net/url refuses to decode is still an argument.
func queryArgument(query, name string) (value string, ok bool) {
	for pair := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(pair, "=")
		if unescape(k) == name {
			value, ok = strings.TrimSpace(unescape(v)), true
		}
	}
	return value, ok
}

func unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}
