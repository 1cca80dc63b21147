// This file holds what a request says of its session.

package caddybokeh

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"

	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

const (
	// sessionIDHeader is Bokeh's own header by which a page request names its session
	// (bokeh/server/core.py, create_session).
	sessionIDHeader = "Bokeh-Session-Id"

	// stampHeader carries a stamp where it cannot be the session's id. Bokeh packs the headers
	// of the page request into the token, so the stamp comes back with the socket.
	stampHeader = "Caddy-Bokeh-Stamp"

	// maxTokenLen is Tornado's limit for all headers of a request (max_header_size). A longer
	// token is refused by Bokeh, so we need not read it.
	maxTokenLen = 64 << 10

	// maxPackedLen bounds what we inflate of the page request's headers, and so what a token can cost.
	// They come first in the packed JSON and passed Tornado's limit once; escaping can make them longer.
	maxPackedLen = 2 * maxTokenLen

	// zlib, which packed them, begins a new block after some 16,000 symbols, so there are nine at most.
	maxPackedBlocks = 32
	zlibHeaderLen   = 2

	// The rest of what a token may have for us to read it. Bokeh writes each name once, and a request has one
	// header of a name and not many in all.
	maxNames         = 16
	maxPackedHeaders = 256
	maxPackedStamps  = 4
)

// base64url is Bokeh's encoding of ids and tokens (bokeh/util/token.py).
var base64url = base64.RawURLEncoding

// kind says what a request means to a Bokeh server.
type kind uint8

const (
	other       kind = iota // a file by what the browser says of it, or no GET: any server answers it
	maybePage               // a file, a login or the like by its name, which may be an app's all the same
	pageRequest             // makes the server build a session, unless the answer says that it did not
	socket                  // the websocket of a session
)

// claim is what a request says of its session.
type claim struct {
	kind kind
	id   string // the session id, if any was given
	// gaveID says that the request brings an id or a token, readable or not. Bokeh refuses
	// two of them, so we must not add one.
	gaveID  bool
	token   string     // that told of it, if one did
	stamp   string     // a verified stamp
	tag     stamp.Tag  // of the upstream it names
	key     *stamp.Key // that signed it
	others  []string   // that may be stamps, too, to look at if that one names nobody here
	unknown bool       // it brings what looks like a stamp, which no key of the ring has signed
	expires int64      // when Bokeh refuses the token, in Unix seconds; 0 if it does not say
	// noUpgrade says that a proxy in front has made the request of a websocket one that no server takes.
	noUpgrade bool
}

// readClaim reads what r says of its session.
func readClaim(r *http.Request, ks stamp.Keyring) claim {
	if token, ok := subprotocolToken(r.Header); ok && isWebsocket(r.Header) && path.Base(r.URL.Path) == "ws" {
		c := readToken(token, ks)
		if c.id != "" {
			c.kind = socket
		}
		return c
	}
	if lacksUpgrade(r) {
		return claim{noUpgrade: true}
	}
	c := readNames(r, ks)
	c.kind = kindOf(r)
	if c.kind != pageRequest && c.stamp == "" {
		c.try(r.Header.Get(stampHeader), ks)
	}
	return c
}

// readNames reads the ways in which a request that is no websocket can name a session.
func readNames(r *http.Request, ks stamp.Keyring) claim {
	token, hasToken := queryArgument(r.URL.RawQuery, "bokeh-token")
	id, hasID := queryArgument(r.URL.RawQuery, "bokeh-session-id")
	if lines := r.Header[sessionIDHeader]; len(lines) > 0 {
		id, hasID = strings.Join(lines, ","), true // as Tornado does
	}
	c := claim{id: id, gaveID: hasID || hasToken || bringsForm(r)}
	switch {
	case hasID:
		c.try(id, ks)
	case hasToken:
		c = readToken(token, ks)
		c.gaveID = true
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

// bringsBody says whether r has a body, with which it may fail by itself: one that is broken, or too large, or never
// comes. Over HTTP/3, where nobody knows, it has none.
func bringsBody(r *http.Request) bool {
	return r.ContentLength > 0 || r.ContentLength < 0 && r.ProtoMajor < 3
}

// try takes s as the claim's stamp if it is one of ours.
func (c *claim) try(s string, ks stamp.Keyring) bool {
	t, k, ok := ks.Verify(s)
	if ok {
		c.stamp, c.tag, c.key = s, t, k
	}
	c.unknown = c.stamp == "" && (c.unknown || stamp.IsLikely(s))
	return ok
}

// isWebsocket says whether the client wants to upgrade to a websocket. Caddy has turned the
// extended CONNECT of HTTP/2 and HTTP/3 into this form before a policy sees it.
func isWebsocket(h http.Header) bool {
	return strings.EqualFold(h.Get("Upgrade"), "websocket")
}

// lacksUpgrade says whether r is the request of a websocket that has lost its Upgrade header on the way, as all do through a proxy that
// was not told to hand that on. The headers by which we know it are none that a page's script can set.
func lacksUpgrade(r *http.Request) bool {
	return r.Method == http.MethodGet && path.Base(r.URL.Path) == "ws" && !isWebsocket(r.Header) &&
		(r.Header.Get("Sec-Websocket-Key") != "" || r.Header.Get("Sec-Websocket-Version") != "" || r.Header.Get("Sec-Websocket-Protocol") != "")
}

// subprotocolToken returns the token of a Bokeh websocket: the second of exactly two
// subprotocols, as Bokeh reads it (bokeh/server/views/ws.py, select_subprotocol), whether they
// stand on one header line or two.
func subprotocolToken(h http.Header) (string, bool) {
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
func kindOf(r *http.Request) kind {
	last := path.Base(r.URL.Path)
	switch {
	case r.Method != http.MethodGet:
		return other
	case isEmbedded(last):
		return pageRequest
	case isWebsocket(r.Header) && last == "ws": // without a token Bokeh refuses it
		return other
	case isWebsocket(r.Header): // of somebody else's, unless it is the address of an app, which pays no attention to that
		return maybePage
	}
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "script", "style", "image", "font":
		return other
	}
	if isNamedLikeFile(r.URL.Path, last) {
		return maybePage
	}
	return pageRequest
}

// isEmbedded says whether a path ends in the name by which another site's page asks for a session. No answer to that
// but an error is anything else than a session.
func isEmbedded(last string) bool { return last == "autoload.js" || last == "embed.json" }

// isNamedLikeFile says whether a path is that of a file or of a side page of Bokeh's or Panel's, and not of an app,
// unless somebody has given an app such a name.
func isNamedLikeFile(whole, last string) bool {
	switch last {
	case "metadata", "favicon.ico", "liveness", "login", "logout":
		return true
	}
	return isInFileFolder(whole) || hasFileEnding(last)
}

// isInFileFolder says whether a path lies in a folder in which servers keep files.
func isInFileFolder(whole string) bool {
	for segment := range strings.SplitSeq(path.Dir(path.Clean(whole)), "/") {
		if segment == "static" || segment == "components" {
			return true
		}
	}
	return false
}

// hasFileEnding says whether a path ends as that of a file does which dashboards load.
func hasFileEnding(whole string) bool { return assetExtensions[strings.ToLower(path.Ext(whole))] }

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

// readToken reads the session id of a Bokeh token and the stamp it brings back: the id itself,
// or one of the page request's headers that Bokeh packed into the token. A token is
// base64url(JSON), in signed modes followed by a dot and its signature, which is Bokeh's to check.
func readToken(token string, ks stamp.Keyring) claim {
	text := tokenText(token)
	c := claim{id: jsonText(text, "session_id"), expires: jsonSeconds(text, "session_expiry")}
	if c.id == "" {
		return claim{}
	}
	c.token = token
	if !c.try(c.id, ks) {
		stamps, ids := packedStamps(text)
		c.tryAll(append(stamps, ids...), ks)
	}
	return c
}

// readPackedStamp takes the stamp in the token's packed headers for that of the claim, if we have put one
// there: a client that named a session of ours was then sent elsewhere. Or a Caddy behind this one has, with the
// same key, and that names nobody here.
func (c *claim) readPackedStamp(ks stamp.Keyring) {
	stamps, _ := packedStamps(tokenText(c.token))
	c.tryAll(append(stamps, c.id), ks)
}

// tryAll takes the first of them that is one of ours, and says whether there is one.
func (c *claim) tryAll(stamps []string, ks stamp.Keyring) bool {
	c.others = nil
	for i, s := range stamps {
		if c.try(s, ks) {
			c.others = stamps[i+1:]
			return true
		}
	}
	return false
}

// tokenText returns the JSON of a token, as far as it can be read.
func tokenText(token string) []byte {
	if len(token) > maxTokenLen {
		return nil
	}
	payload, _, _ := strings.Cut(token, ".")
	text, _ := base64url.DecodeString(strings.TrimRight(payload, "="))
	return text
}

// packedStamps returns what may be stamps among the page request's headers that Bokeh packs into a
// token as base64url(zlib(JSON)): those in our own header, which name the upstream that the page went
// to, and those in Bokeh's, where a client that named the session may have an old one. Names of headers
// are compared in any case, for not every stack keeps it.
func packedStamps(text []byte) (stamps, ids []string) {
	packed, _, _ := cutString(jsonValue(text, "__bk__zlib_", `"`))
	in := inflaters.Get().(*inflater)
	defer inflaters.Put(in)
	for name, value := range packedHeaders(in.inflate(packed)) {
		switch {
		case bytes.EqualFold(name, []byte(stampHeader)) && len(stamps) < maxPackedStamps:
			stamps = append(stamps, string(value))
		case bytes.EqualFold(name, []byte(sessionIDHeader)) && len(ids) < maxPackedStamps:
			ids = append(ids, string(value))
		}
	}
	return stamps, ids
}

// inflater inflates one packed text at a time.
type inflater struct {
	zipped []byte
	from   bytes.Reader // of zipped
	text   bytes.Buffer
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// inflate returns the text that Bokeh has packed, as far as it can be read and at most maxPackedLen
// of it. The next call overwrites it. What is inflated is bounded by its blocks as well: those that hold
// nothing are the dearest, for each brings a code of its own.
func (in *inflater) inflate(packed []byte) []byte {
	in.zipped, _ = base64url.AppendDecode(in.zipped[:0], bytes.TrimRight(packed, "="))
	if len(in.zipped) < zlibHeaderLen {
		return nil
	}
	in.from.Reset(in.zipped[zlibHeaderLen:])
	blocks := 0
	z := flate.NewReaderOpts(&in.from, flate.WithEobCallback(func(flate.InflateCheckpoint) {
		if blocks++; blocks == maxPackedBlocks {
			in.from.Reset(nil) // it finds the end
		}
	}))
	in.text.Reset()
	_, _ = in.text.ReadFrom(io.LimitReader(z, maxPackedLen))
	return in.text.Bytes()
}

// packedHeaders returns the headers in what Bokeh has packed, as their JSON has them: no name that we
// look for and no stamp needs an escape. Those that are not strings are passed over.
func packedHeaders(text []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		text, more := bytes.CutPrefix(jsonValue(text, "headers", "{"), []byte("{"))
		for n := 0; more && n < maxPackedHeaders; n++ {
			var name []byte
			if name, text, more = cutString(text); !more {
				return
			}
			if text, more = bytes.CutPrefix(bytes.TrimLeft(text, space), []byte(":")); !more {
				return
			}
			value, rest, isString := cutString(text)
			switch {
			case !isString:
				rest = afterValue(text)
			case !yield(name, value):
				return
			}
			text, more = bytes.CutPrefix(bytes.TrimLeft(rest, space), []byte(","))
		}
	}
}

// jsonValue returns the text from the value on of the first member that has that name, and a value that
// begins with one of these bytes, or nothing. No string can look like a name: the quotes in it are escaped.
// It is for speed that no decoder reads a token, for each websocket brings one, of many kilobytes. A name that is
// there twice, and whatever else a decoder would read in another way, Bokeh never writes.
func jsonValue(text []byte, name, opening string) []byte {
	for range maxNames {
		_, rest, _ := bytes.Cut(text, []byte(`"`+name+`"`))
		value, isName := bytes.CutPrefix(bytes.TrimLeft(rest, space), []byte(":"))
		value = bytes.TrimLeft(value, space)
		if isName && len(value) > 0 && strings.IndexByte(opening, value[0]) >= 0 {
			return value
		}
		text = rest
	}
	return nil
}

// jsonText returns the string that the member has.
func jsonText(text []byte, name string) (s string) {
	raw, _, _ := cutString(jsonValue(text, name, `"`))
	if !bytes.Contains(raw, []byte(`\`)) {
		return string(raw)
	}
	_ = json.Unmarshal(slices.Concat([]byte(`"`), raw, []byte(`"`)), &s) // nothing, if it is broken
	return s
}

// jsonSeconds returns the time in seconds that the member has, or 0.
func jsonSeconds(text []byte, name string) int64 {
	value := jsonValue(text, name, "0123456789")
	if end := bytes.IndexAny(value, ",}"+space); end >= 0 {
		value = value[:end]
	}
	if seconds, err := strconv.ParseFloat(string(value), 64); err == nil && seconds < 1<<40 {
		return int64(seconds)
	}
	return 0
}

// space is what JSON calls so.
const space = " \t\r\n"

// cutString returns the JSON string that text begins with, as it is written, and what follows it.
func cutString(text []byte) (s, rest []byte, ok bool) {
	text, ok = bytes.CutPrefix(bytes.TrimLeft(text, space), []byte(`"`))
	for i := 0; ok && i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++ // what follows does not end it
		case '"':
			return text[:i], text[i+1:], true
		}
	}
	return nil, nil, false
}

// afterValue returns what follows the JSON value that text begins with, which is no string.
func afterValue(text []byte) []byte {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			_, rest, _ := cutString(text[i:])
			i = len(text) - len(rest) - 1
		case c == '[' || c == '{':
			depth++
		case depth == 0 && (c == ',' || c == ']' || c == '}'):
			return text[i:]
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}
