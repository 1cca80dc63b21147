// Package bokehtest makes tokens as Bokeh does, for tests.
//
// This file holds all of it.
package bokehtest

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// The headers of a page that may bring a stamp, and the bounds of what is read of a token. They are spelled out, for what is
// tested must not define them.
const (
	asIDHeader    = "Bokeh-Session-Id"
	besideHeader  = "Caddy-Bokeh-Stamp"
	tooLong       = 64 << 10
	tooManyBlocks = 32
)

var Ring = stamp.Keyring{stamp.NewKey([]byte("first key")), stamp.NewKey([]byte("second key"))}

// Stamp makes a stamp for the upstream of that name by the first key of the test ring.
func Stamp(name string) string { return Ring[0].Stamp(Ring[0].Tag(name)) }

// Token makes a token as Bokeh does: the id in clear, all else zipped.
func Token(t testing.TB, id any, headers map[string]any) string {
	t.Helper()
	payload := fmt.Sprintf(`{"session_id": %s, "session_expiry": 1795470935`, AsJSON(t, id))
	if headers != nil {
		payload += fmt.Sprintf(`, "__bk__zlib_": %q`, Pack(t, AsJSON(t, map[string]any{"headers": headers, "cookies": map[string]any{}})))
	}
	return base64.RawURLEncoding.EncodeToString([]byte(payload + "}"))
}

func AsJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Pack zips s as Bokeh does for a token.
func Pack(t testing.TB, s string) string {
	t.Helper()
	return PackBehind(t, 0, s)
}

// PackBehind zips s behind blocks that hold nothing.
func PackBehind(t testing.TB, blocks int, s string) string {
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
	return base64.RawURLEncoding.EncodeToString(b.Bytes())
}

// Case is a token and what is read of it.
type Case struct{ Token, ID, Stamp string }

// Tokens are tokens and what is read of them. They seed the fuzz target as well.
func Tokens(t testing.TB) map[string]Case {
	all := plainTokens(t)
	maps.Copy(all, packedTokens(t))
	return all
}

// raw encodes what is in a token.
func raw(payload string) string { return base64.RawURLEncoding.EncodeToString([]byte(payload)) }

// plainTokens are those whose point is not in what Bokeh packs.
func plainTokens(t testing.TB) map[string]Case {
	ours, beside := Stamp("a:80"), Stamp("b:80")
	forged := beside[:40] + "AAAA" + beside[44:]
	return map[string]Case{
		"ours":                     {Token(t, ours, nil), ours, ours},
		"ours, signed":             {Token(t, ours, nil) + "." + strings.Repeat("s", 43), ours, ours},
		"ours, with padding":       {Token(t, ours, nil) + "==", ours, ours},
		"ours before rubbish":      {Token(t, ours, nil)[:160] + "!!!", ours, ours},
		"foreign":                  {Token(t, "x", nil), "x", ""},
		"foreign, stamp beside":    {Token(t, "x", map[string]any{"Host": "h", besideHeader: beside}), "x", beside},
		"stamp in lower case":      {Token(t, "x", map[string]any{strings.ToLower(besideHeader): beside}), "x", beside},
		"reused, id in the page's": {Token(t, "x", map[string]any{asIDHeader: ours}), "x", ours},
		"ours before the page's":   {Token(t, "x", map[string]any{besideHeader: beside, asIDHeader: ours}), "x", beside},
		"forged, then good":        {Token(t, "x", map[string]any{strings.ToUpper(besideHeader): forged, besideHeader: beside}), "x", beside},
		"forged":                   {Token(t, "x", map[string]any{besideHeader: forged, asIDHeader: forged}), "x", ""},
		"stamp is a number":        {Token(t, "x", map[string]any{besideHeader: 12, asIDHeader: []string{ours}}), "x", ""},
		"own tag forged":           {Token(t, forged, nil), forged, ""},
		"id after the rest":        {raw(`{"__bk__zlib_":"` + Pack(t, `{"headers":{"`+besideHeader+`":"`+beside+`"}}`) + `","session_id":"x"}`), "x", beside},
		"control characters":       {Token(t, "a\x00\n", nil), "a\x00\n", ""},
		"empty":                    {"", "", ""},
		"a dot":                    {".", "", ""},
		"not base64":               {"%%%", "", ""},
		"not JSON":                 {raw("session"), "", ""},
		"a JSON array":             {raw(`["session_id"]`), "", ""},
		"cut JSON":                 {raw(`{"session_id":"x"`), "x", ""},
		"cut in the id":            {raw(`{"session_id":"x`), "", ""},
		"broken escape":            {raw(`{"session_id":"\x"}`), "", ""},
		"no id":                    {raw(`{"session_expiry":1}`), "", ""},
		"empty id":                 {Token(t, "", nil), "", ""},
		"number id":                {Token(t, 7, nil), "", ""},
		"null id":                  {Token(t, nil, nil), "", ""},
		"object id":                {Token(t, map[string]any{"a": 1}, nil), "", ""},
		"1 MB id":                  {Token(t, strings.Repeat("x", 1<<20), nil), "", ""},
		"oversized":                {Token(t, ours, nil) + "." + strings.Repeat("s", tooLong), "", ""},
		"id twice":                 {raw(`{"session_id":"x","session_id":"y"}`), "x", ""},
		"stamp in a value":         {Token(t, "x", map[string]any{"A": `","` + besideHeader + `":"` + beside}), "x", ""},
		"stamp behind backslashes": {Token(t, "x", map[string]any{"A": `\\"\`, besideHeader: beside}), "x", beside},
		"deep":                     {raw(strings.Repeat(`{"a":`, 10000)), "", ""},
	}
}

// packedTokens are those whose point is there.
func packedTokens(t testing.TB) map[string]Case {
	ours, beside := Stamp("a:80"), Stamp("b:80")
	packed := func(json string) string {
		return raw(fmt.Sprintf(`{"session_id":"x","__bk__zlib_":%q}`, Pack(t, json)))
	}
	behind := func(blocks int) string {
		return raw(fmt.Sprintf(`{"session_id":"x","__bk__zlib_":%q}`, PackBehind(t, blocks, `{"headers":{"`+besideHeader+`":"`+beside+`"}}`)))
	}
	return map[string]Case{
		"packed is a number":       {raw(`{"session_id":"x","__bk__zlib_":1}`), "x", ""},
		"packed is empty":          {raw(`{"session_id":"x","__bk__zlib_":""}`), "x", ""},
		"packed twice":             {raw(fmt.Sprintf(`{"session_id":"x","__bk__zlib_":%q,"__bk__zlib_":%q}`, Pack(t, `{"headers":{"`+besideHeader+`":"`+beside+`"}}`), Pack(t, `{}`))), "x", beside},
		"packed in the id":         {raw(`{"session_id":"\"__bk__zlib_\":\"x"}`), `"__bk__zlib_":"x`, ""},
		"packed id twice":          {packed(`{"headers":{"` + asIDHeader + `":"x","` + strings.ToLower(asIDHeader) + `":"` + ours + `"}}`), "x", ours},
		"stamp in a cookie":        {packed(`{"headers":{},"cookies":{"` + besideHeader + `":"` + beside + `"}}`), "x", ""},
		"stamp in no string":       {packed(`{"headers":{"A":{"` + besideHeader + `":"` + beside + `"}}}`), "x", ""},
		"stamp after no strings":   {packed(`{"headers":{"A":{"B":["}\"]"],"C":{}},"D":["x"],"E":null,"F": -1.5e3 ,"` + besideHeader + `":"` + beside + `"}}`), "x", beside},
		"stamp behind the headers": {packed(`{"headers":{"A":1},"` + besideHeader + `":"` + beside + `"}`), "x", ""},
		"headers are a string":     {packed(`{"headers":"{","headers":{"` + besideHeader + `":"` + beside + `"}}`), "x", beside},
		"headers come later":       {packed(`{"arguments":{"headers":["{"]},"headers":{"` + besideHeader + `":"` + beside + `"}}`), "x", beside},
		"spaces everywhere":        {packed(" { \"headers\" : {\n\"A\" : \"\" ,\t\"" + besideHeader + "\" : \"" + beside + "\" } } "), "x", beside},
		"60 KB before the stamp":   {Token(t, "x", map[string]any{"A": strings.Repeat("0", 60<<10), besideHeader: beside}), "x", beside},
		"packed is no base64":      {raw(`{"session_id":"x","__bk__zlib_":"%%"}`), "x", ""},
		"packed is no zlib":        {raw(`{"session_id":"x","__bk__zlib_":"AAAA"}`), "x", ""},
		"packed is no JSON":        {packed("headers"), "x", ""},
		"packed is cut":            {packed(`{"headers":{"` + besideHeader + `":"` + beside + `"`), "x", beside},
		"packed is cut before":     {packed(`{"headers":{"` + besideHeader + `":"` + beside), "x", ""},
		"packed has no headers":    {packed(`{"cookies":{}}`), "x", ""},
		"headers are a list":       {packed(`{"headers":["` + besideHeader + `"]}`), "x", ""},
		"packed is a bomb":         {packed(`{"cookies":"` + strings.Repeat("0", 4<<20) + `","headers":{"` + besideHeader + `":"` + beside + `"}}`), "x", ""},
		"packed in many blocks":    {behind(20), "x", beside},
		"packed in too many":       {behind(tooManyBlocks), "x", ""},
	}
}
