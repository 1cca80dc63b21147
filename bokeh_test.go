// This file holds a stand-in for a Bokeh server: as much of its protocol as routing can see, with
// handles for the tests. The real one is in e2e.

package caddybokeh

import (
	"bufio"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// bokehServer is a server that behaves like bokeh serve with one app at /app.
type bokehServer struct {
	*httptest.Server
	t *testing.T

	ids    string     // as --session-ids
	secret *stamp.Key // as BOKEH_SECRET_KEY

	apps  []string     // paths of apps beside /app
	files http.Handler // answers what is neither a page nor a socket, if not nil

	status atomic.Int64   // answered to page requests instead of a page, if not 0
	greets func(net.Conn) // what the server does with a websocket that it has opened, if not nil
	hints  bool           // a page is announced by 103 Early Hints
	hold   chan struct{}  // page requests wait until it is closed, if not nil
	died   atomic.Bool    // a request has taken the server down
	drip   chan struct{}  // a page's last byte waits until it is closed, if not nil

	mu      sync.Mutex // guards all below
	docs    map[string]int
	runs    int
	sockets map[net.Conn]bool
	headers []http.Header // of the page requests
}

// newBokeh starts a server at addr, or anywhere if that is empty.
func newBokeh(t *testing.T, addr string) *bokehServer {
	t.Helper()
	b := unstartedBokeh(t, addr)
	b.Start()
	return b
}

func unstartedBokeh(t *testing.T, addr string) *bokehServer {
	t.Helper()
	b := &bokehServer{t: t, ids: sessionIDsUnsigned, docs: map[string]int{}, sockets: map[net.Conn]bool{}}
	b.Server = httptest.NewUnstartedServer(b)
	if addr != "" {
		network := "tcp"
		if strings.HasPrefix(addr, "/") {
			network = "unix"
		}
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		b.Listener.Close()
		b.Listener = ln
	}
	t.Cleanup(b.stop)
	return b
}

// addr is what an upstream of Caddy's has to dial.
func (b *bokehServer) addr() string { return b.Listener.Addr().String() }

// stop ends the server as SIGKILL would: sockets are cut and connections refused.
func (b *bokehServer) stop() {
	b.cut()
	b.CloseClientConnections()
	b.Close()
}

// die ends the server in the middle of a request.
func (b *bokehServer) die() {
	b.died.Store(true)
	b.Listener.Close()
	b.Config.Close()
	panic(http.ErrAbortHandler)
}

// cut closes all sockets.
func (b *bokehServer) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.sockets {
		c.Close()
	}
}

func (b *bokehServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Query().Has("die"):
		b.die()
	case strings.HasSuffix(r.URL.Path, "/ws"):
		b.serveSocket(w, r)
	case strings.HasSuffix(r.URL.Path, "/app"), strings.HasSuffix(r.URL.Path, "/autoload.js"), slices.Contains(b.apps, r.URL.Path):
		b.servePage(w, r)
	case b.files != nil:
		b.files.ServeHTTP(w, r)
	default:
		fmt.Fprint(w, b.addr())
	}
}

// servePage is bokeh/server/core.py, create_session.
func (b *bokehServer) servePage(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.headers = append(b.headers, r.Header.Clone())
	b.mu.Unlock()
	if b.hints {
		w.WriteHeader(http.StatusEarlyHints)
	}
	if b.hold != nil {
		select {
		case <-b.hold:
		case <-r.Context().Done():
			return
		}
	}
	if status := int(b.status.Load()); status != 0 {
		w.Header().Set("Location", "/login?next="+url.QueryEscape(r.RequestURI))
		w.WriteHeader(status)
		return
	}
	id := r.URL.Query().Get("bokeh-session-id")
	if h := r.Header.Get(bokeh.SessionIDHeader); h != "" {
		id = h
	}
	if id == "" && b.ids != sessionIDsExternalSigned {
		id = "made-by-" + strings.ReplaceAll(b.addr(), ".", "-") + "-" + rand.Text()
		if b.secret != nil {
			id += "." + b.secret.Signature(id)
		}
	}
	if !b.accepts(id) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	b.open(id)
	headers := map[string]any{}
	for name, values := range r.Header {
		headers[name] = strings.Join(values, ",")
	}
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprintf(w, `{"server":%q,"token":%q`, b.addr(), bokehtest.Token(b.t, id, headers))
	if b.drip != nil {
		_ = http.NewResponseController(w).Flush()
		<-b.drip
	}
	fmt.Fprint(w, "}")
}

// accepts says whether the server lets in a session id.
func (b *bokehServer) accepts(id string) bool {
	if b.ids == sessionIDsUnsigned {
		return id != ""
	}
	base, sig, ok := strings.Cut(id, ".")
	return ok && sig == b.secret.Signature(base)
}

// open makes the session unless the server has it.
func (b *bokehServer) open(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.docs[id]++; b.docs[id] == 1 {
		b.runs++
	}
}

func (b *bokehServer) serveSocket(w http.ResponseWriter, r *http.Request) {
	protocols := r.Header.Get("Sec-Websocket-Protocol")
	if first, _, ok := strings.Cut(protocols, ", "); ok && first != "bokeh" && strings.Count(protocols, ",") == 1 {
		// Bokeh takes the first of two, whatever it is, and closes what it then finds is not its own.
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Protocol", first)
		w.WriteHeader(http.StatusSwitchingProtocols)
		return
	}
	token, ok := bokeh.SubprotocolToken(r.Header)
	id := bokeh.ReadToken(token, bokehtest.Ring).ID
	if !ok || !b.accepts(id) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	b.open(id)
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		b.t.Error(err)
		return
	}
	b.mu.Lock()
	b.sockets[conn] = true
	b.mu.Unlock()
	defer func() {
		if b.greets != nil {
			b.greets(conn)
		} else {
			fmt.Fprint(conn, "\x81\x02{}") // as Bokeh says ACK
		}
	}()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Server: %s\r\n"+
		"Sec-WebSocket-Protocol: bokeh\r\nSec-WebSocket-Accept: %s\r\n\r\n", b.addr(), base64.StdEncoding.EncodeToString(sum[:]))
	buf.Flush()
	go func() {
		defer func() {
			b.mu.Lock()
			delete(b.sockets, conn)
			b.mu.Unlock()
			conn.Close()
		}()
		_, _ = bufio.NewReader(conn).ReadByte() // until either side closes
	}()
}

// lastPage returns the headers of the last page request that reached the server.
func (b *bokehServer) lastPage() http.Header {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.headers) == 0 {
		return nil
	}
	return b.headers[len(b.headers)-1]
}

// appRuns returns how often the app ran.
func (b *bokehServer) appRuns() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.runs
}
