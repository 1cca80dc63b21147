// This file holds what a token says, by which a websocket names its session.

package bokeh

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"

	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

const (
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

// ReadToken reads the session id of a Bokeh token and the stamp it brings back: the id itself,
// or one of the page request's headers that Bokeh packed into the token. A token is
// base64url(JSON), in signed modes followed by a dot and its signature, which is Bokeh's to check.
func ReadToken(token string, ks stamp.Keyring) Request {
	text := tokenText(token)
	c := Request{ID: jsonText(text, "session_id"), Expires: jsonSeconds(text, "session_expiry")}
	if c.ID == "" {
		return Request{}
	}
	c.token = token
	if !c.try(c.ID, ks) {
		stamps, ids := packedStamps(text)
		c.TryAll(append(stamps, ids...), ks)
	}
	return c
}

// ReadPackedStamp takes the stamp in the token's packed headers for that of the request, if we have put one
// there: a client that named a session of ours was then sent elsewhere. Or a Caddy behind this one has, with the
// same key, and that names nobody here.
func (c *Request) ReadPackedStamp(ks stamp.Keyring) {
	stamps, _ := packedStamps(tokenText(c.token))
	c.TryAll(append(stamps, c.ID), ks)
}

// TryAll takes the first of them that is one of ours, and says whether there is one.
func (c *Request) TryAll(stamps []string, ks stamp.Keyring) bool {
	c.Others = nil
	for i, s := range stamps {
		if c.try(s, ks) {
			c.Others = stamps[i+1:]
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
		case bytes.EqualFold(name, []byte(StampHeader)) && len(stamps) < maxPackedStamps:
			stamps = append(stamps, string(value))
		case bytes.EqualFold(name, []byte(SessionIDHeader)) && len(ids) < maxPackedStamps:
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
