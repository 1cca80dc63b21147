// This file tests that known mistakes are logged, once in a while, with what mends them.

package caddybokeh

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

func TestMistakesAreLogged(t *testing.T) {
	inSeconds := func(d time.Duration) string {
		return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"session_id":"x","session_expiry":%d}`, time.Now().Add(d).Unix()))
	}
	ours := func(d time.Duration) string {
		return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"session_id":%q,"session_expiry":%d,"rest":"of no use"}`, bokehtest.Stamp("u0:80"), time.Now().Add(d).Unix()))
	}
	for name, c := range map[string]struct {
		token  func() string
		origin string
		cookie int // bytes
		limit  int // of the server
		status int // 0 for no answer
		want   string
	}{
		"all is well":         {token: func() string { return inSeconds(time.Minute) }, origin: "https://a.example", status: 101},
		"expired":             {token: func() string { return inSeconds(-time.Minute) }, status: 101, want: "--session-token-expiration"},
		"expired, id of ours": {token: func() string { return ours(-time.Minute) }, status: 101, want: "--session-token-expiration"},
		"of ours":             {token: func() string { return ours(time.Minute) }, status: 101},
		"no expiry":           {token: func() string { return base64.RawURLEncoding.EncodeToString([]byte(`{"session_id":"x"}`)) }, status: 101},
		"expiry that is none": {token: func() string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"session_id":"x","session_expiry":"1"}`))
		}, status: 101},
		"unknown origin":         {token: func() string { return inSeconds(time.Minute) }, origin: "https://example.com", status: 403, want: "does not know the site's name"},
		"another's origin":       {token: func() string { return inSeconds(time.Minute) }, origin: "http://a.example:8080", status: 403, want: "if you do not know that site, all is well"},
		"an IPv6 address":        {token: func() string { return inSeconds(time.Minute) }, origin: "http://[2001:DB8::1]:8080", status: 403, want: "BOKEH_ALLOW_WS_ORIGIN=[2001:db8::1]:8080"},
		"in capital letters":     {token: func() string { return inSeconds(time.Minute) }, origin: "http://Dash.Example.com:8080", status: 403, want: "--allow-websocket-origin=dash.example.com:8080"},
		"a sandboxed frame":      {token: func() string { return inSeconds(time.Minute) }, origin: "null", status: 403, want: "belongs to no site"},
		"a file":                 {token: func() string { return inSeconds(time.Minute) }, origin: "file://", status: 403, want: "belongs to no site"},
		"a sandboxed frame, old": {token: func() string { return inSeconds(-time.Minute) }, origin: "null", status: 403, want: "--session-token-expiration"},
		"no name":                {token: func() string { return inSeconds(time.Minute) }, origin: "https://*", status: 403},
		"a command":              {token: func() string { return inSeconds(time.Minute) }, origin: "https://$(reboot)", status: 403},
		"another flag":           {token: func() string { return inSeconds(time.Minute) }, origin: "https://[fe80::1%25en0%20--secret=1]", status: 403},
		"text runs backwards":    {token: func() string { return inSeconds(time.Minute) }, origin: "https://a%E2%80%AEb", status: 403},
		"expired and refused":    {token: func() string { return inSeconds(-time.Minute) }, origin: "https://example.com", status: 403, want: "--session-token-expiration"},
		"expiry out of time": {token: func() string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"session_id":"x","session_expiry":1e300}`))
		}, status: 101},
		"403 to a program":       {token: func() string { return inSeconds(time.Minute) }, status: 403},
		"403 to a strange one":   {token: func() string { return inSeconds(time.Minute) }, origin: "data:text/html,x", status: 403},
		"another status":         {token: func() string { return inSeconds(time.Minute) }, origin: "https://a.example", status: 404},
		"close to the limit":     {token: func() string { return inSeconds(time.Minute) }, cookie: 13 << 10, limit: 16 << 10, status: 101, want: "max_header_size"},
		"far from the limit":     {token: func() string { return inSeconds(time.Minute) }, cookie: 11 << 10, limit: 16 << 10, status: 101},
		"a line of 9 KB":         {token: func() string { return inSeconds(time.Minute) }, cookie: 9 << 10, status: 431, want: "WEBSOCKETS_MAX_LINE_LENGTH=65536"},
		"9 KB, old uvicorn":      {token: func() string { return inSeconds(time.Minute) }, cookie: 9 << 10, status: 400, want: "WEBSOCKETS_MAX_LINE_LENGTH=65536"},
		"9 KB, no answer":        {token: func() string { return inSeconds(time.Minute) }, cookie: 9 << 10, want: "WEBSOCKETS_MAX_LINE_LENGTH=65536"},
		"9 KB, taken":            {token: func() string { return inSeconds(time.Minute) }, cookie: 9 << 10, status: 101},
		"9 KB, and it hung up":   {token: func() string { return inSeconds(time.Minute) }, cookie: 9 << 10, status: 502, want: "WEBSOCKETS_MAX_LINE_LENGTH=65536"},
		"7 KB, no answer":        {token: func() string { return inSeconds(time.Minute) }, cookie: 7 << 10},
		"7 KB, refused":          {token: func() string { return inSeconds(time.Minute) }, cookie: 7 << 10, status: 400},
		"the limit is as wanted": {token: func() string { return inSeconds(time.Minute) }, cookie: 60 << 10, limit: 64 << 10, status: 101},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			core, logs := observer.New(zapcore.WarnLevel)
			s.logger = zap.New(core)
			visit := func() {
				r := newSocket(s, c.token())
				r.Header.Set("Origin", c.origin)
				r.Header.Set("Cookie", strings.Repeat("x", c.cookie))
				if c.limit > 0 {
					r.Request = r.WithContext(caddyhttp.PrepareRequest(r.Request, r.repl, nil, &caddyhttp.Server{MaxHeaderBytes: c.limit}).Context())
				}
				r.choose(pool)
				switch c.status {
				case 0:
					r.hang()
				case http.StatusBadGateway:
					r.visit().connected(r.visit().attempt)
					r.badGateway()
				default:
					r.answer(c.status)
				}
				synctest.Wait()
			}
			for range 3 {
				visit()
			}
			time.Sleep(2 * time.Minute)
			visit()
			text := fmt.Sprint(logs.All())
			switch got := logs.Len(); {
			case c.want == "" && got > 0:
				t.Errorf("%s: logged %s", name, text)
			case c.want != "" && (got != 2 || !strings.Contains(text, c.want)):
				t.Errorf("%s: logged %d times, want 2 and %s: %s", name, got, c.want, text)
			}
		})
	}
}

// What a server is told to take a long header by is known from its pages, and not said where it would not help.
func TestLongHeaderIsMendedByServer(t *testing.T) {
	for name, c := range map[string]struct {
		server             string
		lines, bytes, code int // of a line
		want, not          string
	}{
		"uvicorn":           {"uvicorn", 1, 9 << 10, 400, "in the environment of uvicorn", "daphne"},
		"uvicorn, many":     {"uvicorn", 4, 5 << 10, 400, "--h11-max-incomplete-event-size 65536", "daphne"},
		"uvicorn, short":    {server: "uvicorn", lines: 2, bytes: 7 << 10, code: 400},
		"daphne":            {"daphne", 4, 5 << 10, 400, "cannot be raised", "WEBSOCKETS_MAX_LINE_LENGTH"},
		"daphne, short":     {server: "daphne", lines: 1, bytes: 9 << 10, code: 400},
		"hypercorn":         {"hypercorn-h11", 4, 5 << 10, 431, "h11_max_incomplete_size = 65536", "uvicorn"},
		"hypercorn, short":  {server: "hypercorn-h11", lines: 1, bytes: 9 << 10, code: 431},
		"Tornado":           {"TornadoServer/6.6.1", 9, 8 << 10, 502, "--exclude-cookies", "uvicorn"},
		"Tornado, short":    {server: "TornadoServer/6.6.1", lines: 4, bytes: 8 << 10, code: 502},
		"behind a proxy":    {"nginx", 4, 5 << 10, 400, "under uvicorn: ", "--exclude-cookies"},
		"says not what":     {"", 4, 5 << 10, 400, "daphne's limit is 16 KB", "--exclude-cookies"},
		"says not, shorter": {lines: 2, bytes: 7 << 10, code: 400},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			core, logs := observer.New(zapcore.WarnLevel)
			s.logger = zap.New(core)
			page := newRequest(s, "/app")
			page.choose(pool)
			page.repl.Set(placeholderServer, c.server)
			page.answer(http.StatusOK)
			synctest.Wait()
			r := newSocket(s, base64.RawURLEncoding.EncodeToString([]byte(`{"session_id":"x"}`)))
			for range c.lines {
				r.Header.Add("Cookie", strings.Repeat("x", c.bytes))
			}
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			if c.code == http.StatusBadGateway {
				r.badGateway()
			} else {
				r.answer(c.code)
			}
			synctest.Wait()
			text := fmt.Sprint(logs.All())
			switch {
			case c.want == "" && logs.Len() > 0:
				t.Errorf("%s: logged %s", name, text)
			case c.want != "" && (logs.Len() != 1 || !strings.Contains(text, c.want) || strings.Contains(text, c.not)):
				t.Errorf("%s: logged %s, want once with %s and without %s", name, text, c.want, c.not)
			}
		})
	}
}

// A websocket whose Upgrade header a proxy in front has taken off is no page, makes no session, and is told of.
func TestLostUpgradeIsLogged(t *testing.T) {
	for name, c := range map[string]struct {
		path, header string
		want         bool
	}{
		"as nginx sends it":       {"/app/ws", "Sec-Websocket-Protocol", true},
		"its key":                 {"/app/ws", "Sec-Websocket-Key", true},
		"its version, prefix":     {"/a/b/app/ws", "Sec-Websocket-Version", true},
		"an app that is named ws": {"/ws", "Accept", false},
		"a page":                  {"/app", "Sec-Websocket-Key", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			core, logs := observer.New(zapcore.WarnLevel)
			s.logger = zap.New(core)
			for range 3 {
				r := newRequest(s, c.path, c.header, "bokeh, x")
				if _, why := r.choose(pool); (why == "shared") != c.want {
					t.Errorf("%s: it is %s", name, why)
				}
				if got := r.stamp() == ""; got != c.want {
					t.Errorf("%s: whether it has no stamp: %v", name, got)
				}
				r.answer(http.StatusBadRequest)
				synctest.Wait()
			}
			if got := strings.Contains(fmt.Sprint(logs.All()), "proxy_set_header Upgrade $http_upgrade"); got != c.want || logs.Len() > 1 {
				t.Errorf("%s: logged %v", name, logs.All())
			}
		})
	}
}

// Who leaves before a server could answer tells nothing of it.
func TestImpatientVisitorIsNoMistake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		core, logs := observer.New(zapcore.WarnLevel)
		s.logger = zap.New(core)
		r := newSocket(s, base64.RawURLEncoding.EncodeToString([]byte(`{"session_id":"x"}`)))
		r.Header.Set("Cookie", strings.Repeat("x", 9<<10))
		r.choose(pool)
		r.visit().connected(r.visit().attempt)
		r.end()
		time.Sleep(time.Minute)
		if logs.Len() != 0 {
			t.Errorf("logged %v", logs.All())
		}
	})
}

// A server that refuses our ids is told of with what to set, and where.
func TestRefusedIDIsLogged(t *testing.T) {
	for ids, want := range map[string]string{sessionIDsUnsigned: "set session_ids signed", sessionIDsSigned: "it seems to be another one"} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			s.SessionIDs, s.givesIDs = ids, true
			core, logs := observer.New(zapcore.WarnLevel)
			s.logger = zap.New(core)
			for range 3 {
				r := newRequest(s, "/app")
				r.choose(pool)
				r.answer(http.StatusForbidden)
				synctest.Wait()
			}
			text := fmt.Sprint(logs.All())
			if logs.Len() != 1 || !strings.Contains(text, want) || !strings.Contains(text, "example.com") || !strings.Contains(text, "u0:80") {
				t.Errorf("%s: logged %s, want once %q with the site and the upstream", ids, text, want)
			}
		})
	}
}

// A page of another site hides nothing of the site's own, nor of a third one. Many sites fill no log.
func TestMistakesAreLoggedApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		core, logs := observer.New(zapcore.WarnLevel)
		s.logger = zap.New(core)
		refused := func(origin string) {
			r := newSocket(s, base64.RawURLEncoding.EncodeToString([]byte(`{"session_id":"x"}`)))
			r.Header.Set("Origin", origin)
			r.choose(pool)
			r.answer(http.StatusForbidden)
			synctest.Wait()
		}
		for _, origin := range []string{"http://a.example", "http://b.example", "http://A.example"} {
			refused(origin)
		}
		for i := range 100 {
			refused(fmt.Sprintf("http://%d.example", i))
		}
		refused("http://example.com")
		text := fmt.Sprint(logs.All())
		for _, host := range []string{"=a.example", "=b.example", "=example.com"} {
			if !strings.Contains(text, host) {
				t.Errorf("%s is not logged: %s", host, text)
			}
		}
		if got, want := logs.Len(), maxPacedHosts+1; got != want {
			t.Errorf("logged %d times, want %d: %s", got, want, text)
		}
	})
}

// A stamp that no key here has signed is counted for each request and logged once a minute, without the session's id.
func TestUnknownStamps(t *testing.T) {
	stranger := stamp.NewKey([]byte("another Caddy's"))
	strange := stranger.Stamp(stranger.Tag("u0:80"))
	upstreams := testPool(3)
	page := func(query string) func(s *Selection) *request {
		return func(s *Selection) *request { return newRequest(s, "/app?"+query) }
	}
	token := func(id string, headers map[string]any) func(s *Selection) *request {
		return func(s *Selection) *request { return newSocket(s, bokehtest.Token(t, id, headers)) }
	}
	for name, c := range map[string]struct {
		request func(s *Selection) *request
		counted string // nothing if not at all
	}{
		"a socket's id":            {token(strange, nil), kindSocket},
		"beside a socket's id":     {token("x", map[string]any{bokeh.StampHeader: strange}), kindSocket},
		"a reused page's id":       {token("x", map[string]any{bokeh.SessionIDHeader: strange}), kindSocket},
		"a page's query":           {page("bokeh-session-id=" + strange), kindPage},
		"a page's token":           {page("bokeh-token=" + bokehtest.Token(t, strange, nil)), kindPage},
		"a page's header":          {func(s *Selection) *request { return newRequest(s, "/app", bokeh.SessionIDHeader, strange) }, kindPage},
		"made up":                  {token(strange[:10]+"AAAA"+strange[14:], nil), kindSocket},
		"ours beside a stranger's": {token(strange, map[string]any{bokeh.StampHeader: bokehtest.Stamp("u1:80")}), ""},
		"a stranger's beside ours": {token(bokehtest.Stamp("u1:80"), map[string]any{bokeh.SessionIDHeader: strange}), ""},
		"two, the second ours":     {token("x", map[string]any{bokeh.StampHeader: bokehtest.Stamp("u1:80"), bokeh.SessionIDHeader: strange}), ""},
		"ours":                     {token(bokehtest.Stamp("u1:80"), nil), ""},
		"Bokeh's":                  {token(strings.Repeat("a", 44), nil), ""},
		"Bokeh's, signed":          {token(strings.Repeat("a", 44)+"."+stranger.Signature(strings.Repeat("a", 44)), nil), ""},
		"another version":          {token("d"+strange[1:], nil), ""},
		"no dot":                   {token(strings.Replace(strange, ".", "A", 1), nil), ""},
		"no base64url":             {token(strange[:stamp.Len-1]+"\n", nil), ""},
		"a file's":                 {func(s *Selection) *request { return newRequest(s, "/static/a.js?bokeh-session-id="+strange) }, ""},
		"a page's own stamp":       {func(s *Selection) *request { return newRequest(s, "/app", bokeh.StampHeader, strange) }, ""}, // never read
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestSelection(upstreams)
				core, logs := observer.New(zapcore.WarnLevel)
				s.logger = zap.New(core)
				const times = 20
				for range times {
					r := c.request(s)
					for range 3 { // attempts
						_, _ = r.choose(upstreams)
					}
					r.end()
				}
				time.Sleep(2 * time.Minute)
				r := c.request(s)
				_, _ = r.choose(upstreams)
				r.end()
				synctest.Wait()
				for _, kind := range stampedKinds {
					want := int64(0)
					if kind == c.counted {
						want = times + 1
					}
					if got := s.table.unknownStamps[kind].Load(); got != want {
						t.Errorf("%s: counted %d, want %d", kind, got, want)
					}
				}
				text := fmt.Sprint(logs.FilterMessageSnippet("no key of this Caddy").All())
				switch got := strings.Count(text, "give every Caddy in front of these servers the same secret_key"); {
				case c.counted == "" && got > 0, c.counted != "" && got != 2:
					t.Errorf("logged %d times: %s", got, text)
				case strings.Contains(text, strange[:20]):
					t.Errorf("the log shows the id: %s", text)
				}
			})
		})
	}
}

// A page through one Caddy and its socket through another one with another key, as where each has a storage of its own.
func TestTwoCaddysTwoKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		a, b := newTestSelection(pool), newTestSelection(pool)
		b.ring.Store(&stamp.Keyring{stamp.NewKey([]byte("another"))})
		core, logs := observer.New(zapcore.WarnLevel)
		b.logger = zap.New(core)
		_, token := landed(t, a, pool)
		r := newSocket(b, token)
		_, _ = r.choose(pool)
		r.end()
		synctest.Wait()
		if b.table.unknownStamps[kindSocket].Load() != 1 || logs.FilterMessageSnippet("the same secret_key, or the same storage").Len() != 1 {
			t.Errorf("nobody says that the keys differ: %v", logs.All())
		}
	})
}
