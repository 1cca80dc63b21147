// This file tests the module in a running Caddy, against stand-ins for Bokeh servers.

package caddybokeh

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"golang.org/x/net/http2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// TestMain sees to it that Go's HTTP/2 offers websockets: that is read from the environment
// before any test can set it. With asCaddy in the environment the program is a Caddy with this module.
func TestMain(m *testing.M) {
	if !strings.Contains(os.Getenv("GODEBUG"), "http2xconnect=1") {
		os.Setenv("GODEBUG", strings.TrimPrefix(os.Getenv("GODEBUG")+",http2xconnect=1", ","))
		if self, err := os.Executable(); err == nil {
			err = syscall.Exec(self, os.Args, os.Environ())
			fmt.Fprintln(os.Stderr, "cannot start again with GODEBUG set:", err)
			os.Exit(1)
		}
	}
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		return
	}
	settle()
	os.Exit(m.Run())
}

func TestVisitsRunTheAppOnce(t *testing.T) {
	for name, handlers := range map[string]string{
		"alone":                "reverse_proxy %s {\n lb_policy bokeh\n}",
		"with retries":         "reverse_proxy %s {\n lb_policy bokeh\n lb_try_duration 5s\n}",
		"with header_up":       "reverse_proxy %s {\n lb_policy bokeh\n header_up X-A b\n header_up -Cookie\n}",
		"under a prefix":       "handle_path /x/* {\n reverse_proxy %s {\n lb_policy bokeh\n }\n}\nhandle {\n rewrite * /x{uri}\n reverse_proxy %[1]s {\n lb_policy bokeh\n }\n}",
		"as a fallback":        "reverse_proxy %s {\n lb_policy header X-None {\n fallback bokeh\n }\n}",
		"as another one's":     "reverse_proxy %s {\n lb_policy cookie {\n fallback bokeh\n }\n}",
		"with a key":           "reverse_proxy %s {\n lb_policy bokeh {\n secret_key one two\n }\n}",
		"after another policy": "forward_auth %s {\n uri /auth\n}\nreverse_proxy %[1]s {\n lb_policy bokeh\n}",
		"behind handle_response": "reverse_proxy %s {\n lb_policy bokeh\n @gone status 410\n handle_response @gone {\n" +
			" reverse_proxy %[1]s {\n lb_policy bokeh\n }\n }\n}",
	} {
		t.Run(name, func(t *testing.T) {
			servers, addrs := three(t)
			s := serve(t, fmt.Sprintf(handlers, addrs))
			for range 12 {
				s.visit()
			}
			if n := runs(servers); n != 12 {
				t.Errorf("12 visits ran the app %d times", n)
			}
			for _, b := range servers {
				if n := b.appRuns(); n != 4 {
					t.Errorf("%s has %d of 12 sessions, want 4", b.addr(), n)
				}
			}
		})
	}
}

func TestPlaceholders(t *testing.T) {
	_, addrs := three(t)
	s := serve(t, "reverse_proxy "+addrs+" {\n lb_policy bokeh\n header_down X-Decision {http.reverse_proxy.bokeh.decision}\n"+
		" header_down X-Session {http.reverse_proxy.bokeh.session}\n}")
	p := s.get("/app")
	if d, h := p.header.Get("X-Decision"), p.header.Get("X-Session"); d != "new" || len(h) != 12 {
		t.Errorf("page: decision %q, session %q", d, h)
	}
	id := bokeh.ReadToken(p.Token, bokehtest.Ring).ID
	again := s.get("/app", bokeh.SessionIDHeader, id)
	if d, h := again.header.Get("X-Decision"), again.header.Get("X-Session"); d != "bound" || h != p.header.Get("X-Session") {
		t.Errorf("same session: decision %q, session %q, want bound, %q", d, h, p.header.Get("X-Session"))
	}
	static := s.get("/static/js/bokeh.js")
	if d, h := static.header.Get("X-Decision"), static.header.Get("X-Session"); d != "shared" || h != "" {
		t.Errorf("static file: decision %q, session %q", d, h)
	}
}

// overheard is a server that keeps what it is sent, byte by byte.
type overheard struct {
	net.Listener
	requests chan string
}

func newOverheard(t *testing.T) *overheard {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	o := &overheard{ln, make(chan string, 1)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o.serve(c)
		}
	}()
	return o
}

func (o *overheard) serve(c net.Conn) {
	defer c.Close()
	var raw strings.Builder
	r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &raw)))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	o.requests <- raw.String()
	fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

// What a client sends reaches the server as through any other policy, but for one header with the stamp on
// what may be a page.
func TestServerSeesTheSame(t *testing.T) {
	token := bokehtest.Token(t, bokehtest.Stamp("a:80"), nil)
	ws := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	none, asID, beside := "", bokeh.SessionIDHeader, bokeh.StampHeader
	for name, tc := range map[string]struct{ request, header, stamp string }{
		"a page":                  {"GET /app", "Cookie: a=b\r\n", asID},
		"its own id":              {"GET /app", "Bokeh-Session-Id: x\r\n", beside},
		"its own id, lower case":  {"GET /app", "bokeh-session-id: x\r\n", beside},
		"an empty id":             {"GET /app", "Bokeh-Session-Id: \r\n", beside},
		"two ids":                 {"GET /app", "Bokeh-Session-Id: x\r\nBokeh-Session-Id: y\r\n", beside},
		"an id of ours":           {"GET /app", "Bokeh-Session-Id: " + bokehtest.Stamp("a:80") + "\r\n", beside},
		"30 KB of id":             {"GET /app", "Bokeh-Session-Id: " + strings.Repeat("x", 30<<10) + "\r\n", beside},
		"an id that is no text":   {"GET /app", "Bokeh-Session-Id: \xff\xfe\r\n", beside},
		"a stamp of its own":      {"GET /app", "caddy-bokeh-stamp: " + bokehtest.Stamp("a:80") + "\r\n", asID},
		"id in the query":         {"GET /app?bokeh-session-id=x&a=b", "", beside},
		"broken id in the query":  {"GET /app?bokeh-session-id=%zz&bokeh-session-id=%00;", "", beside},
		"token in the query":      {"GET /app?bokeh-token=" + token, "", beside},
		"no token in the query":   {"GET /app?bokeh-token=%25%25", "", beside},
		"a body":                  {"GET /app", "Content-Length: 20\r\n", asID},
		"a form in a GET":         {"GET /app", "Content-Length: 20\r\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\r\n", beside},
		"a file in a GET":         {"GET /app", "Content-Length: 20\r\nContent-Type: multipart/form-data; boundary=x\r\n", beside},
		"a form":                  {"POST /app", "Content-Length: 20\r\n", none},
		"a file":                  {"GET /static/js/bokeh.min.js", "Bokeh-Session-Id: x\r\n", beside},
		"a file, stamped":         {"GET /static/js/bokeh.min.js", "Caddy-Bokeh-Stamp: x\r\n", beside},
		"a script":                {"GET /static/js/bokeh.min.js", "Sec-Fetch-Dest: script\r\nCaddy-Bokeh-Stamp: x\r\n", none},
		"a socket":                {"GET /app/ws", ws + "Sec-WebSocket-Protocol: bokeh, " + token + "\r\n", none},
		"a socket, stamped":       {"GET /app/ws", ws + "Caddy-Bokeh-Stamp: x\r\nBokeh-Session-Id: x\r\nSec-WebSocket-Protocol: bokeh, " + token + "\r\n", none},
		"a socket, two tokens":    {"GET /app/ws", ws + "Sec-WebSocket-Protocol: bokeh, " + token + ", " + token + "\r\n", none},
		"a socket, two lines":     {"GET /app/ws", ws + "Sec-WebSocket-Protocol: bokeh\r\nSec-WebSocket-Protocol:  " + token + "\r\n", none},
		"a socket, half a token":  {"GET /app/ws", ws + "Sec-WebSocket-Protocol: bokeh, " + token[:len(token)/2] + "\r\n", none},
		"a socket, no token":      {"GET /app/ws", ws, none},
		"a socket, another's":     {"GET /app/ws", ws + "Sec-WebSocket-Protocol: graphql-ws\r\n", none},
		"a socket, 60 KB of junk": {"GET /app/ws", ws + "Sec-WebSocket-Protocol: bokeh, " + strings.Repeat("%", 60<<10) + "\r\n", none},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOverheard(t)
			heard := func(policy string) string {
				s := serve(t, "reverse_proxy "+o.Addr().String()+" {\n lb_policy "+policy+"\n}")
				c, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n", tc.request, tc.header)
				if strings.Contains(tc.header, "Content-Length") {
					fmt.Fprint(c, "bokeh-session-id=abc")
				}
				return <-o.requests
			}
			with, without := heard("bokeh {\n secret_key k\n}"), heard("first")
			without = headerLine(bokeh.StampHeader).ReplaceAllString(without, "") // nothing but a client's own
			given := ""
			if tc.stamp != none {
				found := headerLine(tc.stamp).FindAllStringSubmatch(with, -1)
				if len(found) != 1 {
					t.Fatalf("it has %d stamps:\n%.2000s", len(found), with)
				}
				given = found[0][1]
				with = headerLine(tc.stamp).ReplaceAllString(with, "")
			}
			if with != without {
				t.Errorf("the server sees\n%.2000s\nwithout us\n%.2000s", with, without)
			}
			if _, _, ok := (stamp.Keyring{stamp.NewKey([]byte("k"))}).Verify(given); ok != (tc.stamp != none) {
				t.Errorf("the stamp %q is not one of ours", given)
			}
		})
	}
}

// line matches a line of headers with the given name.
func headerLine(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^` + name + `: (.*)\r\n`)
}

// Caddy logs requests, and at DEBUG what became of them on their way. With the lines that we ship no id and no token is
// among that, by whichever handler, and without them the same visits leave plenty.
func TestShippedLogFilter(t *testing.T) {
	shipped, err := os.ReadFile("testdata/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	snippet, _, ok := strings.Cut(string(shipped), "\n{\n")
	if !ok || !strings.Contains(snippet, "(without_ids)") {
		t.Fatal("testdata/Caddyfile has no snippet without_ids before its global options")
	}
	for name, tc := range map[string]struct {
		filter, site string
		leaks        bool
	}{
		"shipped":         {"import without_ids", "log", false},
		"with own output": {"import without_ids", "log {\n output file %s\n import without_ids\n}", false},
		"none":            {"", "log", true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBokeh(t, "")
			file := t.TempDir() + "/log"
			s := newSite(t, storageDir(t))
			s.config = snippet + "\n" + strings.Replace(s.config, "output discard", "level DEBUG\noutput file "+file+"\n"+tc.filter, 1)
			s.start(strings.ReplaceAll(tc.site, "%s", file) + "\nforward_auth " + b.addr() + " {\n uri /auth\n}\nhandle_path /x/* {\n reverse_proxy " + b.addr() + " {\n lb_policy bokeh\n }\n}")
			secret := "secret" + rand.Text()
			token := bokehtest.Token(t, secret, map[string]any{bokeh.StampHeader: bokehtest.Stamp("a:80")})
			query := "?bokeh-session-id=" + secret + "&a=b&bokeh-token=" + token
			s.get("/x/app", bokeh.SessionIDHeader, secret, bokeh.StampHeader, secret, "Bokeh-Token", token, "Referer", "http://h/app"+query)
			s.get("/x/app" + query)
			s.get("/x/app?bokeh%2Dsession-id=" + secret + "&bokeh_session_id=" + secret)
			b.status.Store(http.StatusFound)
			s.get("/x/app" + query)
			s.get("/login?next=" + url.QueryEscape("/app"+query))
			b.status.Store(0)
			if _, err := s.tryOpen("/x/app/ws"+query, "bokeh, "+token); err != nil {
				t.Fatal(err)
			}
			if _, err := s.tryOpen("/x/app/ws", token+", bokeh"); err != nil {
				t.Fatal(err)
			}
			b.stop() // what goes wrong is logged elsewhere
			s.get("/x/app"+query, bokeh.SessionIDHeader, secret)
			// Caddy itself has a data race where it closes a socket that its server has just closed.
			soon(t, "closed", func() bool { return sessionsOf(b.addr())[2] == 0 })
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			log, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]bool{}
			for line := range strings.Lines(string(log)) {
				if strings.Contains(line, secret) || strings.Contains(line, token) {
					var entry struct{ Logger, Msg string }
					if err := json.Unmarshal([]byte(line), &entry); err != nil {
						t.Fatal(err)
					}
					found[entry.Logger+": "+entry.Msg] = true
					if !tc.leaks {
						t.Error(line)
					}
				}
			}
			for _, want := range []string{"handled request", "upstream roundtrip", "rewrote request"} {
				if !strings.Contains(string(log), want) {
					t.Errorf("the log has no line %q", want)
				}
			}
			if tc.leaks && len(found) < 3 {
				t.Errorf("without the filter only these lines show ids: %v", found)
			}
		})
	}
}

// Where a websocket with a large token would be refused, the log says so at load, and what to set.
func TestHeaderLimitIsWarnedOf(t *testing.T) {
	for name, limit := range map[string]string{"Caddy's default": "", "too small": "max_header_size 32KB", "enough": "max_header_size 64KB"} {
		t.Run(name, func(t *testing.T) {
			file := t.TempDir() + "/log"
			_, httpPort, _ := strings.Cut(freeAddr(t), ":")
			_, httpsPort, _ := strings.Cut(freeAddr(t), ":")
			// Caddy adds a server for redirects to https, for which the option is not meant.
			config := fmt.Sprintf("{\n admin off\n persist_config off\n auto_https disable_certs\n http_port %s\n https_port %s\n storage file_system %s\n"+
				" log {\n output file %s\n }\n servers :%s {\n %s\n }\n}\n"+
				"https://localhost {\n handle /x {\n bokeh_proxy localhost:5007\n }\n handle {\n reverse_proxy localhost:5006 {\n lb_policy bokeh\n }\n }\n}",
				httpPort, httpsPort, t.TempDir(), file, httpsPort, limit)
			cfg, err := adapt(strings.ReplaceAll(config, "servers :"+httpsPort+" {\n \n }\n", ""))
			if err != nil {
				t.Fatal(err)
			}
			if err := caddy.Load(cfg, true); err != nil {
				t.Fatal(err)
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			log, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := 1 // for both policies
			if name == "enough" {
				want = 0
			}
			if got := strings.Count(string(log), "max_header_size 64KB"); got != want {
				t.Errorf("it is warned %d times, want %d:\n%s", got, want, log)
			}
		})
	}
}

// A reload while the storage fails must not forget the key that it held.
func TestReloadWithoutStorage(t *testing.T) {
	servers, addrs := three(t)
	for _, b := range servers {
		b.ids, b.secret = sessionIDsSigned, stamp.NewKey([]byte("theirs"))
	}
	storage := storageDir(t)
	config := "reverse_proxy " + addrs + " {\n lb_policy bokeh {\n session_ids signed\n }\n}"
	s := serveFrom(t, storage, config)
	var pages []page
	for range 9 {
		pages = append(pages, s.get("/app"))
	}
	file := filepath.Join(storage, storedKey)
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	s.reload(config + "\nheader X-A b")
	for _, p := range pages {
		if w := s.open(p.Token); w.server != p.Server {
			t.Errorf("page by %s, socket by %s", p.Server, w.server)
		}
	}
}

// A key that the storage loses is back before a reload or a new process makes another one, with no reload.
func TestStoredKeyIsWrittenBack(t *testing.T) {
	storage := storageDir(t)
	file := filepath.Join(storage, storedKey)
	_, addrs := three(t)
	config := "reverse_proxy " + addrs + " {\n lb_policy bokeh\n}"
	s := serveFrom(t, storage, config)
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, lose := range map[string]func() error{
		"removed": func() error { return os.Remove(file) },
		"emptied": func() error { return os.Truncate(file, 0) },
	} {
		p := s.get("/app")
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		soon(t, name+", it is written back", func() bool {
			again, err := os.ReadFile(file)
			return err == nil && bytes.Equal(again, key)
		})
		s.reload(config + "\nheader X-A " + name)
		if w := s.open(p.Token); w.server != p.Server {
			t.Errorf("%s: page by %s, socket by %s", name, p.Server, w.server)
		}
	}
}

func TestCountsOverReloads(t *testing.T) {
	a, b := newBokeh(t, ""), newBokeh(t, "")
	both := "reverse_proxy " + a.addr() + " " + b.addr() + " {\n lb_policy bokeh\n stream_close_delay 1h\n}"
	s := serve(t, both)
	s.visit()
	s.visit()
	open := tally{0, 0, 1, 0}
	soonCounts(t, "one each", a.addr(), open)
	soonCounts(t, "one each", b.addr(), open)

	if err := s.load(both + "\nheader X-A b"); err != nil {
		t.Fatal(err)
	}
	soonCounts(t, "after a reload", a.addr(), open)
	if err := s.load("reverse_proxy " + a.addr() + " {\n lb_policy bokeh {\n secret_key {env.CADDY_BOKEH_NOT_SET}\n }\n}"); err == nil {
		t.Fatal("an empty key is no error")
	} else if !strings.Contains(err.Error(), "secret_key 1") {
		t.Errorf("the error does not name the option: %v", err)
	}
	soonCounts(t, "after a failed reload", a.addr(), open)
	if err := s.load("reverse_proxy " + b.addr() + " {\n lb_policy bokeh\n}"); err != nil {
		t.Fatal(err)
	}
	soonCounts(t, "removed", a.addr(), open)
	if err := s.load(both); err != nil {
		t.Fatal(err)
	}
	soonCounts(t, "added back", a.addr(), open)
	a.cut()
	b.cut()
	soonCounts(t, "cut", a.addr(), tally{0, 0, 0, 1})
}

// A websocket over HTTP/2 is an extended CONNECT (RFC 8441).
//
//nolint:staticcheck // net/http's own transport refuses the header by which this one is asked for a websocket
func TestSocketOverHTTP2(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "reverse_proxy "+addrs+" {\n lb_policy bokeh\n}")
	tr := &http2.Transport{
		AllowHTTP: true,
		DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	defer tr.CloseIdleConnections()
	for range 6 {
		p := s.get("/app")
		body, closeBody := io.Pipe()
		defer closeBody.Close()
		r, err := http.NewRequest(http.MethodConnect, "http://"+s.addr+"/app/ws", body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header[":protocol"] = []string{"websocket"}
		r.Header.Set("Sec-WebSocket-Version", "13")
		r.Header.Set("Sec-WebSocket-Protocol", "bokeh, "+p.Token)
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusOK || res.Header.Get("X-Server") != p.Server {
			t.Errorf("page by %s, socket %d by %s", p.Server, res.StatusCode, res.Header.Get("X-Server"))
		}
		closeBody.Close()
		res.Body.Close()
	}
	for _, b := range servers {
		soonCounts(t, "closed", b.addr(), tally{0, 0, 0, 2})
	}
}

// Two sites with policies of their own over the same servers count together.
func TestTwoPoliciesOverTheSameUpstreams(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "handle /two/* {\n reverse_proxy "+addrs+" {\n lb_policy bokeh {\n session_ids signed\n }\n }\n}\n"+
		"handle {\n reverse_proxy "+addrs+" {\n lb_policy bokeh\n }\n}")
	for range 3 {
		s.get("/app")
		s.get("/two/app")
	}
	for _, b := range servers {
		soonCounts(t, "spread over both", b.addr(), tally{0, 2, 0, 0})
	}
}

// The body of a GET and a socket of another protocol go through untouched.
func TestStrangeRequests(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "reverse_proxy "+addrs+" {\n lb_policy bokeh\n}")
	r, err := http.NewRequest(http.MethodGet, "http://"+s.addr+"/app", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.client.Do(r)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("GET with a body: %v, %v", res, err)
	} else {
		res.Body.Close()
	}
	for name, protocol := range map[string]string{"three protocols": "bokeh, a, b", "no token": "bokeh", "another": "graphql-ws"} {
		if w, err := s.tryOpen("/app/ws", protocol); err != nil || w.status != http.StatusForbidden {
			t.Errorf("%s: %d, %v; want the server's own 403", name, w.status, err)
		}
	}
	for _, b := range servers {
		soonCounts(t, "after all", b.addr(), sessionsOf(b.addr()))
	}
}
