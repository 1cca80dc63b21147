// This file holds sites: Caddys that run in the process of the tests, and what visitors do there.

package caddybokeh

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

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

// activeRing is the keyring that the stored key makes.
func activeRing(t *testing.T) *stamp.Keyring {
	t.Helper()
	secret, err := caddy.ActiveContext().Storage().Load(context.Background(), storedKey)
	if err != nil {
		t.Fatal(err)
	}
	return &stamp.Keyring{stamp.NewKey(secret)}
}
