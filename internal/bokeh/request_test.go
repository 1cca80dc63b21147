// This file tests the reading, making and verifying of session ids, stamps and tokens.

package bokeh

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

func TestReadToken(t *testing.T) {
	for name, tc := range bokehtest.Tokens(t) {
		t.Run(name, func(t *testing.T) {
			c := ReadToken(tc.Token, bokehtest.Ring)
			if c.ID != tc.ID || c.Stamp != tc.Stamp {
				t.Errorf("readToken = id %.60q, stamp %q; want %.60q, %q", c.ID, c.Stamp, tc.ID, tc.Stamp)
			}
		})
	}
}

// A zip bomb in a token must not cost more than the bound says.
func TestReadTokenIsBounded(t *testing.T) {
	bomb := bokehtest.Tokens(t)["packed is a bomb"].Token
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ReadToken(bomb, bokehtest.Ring)
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(16*maxPackedLen); got > limit {
		t.Errorf("reading a bomb allocates %d bytes, want at most %d", got, limit)
	}
}

// emptyBlocks makes a token of about the given length, in which is packed nothing: each block is a new Huffman code
// and its end. Codes of up to 15 bits make the dearest tables.
func emptyBlocks(size int) string {
	var zipped []byte
	acc, n := uint64(0), 0
	put := func(v uint64, width int) {
		for acc, n = acc|v<<n, n+width; n >= 8; acc, n = acc>>8, n-8 {
			zipped = append(zipped, byte(acc))
		}
	}
	put(0x9c78, 16) // the header of zlib
	for len(zipped) < size/16*9 {
		put(0b100, 3) // one of several blocks, with a code of its own
		put(0, 5+5)   // for 257 symbols and one distance
		put(15, 4)    // as which 19 lengths are told, in a code in turn:
		for _, length := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
			switch length {
			case 16, 17:
				put(0, 3)
			case 18, 0:
				put(5, 3)
			default:
				put(4, 3)
			}
		}
		told := func(length int) { put(uint64(bits.Reverse8(uint8(length-1))>>4), 4) }
		for length := 1; length <= 15; length++ {
			told(length) // of the symbols 0 to 14
		}
		for _, zeros := range []int{138, 256 - 15 - 138} {
			put(0b11111, 5)
			put(uint64(zeros-11), 7)
		}
		told(15)         // of the end
		told(1)          // of the distance
		put(1<<15-1, 15) // the end
	}
	return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id":"x","__bk__zlib_":%q}`, base64url.EncodeToString(zipped)))
}

func FuzzReadToken(f *testing.F) {
	for _, tc := range bokehtest.Tokens(f) {
		if len(tc.Token) <= maxTokenLen {
			f.Add(tc.Token)
		}
	}
	f.Fuzz(wantReadRight)
}

// wantReadRight reads a token, and checks that what is found in it is one of ours.
func wantReadRight(t *testing.T, token string) {
	t.Helper()
	c := ReadToken(token, bokehtest.Ring)
	if c.Stamp == "" {
		return
	}
	if tg, k, ok := bokehtest.Ring.Verify(c.Stamp); !ok || tg != c.Tag || k != c.Key {
		t.Errorf("the stamp %q of token %q is not one of ours", c.Stamp, token)
	}
	if c.ID == "" {
		t.Errorf("a stamp without an id, from token %q", token)
	}
}

// A token may break off anywhere.
func TestTokenIsCut(t *testing.T) {
	for _, tc := range bokehtest.Tokens(t) {
		for i := range min(len(tc.Token), 2000) {
			wantReadRight(t, tc.Token[:i])
		}
	}
}

// What was packed is found again, whatever stands in it.
func FuzzPackedHeaders(f *testing.F) {
	f.Add("Accept", "*/*", "Host", "h")
	f.Add(`"`, `","`+StampHeader+`":"`, `\`, `\\"`)
	f.Add("headers", `"headers": {`, "\x00", "}")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		want := map[string]string{name1: value1, name2: value2}
		got := map[string]string{}
		in := new(inflater)
		for _, text := range []string{"garbage", bokehtest.AsJSON(t, map[string]any{"cookies": want, "headers": want})} {
			for name, value := range packedHeaders(in.inflate([]byte(bokehtest.Pack(t, text)))) {
				var pair [2]string
				if err := json.Unmarshal(fmt.Appendf(nil, `["%s","%s"]`, name, value), &pair); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				got[pair[0]] = pair[1]
			}
		}
		var clean map[string]string // what no JSON can hold is replaced
		if err := json.Unmarshal([]byte(bokehtest.AsJSON(t, want)), &clean); err != nil || !maps.Equal(got, clean) {
			t.Errorf("packed %q, found %q", clean, got)
		}
	})
}

// FuzzReadClaim looks for requests that panic, and for a client that names an upstream.
func FuzzReadClaim(f *testing.F) {
	for _, tc := range bokehtest.Tokens(f) {
		if len(tc.Token) <= maxTokenLen {
			f.Add("GET", "/app/ws", "", "websocket", "bokeh, "+tc.Token, "")
			f.Add("GET", "/app", "bokeh-token="+tc.Token, "", "", "")
		}
	}
	f.Add("GET", "/app", "bokeh-session-id="+stamp.NewKey([]byte("third")).Stamp(stamp.Tag{}), "", "", "")
	f.Add("GET", "/app/autoload.js", "bokeh-session-id=a&bokeh-session-id=+b+&bokeh%2Dsession-id=%zz", "", "", "x")
	f.Fuzz(func(t *testing.T, method, path, query, upgrade, protocol, id string) {
		r := &http.Request{Method: method, Header: http.Header{}, URL: &url.URL{Path: path, RawQuery: query}}
		r.Header.Set("Upgrade", upgrade)
		r.Header.Set("Sec-WebSocket-Protocol", protocol)
		r.Header.Set(SessionIDHeader, id)
		c := ReadRequest(r, bokehtest.Ring)
		if c.Kind == Socket && c.ID == "" {
			t.Error("a socket without an id")
		}
		if c.Unknown && (c.Stamp != "" || c.Kind == Other) {
			t.Errorf("an unknown stamp in %+v", c)
		}
		if c.Stamp == "" {
			return
		}
		if _, _, ok := bokehtest.Ring.Verify(c.Stamp); !ok {
			t.Errorf("the stamp %q is not one of ours", c.Stamp)
		}
	})
}

func TestSubprotocolToken(t *testing.T) {
	for name, tc := range map[string]struct {
		lines []string
		want  string
	}{
		"as browsers write it":  {[]string{"bokeh, tok"}, "tok"},
		"no space":              {[]string{"bokeh,tok"}, "tok"},
		"spaces":                {[]string{" bokeh ,  tok "}, "tok"},
		"two lines":             {[]string{"bokeh", "tok"}, "tok"},
		"three":                 {[]string{"bokeh, tok, more"}, ""},
		"three lines":           {[]string{"bokeh", "tok", "more"}, ""},
		"one":                   {[]string{"bokeh"}, ""},
		"nothing behind":        {[]string{"bokeh,"}, ""},
		"another protocol":      {[]string{"graphql-ws, tok"}, ""},
		"the wrong way round":   {[]string{"tok, bokeh"}, ""},
		"none":                  {nil, ""},
		"a comma of a stranger": {[]string{",,"}, ""},
	} {
		got, ok := SubprotocolToken(http.Header{"Sec-Websocket-Protocol": tc.lines})
		if got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, tc.want)
		}
	}
	if got, _ := SubprotocolToken(http.Header{"Sec-WebSocket-Protocol": {"bokeh, tok"}}); got != "tok" {
		t.Errorf("with Caddy's case: %q", got)
	}
}

func TestKindOf(t *testing.T) {
	for target, want := range map[string]Kind{
		"/":                             Page,
		"/app":                          Page,
		"/app/":                         Page,
		"/prefix/app?x=1":               Page,
		"/sales.v2":                     Page,
		"/app/autoload.js":              Page,
		"/app/embed.json":               Page,
		"/static.app":                   Page,
		"/components":                   Page,
		"/apps/static/":                 Page,
		"/rest/session_info":            Page,
		"/app/metadata":                 MaybePage,
		"/favicon.ico":                  MaybePage,
		"/liveness":                     MaybePage,
		"/login":                        MaybePage,
		"/logout":                       MaybePage,
		"/static/js/bokeh.min.js":       MaybePage,
		"/app/static/logo":              MaybePage,
		"/static/extensions/panel/x.js": MaybePage,
		"/components/mod/cls/attr/x":    MaybePage,
		"/app/logo.PNG":                 MaybePage,
		"/app/bundle.js":                MaybePage,
	} {
		if got := kindOf(httptest.NewRequest(http.MethodGet, target, nil)); got != want {
			t.Errorf("GET %s: %v, want %v", target, got, want)
		}
	}
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodOptions, http.MethodConnect} {
		if kindOf(httptest.NewRequest(method, "/app", nil)) != Other {
			t.Errorf("%s is taken for a page request", method)
		}
	}
	for dest, want := range map[string][2]Kind{
		"document": {Page, MaybePage},
		"iframe":   {Page, MaybePage},
		"empty":    {Page, MaybePage},
		"script":   {Other, Other},
		"style":    {Other, Other},
		"image":    {Other, Other},
		"font":     {Other, Other},
	} {
		for i, target := range []string{"/app", "/login"} {
			r := httptest.NewRequest(http.MethodGet, target, nil)
			r.Header.Set("Sec-Fetch-Dest", dest)
			if got := kindOf(r); got != want[i] {
				t.Errorf("Sec-Fetch-Dest %s of %s: %v, want %v", dest, target, got, want[i])
			}
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/app/autoload.js", nil)
	r.Header.Set("Sec-Fetch-Dest", "script")
	if kindOf(r) != Page {
		t.Error("autoload.js loaded as a script is not taken for a page request")
	}
	// curl --http2 and Java's client offer this with every request, and Bokeh answers with the page.
	r = httptest.NewRequest(http.MethodGet, "/app", nil)
	r.Header.Set("Upgrade", "h2c")
	if kindOf(r) != Page {
		t.Error("the offer of HTTP/2 makes no other request of it")
	}
}

func TestReadPage(t *testing.T) {
	ours := bokehtest.Stamp("a:80")
	for name, tc := range map[string]struct {
		query, header string
		id, stamp     string
		gaveID        bool
	}{
		"nothing":             {},
		"other arguments":     {query: "a=b&session-id=x"},
		"id in the query":     {query: "bokeh-session-id=x", id: "x", gaveID: true},
		"ours in the query":   {query: "bokeh-session-id=" + ours, id: ours, stamp: ours, gaveID: true},
		"repeated, stripped":  {query: "bokeh-session-id=a&bokeh-session-id=+b%20", id: "b", gaveID: true},
		"encoded name":        {query: "bokeh%2Dsession-id=x", id: "x", gaveID: true},
		"not decodable":       {query: "bokeh-session-id=%zz", id: "%zz", gaveID: true},
		"semicolon":           {query: "bokeh-session-id=a;b", id: "a;b", gaveID: true},
		"empty":               {query: "bokeh-session-id=", gaveID: true},
		"id in the header":    {header: "x", id: "x", gaveID: true},
		"two header lines":    {header: "x|y", id: "x,y", gaveID: true},
		"header and query":    {query: "bokeh-session-id=q", header: "h", id: "h", gaveID: true},
		"token":               {query: "bokeh-token=" + bokehtest.Token(t, ours, nil), id: ours, stamp: ours, gaveID: true},
		"token nobody reads":  {query: "bokeh-token=%%%", gaveID: true},
		"token and id":        {query: "bokeh-token=" + bokehtest.Token(t, ours, nil) + "&bokeh-session-id=x", id: "x", gaveID: true},
		"token with a packed": {query: "bokeh-token=" + bokehtest.Token(t, "x", map[string]any{StampHeader: ours}), id: "x", stamp: ours, gaveID: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/app", nil)
			r.URL.RawQuery = tc.query
			if tc.header != "" {
				r.Header[SessionIDHeader] = strings.Split(tc.header, "|")
			}
			c := ReadRequest(r, bokehtest.Ring)
			if c.Kind != Page || c.ID != tc.id || c.Stamp != tc.stamp || c.GaveID != tc.gaveID {
				t.Errorf("readClaim = %+v", c)
			}
		})
	}
}

// request returns a GET of a path, with headers as "Name: value".
func request(target string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	return r
}

// A socket is one of Bokeh's by its path, its upgrade, and a token that can be read.
func TestReadSocket(t *testing.T) {
	ours, foreign := bokehtest.Stamp("a:80"), stamp.NewKey([]byte("third")).Stamp(stamp.Tag{})
	protocol := "Sec-Websocket-Protocol: bokeh, "
	for name, tc := range map[string]struct {
		r    *http.Request
		want Request
	}{
		"ours":          {request("/app/ws", "Upgrade: websocket", protocol+bokehtest.Token(t, ours, nil)), Request{Kind: Socket, ID: ours, Stamp: ours}},
		"upper case":    {request("/app/ws", "Upgrade: WebSocket", protocol+bokehtest.Token(t, ours, nil)), Request{Kind: Socket, ID: ours, Stamp: ours}},
		"foreign":       {request("/app/ws", "Upgrade: websocket", protocol+bokehtest.Token(t, "x", nil)), Request{Kind: Socket, ID: "x"}},
		"another key's": {request("/app/ws", "Upgrade: websocket", protocol+bokehtest.Token(t, foreign, nil)), Request{Kind: Socket, ID: foreign, Unknown: true}},
		"not readable":  {request("/app/ws", "Upgrade: websocket", protocol+"tok"), Request{}},
		"no token":      {request("/app/ws", "Upgrade: websocket"), Request{}},
		// What is no socket of Bokeh's may be one of the app's own, or a page.
		"another path": {request("/app/live", "Upgrade: websocket", protocol+bokehtest.Token(t, ours, nil)), Request{Kind: MaybePage}},
		"no upgrade":   {request("/app/ws", protocol+bokehtest.Token(t, ours, nil)), Request{LacksUpgrade: true}},
		// A request that is no page says by our own header whose file it wants.
		"a file, stamped":                 {request("/app/static/x.js", StampHeader+": "+ours), Request{Kind: MaybePage, Stamp: ours}},
		"a script, stamped":               {request("/app", "Sec-Fetch-Dest: script", StampHeader+": "+ours), Request{Kind: Other, Stamp: ours}},
		"a file of a session, stamped":    {request("/app/x.js?bokeh-session-id="+ours, StampHeader+": "+bokehtest.Stamp("b:80")), Request{Kind: MaybePage, ID: ours, GaveID: true, Stamp: ours}},
		"a file, stamped by somebody":     {request("/app/x.js", StampHeader+": "+foreign), Request{Kind: MaybePage, Unknown: true}},
		"a page that says it is stamped":  {request("/app", StampHeader+": "+ours), Request{Kind: Page}},
		"a page of a session of another":  {request("/app?bokeh-session-id=" + foreign), Request{Kind: Page, ID: foreign, GaveID: true, Unknown: true}},
		"a page with a token of another":  {request("/app?bokeh-token=" + bokehtest.Token(t, foreign, nil)), Request{Kind: Page, ID: foreign, GaveID: true, Unknown: true}},
		"another key's, and ours beside":  {request("/app/ws", "Upgrade: websocket", protocol+bokehtest.Token(t, foreign, map[string]any{StampHeader: ours})), Request{Kind: Socket, ID: foreign, Stamp: ours}},
		"another key's, and rubbish then": {request("/app/ws", "Upgrade: websocket", protocol+bokehtest.Token(t, foreign, map[string]any{StampHeader: "x"})), Request{Kind: Socket, ID: foreign, Unknown: true}},
	} {
		got := ReadRequest(tc.r, bokehtest.Ring)
		if got.Kind != tc.want.Kind || got.ID != tc.want.ID || got.Stamp != tc.want.Stamp || got.GaveID != tc.want.GaveID ||
			got.Unknown != tc.want.Unknown || got.LacksUpgrade != tc.want.LacksUpgrade {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// A websocket that has lost its Upgrade header on the way is known by what no page's script can set.
func TestLacksUpgrade(t *testing.T) {
	post := request("/app/ws", "Sec-Websocket-Key: x")
	post.Method = http.MethodPost
	for name, tc := range map[string]struct {
		r    *http.Request
		want bool
	}{
		"a key":        {request("/app/ws", "Sec-Websocket-Key: x"), true},
		"a version":    {request("/app/ws", "Sec-Websocket-Version: 13"), true},
		"a protocol":   {request("/app/ws", "Sec-Websocket-Protocol: bokeh, x"), true},
		"none":         {request("/app/ws"), false},
		"an upgrade":   {request("/app/ws", "Sec-Websocket-Key: x", "Upgrade: websocket"), false},
		"another path": {request("/app/wss", "Sec-Websocket-Key: x"), false},
		"no GET":       {post, false},
	} {
		if got := ReadRequest(tc.r, bokehtest.Ring).LacksUpgrade; got != tc.want {
			t.Errorf("%s: it lacks its upgrade: %v, want %v", name, got, tc.want)
		}
	}
}

// A form may name a session, so no id may be added to a request that brings one; a body of its own may fail for its own reasons.
func TestBodies(t *testing.T) {
	for name, tc := range map[string]struct {
		content      string
		length       int64
		version      int
		form, brings bool
	}{
		"none":                   {"", 0, 1, false, false},
		"JSON":                   {"application/json", 5, 1, false, true},
		"a form":                 {"application/x-www-form-urlencoded; charset=utf-8", 5, 1, true, true},
		"parts":                  {"multipart/form-data; boundary=x", 5, 1, true, true},
		"an empty form":          {"application/x-www-form-urlencoded", 0, 1, false, false},
		"a form of any length":   {"application/x-www-form-urlencoded", -1, 1, true, true},
		"over HTTP/2":            {"multipart/form-data", -1, 2, true, true},
		"over HTTP/3":            {"multipart/form-data", -1, 3, true, false},
		"over HTTP/3, of length": {"multipart/form-data", 5, 3, true, true},
	} {
		r := request("/app", "Content-Type: "+tc.content)
		r.ContentLength, r.ProtoMajor = tc.length, tc.version
		if got := ReadRequest(r, bokehtest.Ring).GaveID; got != tc.form {
			t.Errorf("%s: it may bring an id: %v, want %v", name, got, tc.form)
		}
		if got := BringsBody(r); got != tc.brings {
			t.Errorf("%s: it has a body: %v, want %v", name, got, tc.brings)
		}
	}
}

// These endings are those of files that dashboards load.
func TestFileEndings(t *testing.T) {
	const endings = ".js .mjs .css .map .json .wasm .png .jpg .jpeg .gif .svg .ico .webp .avif .woff .woff2 .ttf .otf .eot" +
		" .txt .xml .csv .pdf .zip .gz .mp3 .mp4 .webm"
	for ending := range strings.FieldsSeq(endings) {
		for _, e := range []string{ending, strings.ToUpper(ending)} {
			if !HasFileEnding("/app/x"+e) || HasFileEnding("/app"+e+"/x") || HasFileEnding("/app/x"+e+"2x") {
				t.Errorf("%s is no ending of a file, or is one elsewhere", e)
			}
		}
	}
	if HasFileEnding("/app") || HasFileEnding("/app.v2") || HasFileEnding("") {
		t.Error("an app is taken for a file")
	}
}

// Bokeh refuses a token that is older than it says itself.
func TestExpires(t *testing.T) {
	for expiry, want := range map[string]int64{
		`1795470935`: 1795470935, `1795470935.9`: 1795470935, `1.795470935e9 `: 1795470935, `0`: 0, `1099511627775`: 1099511627775,
		`1099511627776`: 0, `1e300`: 0, `-5`: 0, `"1795470935"`: 0, `null`: 0, `[1]`: 0, `1x`: 0,
	} {
		for _, text := range []string{`{"session_id":"x","session_expiry":` + expiry + `}`, `{"session_expiry":` + expiry + `, "session_id":"x"}`} {
			if got := ReadToken(base64url.EncodeToString([]byte(text)), bokehtest.Ring).Expires; got != want {
				t.Errorf("%s: it expires at %d, want %d", text, got, want)
			}
		}
	}
	if got := ReadToken(base64url.EncodeToString([]byte(`{"session_id":"x"}`)), bokehtest.Ring).Expires; got != 0 {
		t.Errorf("a token that does not say expires at %d", got)
	}
	for expires, want := range map[int64]bool{0: false, 99: true, 100: false, 101: false} {
		r := Request{Expires: expires}
		if got := r.IsExpired(time.Unix(100, 999)); got != want {
			t.Errorf("a token that expires at %d is refused at 100: %v, want %v", expires, got, want)
		}
	}
}

// What is read of a token is bounded, and what is within the bounds is read.
func TestBoundsOfTokens(t *testing.T) {
	good := bokehtest.Stamp("a:80")
	forged := good[:40] + "AAAA" + good[44:]
	headers := func(before int, name, value string) string {
		text := `{"headers":{` + strings.Repeat(fmt.Sprintf("%q:%q,", name, value), before) + fmt.Sprintf("%q:%q}}", StampHeader, good)
		return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id":"x","__bk__zlib_":%q}`, bokehtest.Pack(t, text)))
	}
	named := func(before int) string {
		return base64url.EncodeToString([]byte(`{"a":["session_id"` + strings.Repeat(`,"session_id"`, before-1) + `],"session_id":"` + good + `"}`))
	}
	whole := base64url.EncodeToString(fmt.Appendf(nil, `{"session_id":%q}`, good))
	for name, tc := range map[string]struct {
		token string
		want  bool
	}{
		"as many headers as there may be": {headers(maxPackedHeaders-1, "A", "b"), true},
		"one more":                        {headers(maxPackedHeaders, "A", "b"), false},
		"as many stamps as there may be":  {headers(maxPackedStamps-1, StampHeader, forged), true},
		"one more stamp":                  {headers(maxPackedStamps, StampHeader, forged), false},
		"ids are no stamps":               {headers(maxPackedStamps, SessionIDHeader, forged), true},
		"as many names as there may be":   {named(maxNames - 1), true},
		"one more name":                   {named(maxNames), false},
		"as long as it may be":            {whole + "." + strings.Repeat("s", maxTokenLen-len(whole)-1), true},
		"one letter more":                 {whole + "." + strings.Repeat("s", maxTokenLen-len(whole)), false},
	} {
		if got := ReadToken(tc.token, bokehtest.Ring).Stamp == good; got != tc.want {
			t.Errorf("%s: the stamp is found: %v, want %v", name, got, tc.want)
		}
	}
	ids := func(before int) string {
		text := `{"headers":{` + strings.Repeat(fmt.Sprintf("%q:%q,", SessionIDHeader, forged), before) + fmt.Sprintf("%q:%q}}", SessionIDHeader, good)
		return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id":"x","__bk__zlib_":%q}`, bokehtest.Pack(t, text)))
	}
	for before, want := range map[int]bool{maxPackedStamps - 1: true, maxPackedStamps: false} {
		if got := ReadToken(ids(before), bokehtest.Ring).Stamp == good; got != want {
			t.Errorf("behind %d other ids the stamp is found: %v, want %v", before, got, want)
		}
	}
}

// Where the first stamp names nobody here the others are left to try, and the packed ones come before the id.
func TestOtherStamps(t *testing.T) {
	a, b, c := bokehtest.Stamp("a:80"), bokehtest.Stamp("b:80"), bokehtest.Stamp("c:80")
	token := bokehtest.Token(t, a, map[string]any{StampHeader: b})
	r := ReadToken(token, bokehtest.Ring)
	if r.Stamp != a || len(r.Others) != 0 {
		t.Errorf("of an id of ours: stamp %q, others %q", r.Stamp, r.Others)
	}
	r.ReadPackedStamp(bokehtest.Ring)
	if r.Stamp != b || r.Tag != bokehtest.Ring[0].Tag("b:80") || !slices.Equal(r.Others, []string{a}) {
		t.Errorf("the packed one: stamp %q, others %q", r.Stamp, r.Others)
	}
	r = ReadToken(bokehtest.Token(t, "x", map[string]any{StampHeader: b, SessionIDHeader: c}), bokehtest.Ring)
	if r.Stamp != b || !slices.Equal(r.Others, []string{c}) {
		t.Errorf("of two packed: stamp %q, others %q", r.Stamp, r.Others)
	}
	if !r.TryAll(r.Others, bokehtest.Ring) || r.Stamp != c || len(r.Others) != 0 {
		t.Errorf("the other one: stamp %q, others %q", r.Stamp, r.Others)
	}
	if r.TryAll([]string{"x"}, bokehtest.Ring) || r.Stamp != c || r.TryAll(nil, bokehtest.Ring) {
		t.Error("there is another one")
	}
	r = Request{Others: []string{a, b}}
	if r.TryAll([]string{"x"}, bokehtest.Ring) || len(r.Others) != 0 {
		t.Errorf("where none is ours these are left: %q", r.Others)
	}
}

// What follows a name without a colon is no header, and who looks for headers may stop at any.
func TestPackedHeaders(t *testing.T) {
	for text, want := range map[string]int{
		`{"headers":{"A":"b","C":"d","E":"f"}}`: 2,
		`{"headers":{"A" "b","C":"d"}}`:         0,
		`{"headers":{"A":"b" "C":"d"}}`:         1,
		`{"headers":{A:"b","C":"d"}}`:           0,
	} {
		n := 0
		for range packedHeaders([]byte(text)) {
			if n++; n == 2 {
				break
			}
		}
		if n != want {
			t.Errorf("%s: %d headers are found, want %d", text, n, want)
		}
	}
}

// What a socket costs whose token has 12 KB, as that of a browser with 8 KB of cookies; and the most that any
// can cost.
func BenchmarkReadToken(b *testing.B) {
	noise := make([]byte, 0, 35<<10)
	for i := 0; len(noise) < 34<<10; i++ {
		noise = append(noise, bokehtest.Ring[0].Signature(fmt.Sprint(i))...)
	}
	cookies, most := string(noise[:8<<10]), string(noise)+strings.Repeat(string(noise[10<<10:]), 9)
	token := func(id string, headers map[string]any, later string) string {
		payload := bokehtest.AsJSON(b, map[string]any{"headers": headers, "later": later})
		return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id": %q, "session_expiry": 1, "__bk__zlib_": %q}`, id, bokehtest.Pack(b, payload)))
	}
	packed := func(text string) string {
		return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id": "x", "__bk__zlib_": %q}`, bokehtest.Pack(b, text)))
	}
	forged := stamp.NewKey([]byte("another")).Stamp(stamp.Tag{})
	for _, bm := range []struct {
		name, token string
		found       bool
	}{
		{"ours", token(bokehtest.Stamp("a:80"), map[string]any{"Accept": "*/*"}, cookies), true},
		{"beside", token("x", map[string]any{"Accept": "*/*", StampHeader: bokehtest.Stamp("a:80")}, cookies), true},
		{"behind", token("x", map[string]any{"Accept": cookies, StampHeader: bokehtest.Stamp("a:80")}, ""), true},
		{"bomb", token("x", map[string]any{"Accept": strings.Repeat("0", 4<<20)}, ""), false},
		{"most", token("x", map[string]any{"Accept": most}, ""), false},
		{"spaces", packed(strings.Repeat(" ", 300<<10)), false},
		{"names", packed(strings.Repeat(`"headers"`, 30<<10)), false},
		{"forged", packed(`"headers":{` + strings.Repeat(`"`+StampHeader+`":"`+forged+`",`, 3000)), false},
		{"empty", packed(`"headers":{` + strings.Repeat(`"":"",`, 40<<10)), false},
		{"escapes", packed(`"headers":{"A":"` + strings.Repeat(`\"`, 120<<10)), false},
		{"nested", packed(`"headers":{"A":` + strings.Repeat(`[`, 240<<10)), false},
		{"blocks", emptyBlocks(63 << 10), false},
		{"members", base64url.EncodeToString([]byte(`{"session_id":"x"` + strings.Repeat(`,"":0`, 9000))), false},
		{"id", base64url.EncodeToString([]byte(`{"session_id":"` + strings.Repeat(`\"`, 24000) + `"}`)), false},
		{"expiry", base64url.EncodeToString([]byte(`{"session_id":"x","session_expiry":` + strings.Repeat(`1`, 48000) + `}`)), false},
		{"clear", base64url.EncodeToString([]byte(`{"session_id":"x"` + strings.Repeat(`"__bk__zlib_"   `, 3000))), false},
	} {
		if len(bm.token) > maxTokenLen {
			b.Fatal("not read at all: ", bm.name)
		}
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			b.ReportMetric(float64(len(bm.token)), "B/token")
			for b.Loop() {
				if found := ReadToken(bm.token, bokehtest.Ring).Stamp != ""; found != bm.found {
					b.Fatal("found a stamp: ", found)
				}
			}
		})
	}
}
