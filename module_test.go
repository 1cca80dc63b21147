// This file tests the module in a running Caddy, against stand-ins for Bokeh servers.

package caddybokeh

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/http2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
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

// site is a running Caddy.
type site struct {
	t      *testing.T
	addr   string
	config string
	client *http.Client
}

// serve runs Caddy with one site whose handlers are given, as in a new process and with a storage of its own: a server of
// an earlier test may have had the port of one of this.
func serve(t *testing.T, handlers string) *site {
	t.Helper()
	return serveFrom(t, storageDir(t), handlers)
}

// storageDir returns a folder for a storage, in which a key is: so nobody waits for one. A node may still be writing a report
// when its test ends.
func storageDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "storage")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { soon(t, "the storage is removed", func() bool { return os.RemoveAll(dir) == nil }) })
	key := filepath.Join(dir, storedKey)
	if err := errors.Join(os.Mkdir(filepath.Dir(key), 0o700), os.WriteFile(key, randomSecret(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func serveFrom(t *testing.T, storage, handlers string) *site {
	t.Helper()
	s := newSite(t, storage)
	s.start(handlers)
	return s
}

func newSite(t *testing.T, storage string) *site {
	t.Helper()
	forget(t)
	s := &site{t: t, addr: freeAddr(t), client: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       hangs,
	}}
	s.config = fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	storage file_system %s
	servers {
		protocols h1 h2c
		max_header_size 64KB
	}
	log {
		output discard
	}
}
http://ADDR {
	%%s
}`, storage)
	return s
}

func (s *site) start(handlers string) {
	s.t.Helper()
	if err := s.load(handlers); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			s.t.Error(err)
		}
	})
}

// load replaces the handlers of the site.
func (s *site) load(handlers string) error {
	s.t.Helper()
	cfg, err := adapt(strings.Replace(fmt.Sprintf(s.config, handlers), "ADDR", s.addr, 1))
	if err != nil {
		return err
	}
	return caddy.Load(cfg, true)
}

// reload replaces the handlers of the site, and moves it to another port: at the same one a request in the first moment
// could still meet the end of the server before.
func (s *site) reload(handlers string) {
	s.t.Helper()
	s.addr = freeAddr(s.t)
	if err := s.load(handlers); err != nil {
		s.t.Fatal(err)
	}
}

func adapt(caddyfile string) ([]byte, error) {
	cfg, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	return cfg, err
}

// freeAddr is an address that nobody uses, below those that systems give to whoever asks for any.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprint("127.0.0.1:", 20000+mathrand.IntN(12000))
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no free port was found")
	return ""
}

// deadAddr is an address that refuses connections, and that nobody else can take meanwhile.
func deadAddr(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("127.0.0.1:", name.(*syscall.SockaddrInet4).Port)
}

// page is what a visitor gets: where it was made, and the token for its socket.
type page struct {
	Server, Token string
	status        int
	header        http.Header
}

// get requests a page.
func (s *site) get(path string, header ...string) page {
	s.t.Helper()
	p, err := s.tryGet(context.Background(), path, header...)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *site) tryGet(ctx context.Context, path string, header ...string) (p page, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+path, nil)
	if err != nil {
		return p, err
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := s.client.Do(r)
	if err != nil {
		return p, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return p, err
	}
	p.status, p.header = res.StatusCode, res.Header
	if res.StatusCode == http.StatusOK && strings.HasPrefix(string(body), "{") {
		err = json.Unmarshal(body, &p)
	}
	return p, err
}

// ws is an open socket, or the answer to one that was refused.
type ws struct {
	net.Conn
	server string
	status int
}

// open opens the socket of a page.
func (s *site) open(token string) ws {
	s.t.Helper()
	w, err := s.tryOpen("/app/ws", "bokeh, "+token)
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

func (s *site) tryOpen(path, protocol string) (ws, error) {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return ws{}, err
	}
	s.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\n\r\n", path, s.addr, protocol)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil) //nolint:bodyclose // what follows is the websocket's
	if err != nil {
		return ws{}, err
	}
	go func() { // as a browser does when the other side has closed
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}()
	return ws{Conn: conn, server: res.Header.Get("X-Server"), status: res.StatusCode}, nil
}

// visit requests a page and opens its socket, which must land where the page was made.
func (s *site) visit() (page, ws) {
	s.t.Helper()
	p := s.get("/app")
	w := s.open(p.Token)
	if p.status != http.StatusOK || w.status != http.StatusSwitchingProtocols || w.server != p.Server {
		s.t.Fatalf("page %d by %q, socket %d by %q", p.status, p.Server, w.status, w.server)
	}
	return p, w
}

// sessionsOf is what the table counts at an upstream.
func sessionsOf(addr string) tally {
	tb := thisLedger()
	if u := upstreamAt(tb, upstreamName(addr)); u != nil {
		return tallyOf(u)
	}
	return tally{}
}

// selectionsOf is how often an upstream was chosen.
func selectionsOf(addr string) (n int64) {
	tb := thisLedger()
	if u := upstreamAt(tb, upstreamName(addr)); u != nil {
		for _, times := range u.History.Selected {
			n += times.Load()
		}
	}
	return n
}

// hangs is how long nothing takes that goes well, however busy the machine is. Waiting for what comes sooner ends sooner.
const hangs = 2 * time.Minute

// soon waits for something that other goroutines are about to do.
func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(hangs)
	for tick := time.NewTicker(2 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %v: not %s", hangs, what)
		}
	}
}

func soonCounts(t *testing.T, when, addr string, want tally) {
	t.Helper()
	var got tally
	deadline := time.Now().Add(hangs)
	soon(t, when, func() bool {
		got = sessionsOf(addr)
		if got != want && time.Now().After(deadline.Add(-time.Second)) {
			t.Fatalf("%s: building, waiting, connected, unused = %v, want %v", when, got, want)
		}
		return got == want
	})
}

// soonSessions waits until so many sessions are counted: what an answer tells is known a moment after the visitor has it.
func soonSessions(t *testing.T, servers []*bokehServer, want int) {
	t.Helper()
	soon(t, fmt.Sprint(want, " sessions"), func() bool {
		sum := 0
		for _, b := range servers {
			for _, n := range sessionsOf(b.addr()) {
				sum += int(n)
			}
		}
		return sum == want
	})
}

// three starts three servers and returns them with the addresses as a Caddyfile takes them.
func three(t *testing.T) ([]*bokehServer, string) {
	t.Helper()
	servers := []*bokehServer{newBokeh(t, ""), newBokeh(t, ""), newBokeh(t, "")}
	var addrs []string
	for _, b := range servers {
		addrs = append(addrs, b.addr())
	}
	return servers, strings.Join(addrs, " ")
}

func runs(servers []*bokehServer) (n int) {
	for _, b := range servers {
		n += b.appRuns()
	}
	return n
}

func at(servers []*bokehServer, addr string) *bokehServer {
	for _, b := range servers {
		if b.addr() == addr {
			return b
		}
	}
	return nil
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

// A client's own stamp header never reaches a server, whatever it asks for.
func TestClientsStampIsNotPassedOn(t *testing.T) {
	for name, extra := range map[string]string{"": "", "with header operations": " header_up X-A b\n"} {
		b := newBokeh(t, "")
		s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n"+extra+"}")
		s.get("/app", bokeh.StampHeader, "forged")
		if got := b.lastPage()[bokeh.StampHeader]; len(got) > 0 {
			t.Errorf("%s: the server got %q", name, got)
		}
		s.get("/app", bokeh.StampHeader, "forged", bokeh.SessionIDHeader, "mine")
		if got := b.lastPage()[bokeh.StampHeader]; len(got) != 1 || got[0] == "forged" {
			t.Errorf("%s: with an id, the server got %q", name, got)
		}
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

// The ways in which servers make session ids, and what a policy may have been told of it.
func TestSessionIDs(t *testing.T) {
	const secret = "a secret key"
	k := stamp.NewKey([]byte(secret))
	external := func(n int) string {
		base := fmt.Sprintf("external-%d", n)
		return base + "." + k.Signature(base)
	}
	for _, server := range []string{sessionIDsUnsigned, sessionIDsSigned, sessionIDsExternalSigned} {
		for name, options := range map[string]string{
			"told":          "session_ids " + server,
			"told with key": "session_ids " + server + "\n secret_key " + secret,
			"not told":      "",
		} {
			t.Run(server+", "+name, func(t *testing.T) {
				options = strings.ReplaceAll(options, secret, `"`+secret+`"`)
				servers, addrs := three(t)
				for _, b := range servers {
					b.ids = server
					if server != sessionIDsUnsigned {
						b.secret = k
					}
				}
				s := serve(t, "reverse_proxy "+addrs+" {\n lb_policy bokeh {\n "+options+"\n }\n}")
				refused := 0
				const visits = 15
				for i := range visits {
					var header []string
					if server == sessionIDsExternalSigned {
						header = []string{bokeh.SessionIDHeader, external(i)}
					}
					p := s.get("/app", header...)
					if p.status == http.StatusForbidden {
						refused++
						soonSessions(t, servers, i+1-refused)
						continue
					}
					if w := s.open(p.Token); w.server != p.Server {
						t.Errorf("page by %s, socket by %s", p.Server, w.server)
					}
				}
				if n := runs(servers); n != visits-refused {
					t.Errorf("%d visits ran the app %d times", visits-refused, n)
				}
				want := 0
				if server == sessionIDsSigned && name == "not told" {
					want = len(servers)
				}
				if refused != want {
					t.Errorf("%d visits were refused, want %d", refused, want)
				}
			})
		}
	}
}

// An external-signed server refuses a visitor who brings no id. We must not let him in.
func TestExternalSignedNeedsAnID(t *testing.T) {
	b := newBokeh(t, "")
	b.ids, b.secret = sessionIDsExternalSigned, stamp.NewKey([]byte("k"))
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh {\n session_ids external-signed\n secret_key k\n }\n}")
	if p := s.get("/app"); p.status != http.StatusForbidden {
		t.Errorf("status %d, want 403", p.status)
	}
}

// A new process, here another config with an empty table, finds the session by its stamp.
func TestBoundAfterRestart(t *testing.T) {
	for name, options := range map[string]string{
		"stored key": "",
		"own key":    "secret_key k",
		"new key":    "secret_key k",
		"beside":     "session_ids signed",
	} {
		t.Run(name, func(t *testing.T) {
			servers, addrs := three(t)
			if name == "beside" {
				for _, b := range servers {
					b.ids, b.secret = sessionIDsSigned, stamp.NewKey([]byte("theirs"))
				}
			}
			storage := storageDir(t)
			config := "reverse_proxy " + addrs + " {\n lb_policy bokeh {\n %s\n }\n}"
			s := serveFrom(t, storage, fmt.Sprintf(config, options))
			var pages []page
			for range 9 {
				pages = append(pages, s.get("/app"))
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			if name == "new key" {
				options = "secret_key new k"
			}
			s = serveFrom(t, storage, fmt.Sprintf(config, options))
			for _, p := range pages {
				if w := s.open(p.Token); w.server != p.Server {
					t.Errorf("page by %s, socket by %s", p.Server, w.server)
				}
			}
			if n := runs(servers); n != 9 {
				t.Errorf("9 visits ran the app %d times", n)
			}
		})
	}
}

// forget makes the process forget its sessions and its keys, as a new one would.
func forget(t *testing.T) {
	t.Helper()
	oldSessions, oldKeys, oldNode := thisLedger, held, thisNode
	fresh, keys := newLedger(), newHeldKeys()
	thisLedger = func() *ledger { return fresh }
	held = func() *heldKeys { return keys }
	ctx, kill := context.WithCancel(context.Background())
	thisNode = sync.OnceValue(func() *cluster.Cluster {
		return cluster.New(ctx, testConfig(fresh.Table, runningStorage, caddy.Log()))
	})
	t.Cleanup(func() {
		kill()
		thisLedger, held, thisNode = oldSessions, oldKeys, oldNode
	})
}

func TestNewSessionSurvivesDeadUpstreams(t *testing.T) {
	for name, extra := range map[string]string{
		"":                       "",
		"with header operations": " header_up X-A b\n",
	} {
		t.Run(name, func(t *testing.T) {
			alive := newBokeh(t, "")
			dead := []string{deadAddr(t), deadAddr(t), deadAddr(t)}
			s := serve(t, "reverse_proxy "+strings.Join(dead, " ")+" "+alive.addr()+
				" {\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n"+extra+"}")
			for range 5 {
				p, w := s.visit()
				// The stamp that reached the server is the fresh one, which names it.
				stamp := alive.lastPage().Get(bokeh.SessionIDHeader)
				ring := *activeRing(t)
				tg, k, ok := ring.Verify(stamp)
				if !ok || tg != k.Tag(sharedName(upstreamName(alive.addr()))) {
					t.Errorf("the server got the stamp %q", stamp)
				}
				if bokeh.ReadToken(p.Token, ring).Stamp != stamp {
					t.Error("the token does not carry the stamp")
				}
				w.Close()
			}
			for _, addr := range dead {
				if got := sessionsOf(addr); got != (tally{}) {
					t.Errorf("a dead upstream has the sessions %v", got)
				}
			}
			soonCounts(t, "all unused", alive.addr(), tally{0, 0, 0, 5})
		})
	}
}

// activeRing is the keyring that the stored key makes.
func activeRing(t *testing.T) *stamp.Keyring {
	t.Helper()
	secret, err := caddy.ActiveContext().Storage().Load(context.Background(), storedKey)
	if err != nil {
		t.Fatal(err)
	}
	return &stamp.Keyring{stamp.NewKey(secret)}
}

// Without retries the failed dial of one visit tells the next one.
func TestDeadUpstreamIsPassedOver(t *testing.T) {
	for name, tc := range map[string]struct {
		dead  func() string
		proxy string
	}{
		"refuses":   {dead: func() string { return deadAddr(t) }},
		"is no TLS": {func() string { return newBokeh(t, "").addr() }, " transport http {\n tls_insecure_skip_verify\n }\n"},
	} {
		t.Run(name, func(t *testing.T) {
			alive := unstartedBokeh(t, "")
			if tc.proxy == "" {
				alive.Start()
			} else {
				alive.StartTLS()
			}
			s := serve(t, "reverse_proxy "+tc.dead()+" "+alive.addr()+" {\n lb_policy bokeh\n"+tc.proxy+"}")
			failed := 0
			for range 10 {
				if s.get("/app").status != http.StatusOK {
					failed++
				}
			}
			if failed > 1 {
				t.Errorf("%d of 10 visits failed, want at most the first", failed)
			}
		})
	}
}

func TestPoolOfOneRidesOutARestart(t *testing.T) {
	b := newBokeh(t, "")
	addr := b.addr()
	s := serve(t, "reverse_proxy "+addr+" {\n lb_policy bokeh\n lb_try_duration 10s\n lb_try_interval 10ms\n transport http {\n keepalive off\n }\n}") // one that was kept may break with a request on it
	p, w := s.visit()
	b.stop()
	w.Close()
	before := selectionsOf(addr)
	got := make(chan page, 2)
	go func() { got <- s.get("/app") }()
	opened := make(chan ws, 1)
	go func() { opened <- s.open(p.Token) }()
	soon(t, "both asked more than once", func() bool { return selectionsOf(addr) > before+2 })
	newBokeh(t, addr)
	if p := <-got; p.status != http.StatusOK {
		t.Errorf("page: %d", p.status)
	}
	if w := <-opened; w.status != http.StatusSwitchingProtocols {
		t.Errorf("socket: %d", w.status)
	}
}

// A session whose server is lost moves: on this request if it is retried, else on the next. It
// stays where it moved, on other nodes too, also when its first server is back.
func TestLostSessionMoves(t *testing.T) {
	for name, retry := range map[string]string{
		"retried":     " lb_try_duration 5s\n lb_try_interval 1ms\n",
		"not retried": "",
	} {
		t.Run(name, func(t *testing.T) {
			servers, addrs := three(t)
			storage := storageDir(t)
			config := "reverse_proxy " + addrs + " {\n lb_policy bokeh\n header_up X-A b\n" + retry + "}"
			s := serveFrom(t, storage, config)
			p, w := s.visit()
			home := at(servers, p.Server)
			home.stop()
			w.Close()
			soonCounts(t, "unused at home", p.Server, tally{0, 0, 0, 1})

			moved := s.open(p.Token)
			if retry == "" {
				if moved.status != http.StatusBadGateway {
					t.Errorf("first try: %d", moved.status)
				}
				moved = s.open(p.Token)
			}
			if moved.status != http.StatusSwitchingProtocols || moved.server == p.Server {
				t.Fatalf("status %d at %s", moved.status, moved.server)
			}
			soonCounts(t, "moved", moved.server, tally{0, 0, 1, 0})
			soonCounts(t, "left", p.Server, tally{})

			newBokeh(t, p.Server) // it is back, without the session
			if again := s.open(p.Token); again.server != moved.server {
				t.Errorf("a later socket went to %s, want %s", again.server, moved.server)
			}
		})
	}
}

// Another node finds by itself where a session has moved.
func TestLostSessionMovesAlikeOnAllNodes(t *testing.T) {
	servers, addrs := three(t)
	storage := storageDir(t)
	config := "reverse_proxy " + addrs + " {\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n}"
	s := serveFrom(t, storage, config)
	var pages []page
	for range 15 {
		pages = append(pages, s.get("/app"))
	}
	servers[0].stop()
	moved := map[string]string{}
	for _, p := range pages {
		w := s.open(p.Token)
		moved[p.Token] = w.server
		if stays := p.Server != servers[0].addr(); stays != (w.server == p.Server) {
			t.Errorf("a session of %s went to %s", p.Server, w.server)
		}
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s = serveFrom(t, storage, config)
	for _, p := range pages {
		if w := s.open(p.Token); w.server != moved[p.Token] {
			t.Errorf("moved to %s on one node, to %s on another", moved[p.Token], w.server)
		}
	}
}

func TestCountsOfTroubledPages(t *testing.T) {
	b := newBokeh(t, "")
	b.hold = make(chan struct{})
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.tryGet(ctx, "/app")
		done <- err
	}()
	soonCounts(t, "building", b.addr(), tally{1, 0, 0, 0})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	soonCounts(t, "aborted", b.addr(), tally{})

	close(b.hold)
	for _, status := range []int{http.StatusFound, http.StatusNotFound, http.StatusInternalServerError} {
		b.status.Store(int64(status))
		if p := s.get("/app"); p.status != status {
			t.Errorf("status %d, want %d", p.status, status)
		}
		soonCounts(t, fmt.Sprint("answered ", status), b.addr(), tally{})
	}
}

// Where another handler takes over the answer, its status is not that of the page.
func TestCountsOfAnAnswerTakenOver(t *testing.T) {
	for name, policy := range map[string]string{"the same": "bokeh", "another": "first"} {
		t.Run("by "+name+" policy", func(t *testing.T) {
			gone, other := newBokeh(t, ""), newBokeh(t, "")
			gone.status.Store(http.StatusGone)
			s := serve(t, "reverse_proxy "+gone.addr()+" {\n lb_policy bokeh\n @gone status 410\n handle_response @gone {\n"+
				" reverse_proxy "+other.addr()+" {\n lb_policy "+policy+"\n }\n }\n}")
			p := s.get("/app")
			if p.Server != other.addr() {
				t.Fatalf("%d by %q", p.status, p.Server)
			}
			if policy == "bokeh" {
				soonCounts(t, "page served", other.addr(), tally{0, 1, 0, 0})
			}
			soonCounts(t, "page gone", gone.addr(), tally{})
		})
	}
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

// A page is built when its first byte comes, however long the rest takes.
func TestBuildingEndsAtTheFirstByte(t *testing.T) {
	b := newBokeh(t, "")
	b.drip = make(chan struct{})
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n flush_interval -1\n}")
	got := make(chan page, 1)
	go func() { got <- s.get("/app") }()
	soonCounts(t, "first byte", b.addr(), tally{0, 1, 0, 0})
	close(b.drip)
	<-got
	soonCounts(t, "last byte", b.addr(), tally{0, 1, 0, 0})
}

func TestRetriesByNumber(t *testing.T) {
	alive := newBokeh(t, "")
	s := serve(t, "reverse_proxy "+deadAddr(t)+" "+deadAddr(t)+" "+alive.addr()+" {\n lb_policy bokeh\n lb_retries 2\n}")
	for range 5 {
		s.visit()
	}
	soonCounts(t, "all connected", alive.addr(), tally{0, 0, 5, 0})
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

// A site that asks servers for TLS which they do not speak must not move the sessions of another.
func TestOneSitesTLSIsNotAnothers(t *testing.T) {
	_, addrs := three(t)
	s := serve(t, "handle /two/* {\n reverse_proxy https://"+strings.ReplaceAll(addrs, " ", " https://")+" {\n lb_policy bokeh\n }\n}\n"+
		"handle {\n reverse_proxy "+addrs+" {\n lb_policy bokeh\n }\n}")
	var pages []page
	for range 6 {
		pages = append(pages, s.get("/app"))
	}
	for range 3 {
		if p := s.get("/two/app"); p.status != http.StatusBadGateway {
			t.Errorf("status %d", p.status)
		}
	}
	for _, p := range pages {
		if w := s.open(p.Token); w.server != p.Server {
			t.Errorf("page by %s, socket by %s", p.Server, w.server)
		}
	}
}

// Two keys of which a server takes neither cost one page each.
func TestTwoKeysRefused(t *testing.T) {
	b := newBokeh(t, "")
	b.ids, b.secret = sessionIDsSigned, stamp.NewKey([]byte("theirs"))
	s := serve(t, "handle /two/* {\n reverse_proxy "+b.addr()+" {\n lb_policy bokeh {\n secret_key other\n }\n }\n}\n"+
		"handle {\n reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n }\n}")
	visits, refused := 0, 0
	for range 5 {
		for _, path := range []string{"/app", "/two/app"} {
			visits++
			if s.get(path).status == http.StatusForbidden {
				refused++
			}
			soonSessions(t, []*bokehServer{b}, visits-refused)
		}
	}
	if refused != 2 {
		t.Errorf("%d of 10 pages were refused, want 2", refused)
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

func TestDialOfUnixSocket(t *testing.T) {
	path := t.TempDir() + "/bokeh.sock"
	b := newBokeh(t, path)
	s := serve(t, "reverse_proxy unix/"+path+" {\n lb_policy bokeh\n}")
	if p, w := s.visit(); p.Server != w.server || p.Server != b.addr() {
		t.Errorf("page by %q, socket by %q", p.Server, w.server)
	}
	if got := sessionsOf("unix/" + path); got != (tally{0, 0, 1, 0}) {
		t.Errorf("sessions %v", got)
	}
}

func TestPlaceholderInAddress(t *testing.T) {
	a, b := newBokeh(t, ""), newBokeh(t, "")
	s := serve(t, "reverse_proxy {query.a} {query.b} {\n lb_policy bokeh\n}")
	q := "?" + url.Values{"a": {a.addr()}, "b": {b.addr()}}.Encode()
	for range 6 {
		p := s.get("/app" + q)
		w, err := s.tryOpen("/app/ws"+q, "bokeh, "+p.Token)
		if err != nil || w.server != p.Server {
			t.Errorf("page by %q, socket by %q, %v", p.Server, w.server, err)
		}
	}
	if n := runs([]*bokehServer{a, b}); n != 6 {
		t.Errorf("6 visits ran the app %d times", n)
	}
}

// shifting is a source of upstreams that makes new ones for every attempt, or fails.
type shifting struct {
	Addrs []string `json:"addrs"`
}

var (
	shiftingFails atomic.Bool
	shiftingHides atomic.Value // the address (string) of one that is not found any more
)

func (*shifting) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.test_shifting", New: func() caddy.Module { return new(shifting) }}
}

func (s *shifting) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	s.Addrs = d.RemainingArgs()
	return nil
}

func (*shifting) DependsOnRequest() bool { return false }

func (s *shifting) GetUpstreams(*http.Request) ([]*reverseproxy.Upstream, error) {
	if shiftingFails.Load() {
		return nil, errors.New("no answer")
	}
	var ups []*reverseproxy.Upstream
	for _, i := range mathrand.Perm(len(s.Addrs)) {
		if s.Addrs[i] != shiftingHides.Load() {
			ups = append(ups, &reverseproxy.Upstream{Dial: s.Addrs[i]})
		}
	}
	return ups, nil
}

func init() { caddy.RegisterModule(new(shifting)) }

func TestDynamicUpstreams(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "reverse_proxy {\n dynamic test_shifting "+addrs+" "+deadAddr(t)+"\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n}")
	for range 9 {
		_, w := s.visit()
		w.Close()
	}
	if n := runs(servers); n != 9 {
		t.Errorf("9 visits ran the app %d times", n)
	}
	for _, b := range servers {
		soonCounts(t, "spread", b.addr(), tally{0, 0, 0, 3})
	}
	p, w := s.visit()
	shiftingFails.Store(true)
	defer shiftingFails.Store(false)
	w.Close()
	if w := s.open(p.Token); w.server != p.Server {
		t.Errorf("while discovery fails the socket went to %q, its page was at %q", w.server, p.Server)
	}
	s.visit()
}

// A server that discovery does not find any more keeps its sessions and gets no other.
func TestGoneFromDiscovery(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "reverse_proxy {\n dynamic test_shifting "+addrs+"\n lb_policy bokeh\n}")
	var pages []page
	for range 3 {
		p, w := s.visit()
		w.Close()
		pages = append(pages, p)
	}
	gone := at(servers, pages[0].Server)
	shiftingHides.Store(gone.addr())
	defer shiftingHides.Store("")
	before := gone.appRuns()
	for range 6 {
		s.visit()
	}
	for _, p := range pages {
		if w := s.open(p.Token); w.server != p.Server {
			t.Errorf("page by %s, socket by %s", p.Server, w.server)
		}
	}
	if n := gone.appRuns(); n != before {
		t.Errorf("the server that is gone ran the app %d times more", n-before)
	}
	soonCounts(t, "its session", gone.addr(), tally{0, 0, 1, 0})
	gone.stop()
	soonCounts(t, "cut", gone.addr(), tally{0, 0, 0, 1})
	s.open(pages[0].Token) // without retries the first one finds that it is dead
	if w := s.open(pages[0].Token); w.status != http.StatusSwitchingProtocols || w.server == gone.addr() {
		t.Errorf("socket %d by %s", w.status, w.server)
	}
}

// dynamic a and dynamic srv, with a resolver of our own that can fail.
func TestDynamicDNS(t *testing.T) {
	servers, port := samePort(t)
	dns := newResolver(t, port)
	for name, source := range map[string]string{
		"a":   "dynamic a bokeh.test " + port,
		"srv": "dynamic srv bokeh.test",
	} {
		t.Run(name, func(t *testing.T) {
			before := runs(servers)
			config := "reverse_proxy {\n " + source + " {\n resolvers " + dns.addr + "\n refresh 1ms\n }\n transport http {\n resolvers " + dns.addr + "\n }\n lb_policy bokeh\n}"
			s := serve(t, config)
			for range 8 {
				s.visit()
			}
			if n := runs(servers) - before; n != 8 {
				t.Errorf("8 visits ran the app %d times", n)
			}
			dns.fails.Store(true)
			defer dns.fails.Store(false)
			s.visit()
			s.reload("header X-Config next\n" + config)
			s.visit()
		})
	}
}

// samePort starts servers at several loopback addresses with one port.
func samePort(t *testing.T) ([]*bokehServer, string) {
	t.Helper()
	first := newBokeh(t, "127.0.0.2:0")
	_, port, _ := net.SplitHostPort(first.addr())
	return []*bokehServer{first, newBokeh(t, "127.0.0.3:"+port)}, port
}

// resolver is a DNS server that knows bokeh.test.
type resolver struct {
	addr  string
	fails atomic.Bool
}

func newResolver(t *testing.T, port string) *resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d := &resolver{addr: conn.LocalAddr().String()}
	n, _ := strconv.Atoi(port)
	go func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			answer, err := d.answer(buf[:size], uint16(n))
			if err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return d
}

func (d *resolver) answer(query []byte, port uint16) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.Additionals = true, nil
	q := m.Questions[0]
	if d.fails.Load() && q.Name.String() == "bokeh.test." {
		m.RCode = dnsmessage.RCodeServerFailure
		return m.Pack()
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	for i, host := range []string{"one.test.", "two.test."} {
		records := map[dnsmessage.Type]dnsmessage.ResourceBody{
			dnsmessage.TypeSRV: &dnsmessage.SRVResource{Port: port, Target: dnsmessage.MustNewName(host)},
			dnsmessage.TypeA:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, byte(2 + i)}},
		}
		if body, ok := records[q.Type]; ok {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: body})
		}
	}
	return m.Pack()
}

// An https upstream brings a header operation of its own, and another port.
func TestTLSUpstreams(t *testing.T) {
	var addrs []string
	var servers []*bokehServer
	for range 2 {
		b := unstartedBokeh(t, "")
		b.StartTLS()
		servers = append(servers, b)
		addrs = append(addrs, "https://"+b.addr())
	}
	s := serve(t, "reverse_proxy "+strings.Join(addrs, " ")+" https://"+deadAddr(t)+" {\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n"+
		" transport http {\n tls_insecure_skip_verify\n }\n}")
	for range 6 {
		s.visit()
	}
	if n := runs(servers); n != 6 {
		t.Errorf("6 visits ran the app %d times", n)
	}
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
