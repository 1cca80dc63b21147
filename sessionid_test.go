// This file tests the reading, making and verifying of session ids, stamps and tokens.

package caddybokeh

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

var testRing = stamp.Keyring{stamp.NewKey([]byte("first key")), stamp.NewKey([]byte("second key"))}

// stampOf makes a stamp for the upstream of that name by the first key of the test ring.
func stampOf(name string) string { return testRing[0].Stamp(testRing[0].Tag(name)) }

// makeToken makes a token as Bokeh does: the id in clear, all else zipped.
func makeToken(t testing.TB, id any, headers map[string]any) string {
	t.Helper()
	payload := fmt.Sprintf(`{"session_id": %s, "session_expiry": 1795470935`, asJSON(t, id))
	if headers != nil {
		payload += fmt.Sprintf(`, "__bk__zlib_": %q`, pack(t, asJSON(t, map[string]any{"headers": headers, "cookies": map[string]any{}})))
	}
	return base64url.EncodeToString([]byte(payload + "}"))
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pack zips s as Bokeh does for a token.
func pack(t testing.TB, s string) string {
	t.Helper()
	return packBehind(t, 0, s)
}

// packBehind zips s behind blocks that hold nothing.
func packBehind(t testing.TB, blocks int, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	for range blocks {
		if err := z.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := z.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64url.EncodeToString(b.Bytes())
}

// tokenCases are tokens and what is read of them. They seed the fuzz target as well.
func tokenCases(t testing.TB) map[string]struct{ token, id, stamp string } {
	ours, beside := stampOf("a:80"), stampOf("b:80")
	forged := beside[:40] + "AAAA" + beside[44:]
	raw := func(payload string) string { return base64url.EncodeToString([]byte(payload)) }
	packed := func(json string) string {
		return raw(fmt.Sprintf(`{"session_id":"x","__bk__zlib_":%q}`, pack(t, json)))
	}
	behind := func(blocks int) string {
		return raw(fmt.Sprintf(`{"session_id":"x","__bk__zlib_":%q}`, packBehind(t, blocks, `{"headers":{"`+stampHeader+`":"`+beside+`"}}`)))
	}
	type c = struct{ token, id, stamp string }
	return map[string]c{
		"ours":                     {makeToken(t, ours, nil), ours, ours},
		"ours, signed":             {makeToken(t, ours, nil) + "." + strings.Repeat("s", 43), ours, ours},
		"ours, with padding":       {makeToken(t, ours, nil) + "==", ours, ours},
		"ours before rubbish":      {makeToken(t, ours, nil)[:160] + "!!!", ours, ours},
		"foreign":                  {makeToken(t, "x", nil), "x", ""},
		"foreign, stamp beside":    {makeToken(t, "x", map[string]any{"Host": "h", stampHeader: beside}), "x", beside},
		"stamp in lower case":      {makeToken(t, "x", map[string]any{strings.ToLower(stampHeader): beside}), "x", beside},
		"reused, id in the page's": {makeToken(t, "x", map[string]any{sessionIDHeader: ours}), "x", ours},
		"ours before the page's":   {makeToken(t, "x", map[string]any{stampHeader: beside, sessionIDHeader: ours}), "x", beside},
		"forged, then good":        {makeToken(t, "x", map[string]any{strings.ToUpper(stampHeader): forged, stampHeader: beside}), "x", beside},
		"forged":                   {makeToken(t, "x", map[string]any{stampHeader: forged, sessionIDHeader: forged}), "x", ""},
		"stamp is a number":        {makeToken(t, "x", map[string]any{stampHeader: 12, sessionIDHeader: []string{ours}}), "x", ""},
		"own tag forged":           {makeToken(t, forged, nil), forged, ""},
		"id after the rest":        {raw(`{"__bk__zlib_":"` + pack(t, `{"headers":{"`+stampHeader+`":"`+beside+`"}}`) + `","session_id":"x"}`), "x", beside},
		"control characters":       {makeToken(t, "a\x00\n", nil), "a\x00\n", ""},
		"empty":                    {"", "", ""},
		"a dot":                    {".", "", ""},
		"not base64":               {"%%%", "", ""},
		"not JSON":                 {raw("session"), "", ""},
		"a JSON array":             {raw(`["session_id"]`), "", ""},
		"cut JSON":                 {raw(`{"session_id":"x"`), "x", ""},
		"cut in the id":            {raw(`{"session_id":"x`), "", ""},
		"broken escape":            {raw(`{"session_id":"\x"}`), "", ""},
		"no id":                    {raw(`{"session_expiry":1}`), "", ""},
		"empty id":                 {makeToken(t, "", nil), "", ""},
		"number id":                {makeToken(t, 7, nil), "", ""},
		"null id":                  {makeToken(t, nil, nil), "", ""},
		"object id":                {makeToken(t, map[string]any{"a": 1}, nil), "", ""},
		"1 MB id":                  {makeToken(t, strings.Repeat("x", 1<<20), nil), "", ""},
		"oversized":                {makeToken(t, ours, nil) + "." + strings.Repeat("s", maxTokenLen), "", ""},
		"packed is a number":       {raw(`{"session_id":"x","__bk__zlib_":1}`), "x", ""},
		"packed is empty":          {raw(`{"session_id":"x","__bk__zlib_":""}`), "x", ""},
		"packed twice":             {raw(fmt.Sprintf(`{"session_id":"x","__bk__zlib_":%q,"__bk__zlib_":%q}`, pack(t, `{"headers":{"`+stampHeader+`":"`+beside+`"}}`), pack(t, `{}`))), "x", beside},
		"packed in the id":         {raw(`{"session_id":"\"__bk__zlib_\":\"x"}`), `"__bk__zlib_":"x`, ""},
		"id twice":                 {raw(`{"session_id":"x","session_id":"y"}`), "x", ""},
		"packed id twice":          {packed(`{"headers":{"` + sessionIDHeader + `":"x","` + strings.ToLower(sessionIDHeader) + `":"` + ours + `"}}`), "x", ours},
		"stamp in a value":         {makeToken(t, "x", map[string]any{"A": `","` + stampHeader + `":"` + beside}), "x", ""},
		"stamp behind backslashes": {makeToken(t, "x", map[string]any{"A": `\\"\`, stampHeader: beside}), "x", beside},
		"stamp in a cookie":        {packed(`{"headers":{},"cookies":{"` + stampHeader + `":"` + beside + `"}}`), "x", ""},
		"stamp in no string":       {packed(`{"headers":{"A":{"` + stampHeader + `":"` + beside + `"}}}`), "x", ""},
		"stamp after no strings":   {packed(`{"headers":{"A":{"B":["}\"]"],"C":{}},"D":["x"],"E":null,"F": -1.5e3 ,"` + stampHeader + `":"` + beside + `"}}`), "x", beside},
		"stamp behind the headers": {packed(`{"headers":{"A":1},"` + stampHeader + `":"` + beside + `"}`), "x", ""},
		"headers are a string":     {packed(`{"headers":"{","headers":{"` + stampHeader + `":"` + beside + `"}}`), "x", beside},
		"headers come later":       {packed(`{"arguments":{"headers":["{"]},"headers":{"` + stampHeader + `":"` + beside + `"}}`), "x", beside},
		"spaces everywhere":        {packed(" { \"headers\" : {\n\"A\" : \"\" ,\t\"" + stampHeader + "\" : \"" + beside + "\" } } "), "x", beside},
		"60 KB before the stamp":   {makeToken(t, "x", map[string]any{"A": strings.Repeat("0", 60<<10), stampHeader: beside}), "x", beside},
		"packed is no base64":      {raw(`{"session_id":"x","__bk__zlib_":"%%"}`), "x", ""},
		"packed is no zlib":        {raw(`{"session_id":"x","__bk__zlib_":"AAAA"}`), "x", ""},
		"packed is no JSON":        {packed("headers"), "x", ""},
		"packed is cut":            {packed(`{"headers":{"` + stampHeader + `":"` + beside + `"`), "x", beside},
		"packed is cut before":     {packed(`{"headers":{"` + stampHeader + `":"` + beside), "x", ""},
		"packed has no headers":    {packed(`{"cookies":{}}`), "x", ""},
		"headers are a list":       {packed(`{"headers":["` + stampHeader + `"]}`), "x", ""},
		"packed is a bomb":         {packed(`{"cookies":"` + strings.Repeat("0", 4<<20) + `","headers":{"` + stampHeader + `":"` + beside + `"}}`), "x", ""},
		"packed in many blocks":    {behind(20), "x", beside},
		"packed in too many":       {behind(maxPackedBlocks), "x", ""},
		"deep":                     {raw(strings.Repeat(`{"a":`, 10000)), "", ""},
	}
}

func TestReadToken(t *testing.T) {
	for name, tc := range tokenCases(t) {
		t.Run(name, func(t *testing.T) {
			c := readToken(tc.token, testRing)
			if c.id != tc.id || c.stamp != tc.stamp {
				t.Errorf("readToken = id %.60q, stamp %q; want %.60q, %q", c.id, c.stamp, tc.id, tc.stamp)
			}
		})
	}
}

// A zip bomb in a token must not cost more than the bound says.
func TestReadTokenIsBounded(t *testing.T) {
	bomb := tokenCases(t)["packed is a bomb"].token
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	readToken(bomb, testRing)
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
	for _, tc := range tokenCases(f) {
		if len(tc.token) <= maxTokenLen {
			f.Add(tc.token)
		}
	}
	f.Fuzz(wantReadRight)
}

// wantReadRight reads a token, and checks that what is found in it is one of ours.
func wantReadRight(t *testing.T, token string) {
	t.Helper()
	c := readToken(token, testRing)
	if c.stamp == "" {
		return
	}
	if tg, k, ok := testRing.Verify(c.stamp); !ok || tg != c.tag || k != c.key {
		t.Errorf("the stamp %q of token %q is not one of ours", c.stamp, token)
	}
	if c.id == "" {
		t.Errorf("a stamp without an id, from token %q", token)
	}
}

// A token may break off anywhere.
func TestTokenIsCut(t *testing.T) {
	for _, tc := range tokenCases(t) {
		for i := range min(len(tc.token), 2000) {
			wantReadRight(t, tc.token[:i])
		}
	}
}

// What was packed is found again, whatever stands in it.
func FuzzPackedHeaders(f *testing.F) {
	f.Add("Accept", "*/*", "Host", "h")
	f.Add(`"`, `","`+stampHeader+`":"`, `\`, `\\"`)
	f.Add("headers", `"headers": {`, "\x00", "}")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		want := map[string]string{name1: value1, name2: value2}
		got := map[string]string{}
		in := new(inflater)
		for _, text := range []string{"garbage", asJSON(t, map[string]any{"cookies": want, "headers": want})} {
			for name, value := range packedHeaders(in.inflate([]byte(pack(t, text)))) {
				var pair [2]string
				if err := json.Unmarshal(fmt.Appendf(nil, `["%s","%s"]`, name, value), &pair); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				got[pair[0]] = pair[1]
			}
		}
		var clean map[string]string // what no JSON can hold is replaced
		if err := json.Unmarshal([]byte(asJSON(t, want)), &clean); err != nil || !maps.Equal(got, clean) {
			t.Errorf("packed %q, found %q", clean, got)
		}
	})
}

// FuzzReadClaim looks for requests that panic, and for a client that names an upstream.
func FuzzReadClaim(f *testing.F) {
	for _, tc := range tokenCases(f) {
		if len(tc.token) <= maxTokenLen {
			f.Add("GET", "/app/ws", "", "websocket", "bokeh, "+tc.token, "")
			f.Add("GET", "/app", "bokeh-token="+tc.token, "", "", "")
		}
	}
	f.Add("GET", "/app", "bokeh-session-id="+stamp.NewKey([]byte("third")).Stamp(stamp.Tag{}), "", "", "")
	f.Add("GET", "/app/autoload.js", "bokeh-session-id=a&bokeh-session-id=+b+&bokeh%2Dsession-id=%zz", "", "", "x")
	f.Fuzz(func(t *testing.T, method, path, query, upgrade, protocol, id string) {
		r := &http.Request{Method: method, Header: http.Header{}, URL: &url.URL{Path: path, RawQuery: query}}
		r.Header.Set("Upgrade", upgrade)
		r.Header.Set("Sec-WebSocket-Protocol", protocol)
		r.Header.Set(sessionIDHeader, id)
		c := readClaim(r, testRing)
		if c.kind == socket && c.id == "" {
			t.Error("a socket without an id")
		}
		if c.unknown && (c.stamp != "" || c.kind == other) {
			t.Errorf("an unknown stamp in %+v", c)
		}
		if c.stamp == "" {
			return
		}
		if _, _, ok := testRing.Verify(c.stamp); !ok {
			t.Errorf("the stamp %q is not one of ours", c.stamp)
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
		got, ok := subprotocolToken(http.Header{"Sec-Websocket-Protocol": tc.lines})
		if got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, tc.want)
		}
	}
	if got, _ := subprotocolToken(http.Header{"Sec-WebSocket-Protocol": {"bokeh, tok"}}); got != "tok" {
		t.Errorf("with Caddy's case: %q", got)
	}
}

func TestKindOf(t *testing.T) {
	for target, want := range map[string]kind{
		"/":                             pageRequest,
		"/app":                          pageRequest,
		"/app/":                         pageRequest,
		"/prefix/app?x=1":               pageRequest,
		"/sales.v2":                     pageRequest,
		"/app/autoload.js":              pageRequest,
		"/app/embed.json":               pageRequest,
		"/static.app":                   pageRequest,
		"/components":                   pageRequest,
		"/apps/static/":                 pageRequest,
		"/rest/session_info":            pageRequest,
		"/app/metadata":                 maybePage,
		"/favicon.ico":                  maybePage,
		"/liveness":                     maybePage,
		"/login":                        maybePage,
		"/logout":                       maybePage,
		"/static/js/bokeh.min.js":       maybePage,
		"/app/static/logo":              maybePage,
		"/static/extensions/panel/x.js": maybePage,
		"/components/mod/cls/attr/x":    maybePage,
		"/app/logo.PNG":                 maybePage,
		"/app/bundle.js":                maybePage,
	} {
		if got := kindOf(httptest.NewRequest(http.MethodGet, target, nil)); got != want {
			t.Errorf("GET %s: %v, want %v", target, got, want)
		}
	}
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodOptions, http.MethodConnect} {
		if kindOf(httptest.NewRequest(method, "/app", nil)) != other {
			t.Errorf("%s is taken for a page request", method)
		}
	}
	for dest, want := range map[string][2]kind{
		"document": {pageRequest, maybePage},
		"iframe":   {pageRequest, maybePage},
		"empty":    {pageRequest, maybePage},
		"script":   {other, other},
		"style":    {other, other},
		"image":    {other, other},
		"font":     {other, other},
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
	if kindOf(r) != pageRequest {
		t.Error("autoload.js loaded as a script is not taken for a page request")
	}
	// curl --http2 and Java's client offer this with every request, and Bokeh answers with the page.
	r = httptest.NewRequest(http.MethodGet, "/app", nil)
	r.Header.Set("Upgrade", "h2c")
	if kindOf(r) != pageRequest {
		t.Error("the offer of HTTP/2 makes no other request of it")
	}
}

func TestReadPage(t *testing.T) {
	ours := stampOf("a:80")
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
		"token":               {query: "bokeh-token=" + makeToken(t, ours, nil), id: ours, stamp: ours, gaveID: true},
		"token nobody reads":  {query: "bokeh-token=%%%", gaveID: true},
		"token and id":        {query: "bokeh-token=" + makeToken(t, ours, nil) + "&bokeh-session-id=x", id: "x", gaveID: true},
		"token with a packed": {query: "bokeh-token=" + makeToken(t, "x", map[string]any{stampHeader: ours}), id: "x", stamp: ours, gaveID: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/app", nil)
			r.URL.RawQuery = tc.query
			if tc.header != "" {
				r.Header[sessionIDHeader] = strings.Split(tc.header, "|")
			}
			c := readClaim(r, testRing)
			if c.kind != pageRequest || c.id != tc.id || c.stamp != tc.stamp || c.gaveID != tc.gaveID {
				t.Errorf("readClaim = %+v", c)
			}
		})
	}
}

// What a socket costs whose token has 12 KB, as that of a browser with 8 KB of cookies; and the most that any
// can cost.
func BenchmarkReadToken(b *testing.B) {
	noise := make([]byte, 0, 35<<10)
	for i := 0; len(noise) < 34<<10; i++ {
		noise = append(noise, testRing[0].Signature(fmt.Sprint(i))...)
	}
	cookies, most := string(noise[:8<<10]), string(noise)+strings.Repeat(string(noise[10<<10:]), 9)
	token := func(id string, headers map[string]any, later string) string {
		payload := asJSON(b, map[string]any{"headers": headers, "later": later})
		return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id": %q, "session_expiry": 1, "__bk__zlib_": %q}`, id, pack(b, payload)))
	}
	packed := func(text string) string {
		return base64url.EncodeToString(fmt.Appendf(nil, `{"session_id": "x", "__bk__zlib_": %q}`, pack(b, text)))
	}
	forged := stamp.NewKey([]byte("another")).Stamp(stamp.Tag{})
	for _, bm := range []struct {
		name, token string
		found       bool
	}{
		{"ours", token(stampOf("a:80"), map[string]any{"Accept": "*/*"}, cookies), true},
		{"beside", token("x", map[string]any{"Accept": "*/*", stampHeader: stampOf("a:80")}, cookies), true},
		{"behind", token("x", map[string]any{"Accept": cookies, stampHeader: stampOf("a:80")}, ""), true},
		{"bomb", token("x", map[string]any{"Accept": strings.Repeat("0", 4<<20)}, ""), false},
		{"most", token("x", map[string]any{"Accept": most}, ""), false},
		{"spaces", packed(strings.Repeat(" ", 300<<10)), false},
		{"names", packed(strings.Repeat(`"headers"`, 30<<10)), false},
		{"forged", packed(`"headers":{` + strings.Repeat(`"`+stampHeader+`":"`+forged+`",`, 3000)), false},
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
				if found := readToken(bm.token, testRing).stamp != ""; found != bm.found {
					b.Fatal("found a stamp: ", found)
				}
			}
		})
	}
}
