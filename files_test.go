// This file tests that files whose address names their content are asked for once, and never taken for others.

package caddybokeh

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/contentcache"
)

// fileServer is a server that has one script at every path under /static/, and says of it what Tornado says.
type fileServer struct {
	*httptest.Server
	script string
	asks   atomic.Int64
	answer atomic.Pointer[http.HandlerFunc] // instead of the script, if not nil
	last   atomic.Pointer[http.Request]
}

func newFileServer(t *testing.T, script string) *fileServer {
	t.Helper()
	s := &fileServer{script: script}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *fileServer) addr() string { return s.Listener.Addr().String() }

func (s *fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asks.Add(1)
	s.last.Store(r)
	if answer := s.answer.Load(); answer != nil {
		(*answer)(w, r)
		return
	}
	s.send(w, r)
}

func (s *fileServer) send(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "TornadoServer/6.6.1")
	h.Set("Content-Type", "application/javascript")
	h.Set("Cache-Control", "max-age=315360000")
	h.Set("Expires", "Mon, 24 Nov 2036 05:17:44 GMT")
	h.Set("Etag", `"`+hashOf(s.script)+`"`)
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(s.script))
}

// instead answers with something else from now on.
func (s *fileServer) instead(answer http.HandlerFunc) { s.answer.Store(&answer) }

func hashOf(script string) string {
	sum := sha512.Sum512([]byte(script))
	return hex.EncodeToString(sum[:])
}

// aScript is one that is worth compressing.
var aScript = strings.Repeat("console.log('a');\n", 1000)

func addressOf(script string) string { return "/static/js/bokeh.min.js?v=" + hashOf(script) }

// fetched is an answer, read to its end.
type fetched struct {
	status int
	header http.Header
	body   string
}

func (s *site) fetch(t *testing.T, method, path string, header ...string) fetched {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "identity")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fetched{res.StatusCode, res.Header, string(body)}
}

func (f fetched) want(t *testing.T, status int, cache, body string) {
	t.Helper()
	if f.status != status || f.header.Get("Cache-Status") != cache || f.body != body {
		t.Errorf("got %d, %q and %d bytes, want %d, %q and %d bytes", f.status, f.header.Get("Cache-Status"), len(f.body), status, cache, len(body))
	}
}

func wantAsks(t *testing.T, servers []*fileServer, want int64) {
	t.Helper()
	var n int64
	for _, s := range servers {
		n += s.asks.Load()
	}
	if n != want {
		t.Errorf("servers were asked %d times, want %d", n, want)
	}
}

const (
	isHit  = "bokeh-files; hit"
	isMiss = "bokeh-files; fwd=uri-miss; stored"
)

func TestFileIsAskedForOnce(t *testing.T) {
	a, b := newFileServer(t, aScript), newFileServer(t, aScript)
	s := serve(t, "bokeh_proxy "+a.addr()+" "+b.addr())
	s.fetch(t, "GET", addressOf(aScript), "Range", "bytes=0-9", "If-None-Match", `"x"`).want(t, 206, isMiss, aScript[:10])
	f := s.fetch(t, "GET", addressOf(aScript))
	f.want(t, 200, isHit, aScript)
	for name, want := range map[string]string{
		"Content-Type": "text/javascript; charset=utf-8", "Cache-Control": "max-age=31536000, immutable", "Etag": `"` + hashOf(aScript) + `"`,
		"Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff", "Expires": "", "Server": "TornadoServer/6.6.1", "Content-Encoding": "",
		"Accept-Ranges": "bytes", "Content-Length": fmt.Sprint(len(aScript)),
	} {
		if got := f.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	s.fetch(t, "HEAD", addressOf(aScript)).want(t, 200, isHit, "")
	s.fetch(t, "GET", addressOf(aScript), "Cache-Control", "no-cache").want(t, 200, isHit, aScript)
	s.fetch(t, "GET", addressOf(aScript), "If-None-Match", `"`+hashOf(aScript)+`"`).want(t, 304, isHit, "")
	s.fetch(t, "GET", addressOf(aScript), "Range", "bytes=5-9").want(t, 206, isHit, aScript[5:10])
	s.fetch(t, "GET", addressOf(aScript), "Range", "bytes=5-9", "If-Range", `"other"`).want(t, 200, isHit, aScript)
	if f := s.fetch(t, "GET", addressOf(aScript), "Range", "bytes=900000-"); f.status != 416 || f.header.Get("Cache-Control") != "" {
		t.Errorf("a range that is not there: %d, to be kept for %q", f.status, f.header.Get("Cache-Control"))
	}
	wantAsks(t, []*fileServer{a, b}, 1)
}

func TestFileIsCompressed(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, "encode\n\tbokeh_proxy "+a.addr())
	for accept, want := range map[string]string{
		"gzip, deflate, br, zstd": "zstd", "gzip": "gzip", "gzip;q=1, zstd;q=0.5": "gzip", "br": "", "identity": "", "gzip;q=0, identity": "",
	} {
		f := s.fetch(t, "GET", addressOf(aScript), "Accept-Encoding", accept)
		if got := f.header.Get("Content-Encoding"); got != want {
			t.Errorf("%s: encoding %q, want %q", accept, got, want)
		}
		if f.header.Get("Content-Length") != fmt.Sprint(len(f.body)) || strings.Count(strings.Join(f.header["Vary"], ","), "Accept-Encoding") != 1 {
			t.Errorf("%s: %v", accept, f.header)
		}
		if got := decoded(t, want, f.body); got != aScript {
			t.Errorf("%s: it is not the script", accept)
		}
		again := s.fetch(t, "GET", addressOf(aScript), "Accept-Encoding", accept, "If-None-Match", f.header.Get("Etag"))
		again.want(t, 304, isHit, "")
		s.fetch(t, "GET", addressOf(aScript), "Accept-Encoding", accept, "Range", "bytes=0-6").want(t, 206, isHit, aScript[:7])
		s.fetch(t, "GET", addressOf(aScript), "Accept-Encoding", accept, "If-Match", `"other"`).want(t, 412, isHit, "")
	}
	wantAsks(t, []*fileServer{a}, 1)
}

func decoded(t *testing.T, encoding, body string) string {
	t.Helper()
	var r io.Reader = strings.NewReader(body)
	var err error
	switch encoding {
	case "gzip":
		r, err = gzip.NewReader(r)
	case "zstd":
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// While servers have two versions, each file comes from those that have it.
func TestFileOfAnotherVersion(t *testing.T) {
	other := strings.Repeat("console.log('b');\n", 1000)
	servers := []*fileServer{newFileServer(t, aScript), newFileServer(t, aScript), newFileServer(t, other)}
	missing := http.HandlerFunc(http.NotFound)
	addrs := servers[0].addr() + " " + servers[1].addr() + " " + servers[2].addr()
	for name, answer := range map[string]*http.HandlerFunc{"another content": nil, "none": &missing} {
		t.Run(name, func(t *testing.T) {
			for i := range 10 {
				servers[0].answer.Store(answer)
				servers[1].answer.Store(answer)
				s := serve(t, "bokeh_proxy "+addrs)
				if f := s.fetch(t, "GET", addressOf(other)); f.status != 200 || f.body != other || f.header.Get("Cache-Control") != fileCaching {
					t.Fatalf("%d: got %d, %d bytes, %q", i, f.status, len(f.body), f.header.Get("Cache-Control"))
				}
				s.fetch(t, "GET", addressOf(other)).want(t, 200, isHit, other)
			}
		})
	}
}

// What no server has is not kept: not here, nor by a browser. Each is asked once.
func TestFileThatNobodyHas(t *testing.T) {
	servers := []*fileServer{newFileServer(t, aScript), newFileServer(t, aScript), newFileServer(t, aScript)}
	s := serve(t, "bokeh_proxy "+servers[0].addr()+" "+servers[1].addr()+" "+servers[2].addr())
	before := files.Used()
	f := s.fetch(t, "GET", addressOf("gone"))
	f.want(t, 200, "bokeh-files; fwd=uri-miss; detail=wrong", aScript)
	if f.header.Get("Cache-Control") != "no-store" || f.header.Get("Expires") != "" {
		t.Errorf("it may be kept: %v", f.header)
	}
	for _, server := range servers {
		wantAsks(t, []*fileServer{server}, 1)
	}
	if files.Used() != before {
		t.Error("something was kept")
	}
}

// Other policies do not say whom they ask, so a file is asked for once.
func TestFilesBeforeAnotherPolicy(t *testing.T) {
	a, b := newFileServer(t, aScript), newFileServer(t, aScript)
	s := serve(t, "bokeh_files\n\treverse_proxy "+a.addr()+" "+b.addr()+" {\n\t\tlb_policy first\n\t}")
	s.fetch(t, "GET", addressOf("gone"))
	s.fetch(t, "GET", addressOf(aScript)).want(t, 200, isMiss, aScript)
	s.fetch(t, "GET", addressOf(aScript)).want(t, 200, isHit, aScript)
	wantAsks(t, []*fileServer{a, b}, 2)
}

// No site serves what another site's servers have, whoever knows its name.
func TestSitesHaveTheirOwnFiles(t *testing.T) {
	evil := newFileServer(t, "alert(document.cookie)")
	good := newFileServer(t, aScript)
	s := serve(t, "@evil header Site evil\n\tbokeh_proxy @evil "+evil.addr()+"\n\tbokeh_proxy "+good.addr())
	s.fetch(t, "GET", addressOf(evil.script), "Site", "evil").want(t, 200, isMiss, evil.script)
	s.fetch(t, "GET", addressOf(evil.script), "Site", "evil").want(t, 200, isHit, evil.script)
	s.fetch(t, "GET", addressOf(evil.script)).want(t, 200, "bokeh-files; fwd=uri-miss; detail=wrong", aScript)
}

// Where each user has a server, no user's file is served to another one.
func TestUsersHaveTheirOwnServers(t *testing.T) {
	evil, good := newFileServer(t, "alert(document.cookie)"), newFileServer(t, aScript)
	s := serve(t, "bokeh_proxy {http.request.header.Server-Of-User}")
	for range 2 {
		s.fetch(t, "GET", addressOf(evil.script), "Server-Of-User", evil.addr()).want(t, 200, "bokeh-files; fwd=uri-miss; detail=unkept", evil.script)
	}
	s.fetch(t, "GET", addressOf(evil.script), "Server-Of-User", good.addr()).want(t, 200, "bokeh-files; fwd=uri-miss; detail=wrong", aScript)
}

func TestWhatIsNoSuchFile(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, "bokeh_proxy "+a.addr())
	v := hashOf(aScript)
	for i, path := range []string{
		"/static/js/bokeh.min.js", "/static/js/bokeh.min.js?v=" + v[:64], "/static/js/bokeh.min.js?v=" + strings.ToUpper(v),
		"/static/js/bokeh.min.js?v=" + v + "&x=1", "/static/js/bokeh.min.js?x=1&v=" + v, "/static/js/bokeh.min.js?v=" + v[1:] + "g",
		"/static/app.html?v=" + v, "/static/app?v=" + v, "/js/bokeh.min.js?v=" + v, "/static.js?v=" + v,
	} {
		for range 2 {
			s.fetch(t, "GET", path).want(t, 200, "", aScript)
		}
		wantAsks(t, []*fileServer{a}, int64(2*i+2))
	}
	s.fetch(t, "POST", addressOf(aScript)).want(t, 200, "", aScript)
}

// What is meant for one visitor is not kept for all.
func TestPersonalFiles(t *testing.T) {
	for _, line := range []string{
		"Set-Cookie: a=b", "Cache-Control: private, max-age=5", "Cache-Control: no-store", "Cache-Control: public, no-transform", "Vary: Cookie", "Vary: Accept-Encoding, Origin",
		"Access-Control-Allow-Origin: https://a.example", "Content-Encoding: identity2",
	} {
		t.Run(line, func(t *testing.T) {
			a := newFileServer(t, aScript)
			name, value, _ := strings.Cut(line, ": ")
			a.instead(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(name, value)
				io.WriteString(w, aScript)
			})
			s := serve(t, "bokeh_proxy "+a.addr())
			for range 2 {
				f := s.fetch(t, "GET", addressOf(aScript))
				f.want(t, 200, "bokeh-files; fwd=uri-miss; detail=unkept", aScript)
				if f.header.Get(name) != value {
					t.Errorf("%s is lost: %v", line, f.header)
				}
			}
			wantAsks(t, []*fileServer{a}, 2)
		})
	}
}

// What the proxy or the server says of a file beside its content is said of the kept one, too.
func TestHeadersOfKeptFiles(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, "header X-Own {http.request.uuid}\n\tbokeh_proxy "+a.addr()+" {\n\t\theader_down Access-Control-Allow-Origin *\n\t}")
	first := s.fetch(t, "GET", addressOf(aScript))
	for range 2 {
		f := s.fetch(t, "GET", addressOf(aScript))
		f.want(t, 200, isHit, aScript)
		if f.header.Get("Access-Control-Allow-Origin") != "*" || len(f.header["X-Own"]) != 1 || f.header.Get("X-Own") == first.header.Get("X-Own") {
			t.Errorf("%v", f.header)
		}
		first = f
	}
}

// What the site says to one visitor is not said to the next, also where the server says something of the kind.
func TestHeadersOfOneVisitor(t *testing.T) {
	a := newFileServer(t, aScript)
	a.instead(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Own", "the server's")
		a.send(w, r)
	})
	s := serve(t, "header X-Own {http.request.uuid}\n\tbokeh_proxy "+a.addr())
	seen := map[string]bool{}
	for range 3 {
		own := s.fetch(t, "GET", addressOf(aScript)).header["X-Own"]
		if len(own) != 2 || own[1] != "the server's" || seen[own[0]] {
			t.Errorf("one is told %q, others were told %v", own, seen)
		}
		seen[own[0]] = true
	}
	wantAsks(t, []*fileServer{a}, 1)
}

// Errors are what they were.
func TestFileErrors(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, `handle_errors {
		respond "handled {err.status_code}"
	}
	bokeh_proxy `+a.addr()+` {
		lb_try_duration 0
	}`)
	a.instead(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "broken", 500) })
	s.fetch(t, "GET", addressOf(aScript)).want(t, 500, "bokeh-files; fwd=uri-miss; detail=unkept", "broken\n")
	a.instead(http.NotFound)
	s.fetch(t, "GET", addressOf(aScript)).want(t, 404, "bokeh-files; fwd=uri-miss; detail=wrong", "404 page not found\n")
	a.Close()
	s.fetch(t, "GET", addressOf(aScript)).want(t, 502, "", "handled 502")
}

// An answer that ends early is cut for the visitor, too, and not kept.
func TestFileIsCutShort(t *testing.T) {
	a := newFileServer(t, aScript)
	a.instead(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(aScript)))
		io.WriteString(w, aScript[:1000])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	s := serve(t, "bokeh_proxy "+a.addr())
	if res, err := s.client.Get("http://" + s.addr + addressOf(aScript)); err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
		if err == nil {
			t.Error("half of a file looks like all of it")
		}
	}
	a.instead(a.send)
	s.fetch(t, "GET", addressOf(aScript)).want(t, 200, isMiss, aScript)
}

// What is larger than an eighth of the cache comes through as it is sent, whether its size is known before or not.
func TestLargeFiles(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 20_000)
	for name, known := range map[string]bool{"length": true, "chunks": false} {
		t.Run(name, func(t *testing.T) {
			a := newFileServer(t, large)
			rest := make(chan struct{})
			a.instead(func(w http.ResponseWriter, _ *http.Request) {
				if known {
					w.Header().Set("Content-Length", fmt.Sprint(len(large)))
				}
				w.Header().Set("Cache-Control", "max-age=315360000")
				w.Header().Set("Etag", `"`+hashOf(large)+`"`)
				io.WriteString(w, large[:200_000])
				http.NewResponseController(w).Flush()
				<-rest
				io.WriteString(w, large[200_000:])
			})
			s := serve(t, "bokeh_proxy "+a.addr()+" {\n\t\tfiles 1MiB\n\t\tflush_interval -1\n\t}")
			res, err := s.client.Get("http://" + s.addr + addressOf(large))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			begin := make([]byte, 150_000)
			if _, err := io.ReadFull(res.Body, begin); err != nil {
				t.Fatal(err)
			}
			close(rest)
			end, err := io.ReadAll(res.Body)
			if err != nil || string(begin)+string(end) != large || res.Header.Get("Cache-Control") != "max-age=315360000" {
				t.Errorf("it is not what was sent: %v, %v", err, res.Header)
			}
		})
	}
}

// A crowd makes one ask; one that leaves while it fetches is followed by another.
func TestCrowdAsksOnce(t *testing.T) {
	a := newFileServer(t, aScript)
	asked, hold := make(chan struct{}, 100), make(chan struct{})
	a.instead(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-hold:
			a.send(w, r)
		case <-r.Context().Done():
		}
	})
	s := serve(t, "bokeh_proxy "+a.addr())
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if r, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr+addressOf(aScript), nil); err == nil {
			if res, err := s.client.Do(r); err == nil {
				res.Body.Close()
			}
		}
	})
	<-asked
	for range 20 {
		wg.Go(func() {
			if f := s.fetch(t, "GET", addressOf(aScript)); f.status != 200 || f.body != aScript {
				t.Errorf("got %d and %d bytes", f.status, len(f.body))
			}
		})
	}
	leave()
	<-asked
	close(hold)
	wg.Wait()
	if n := a.asks.Load(); n > 20 {
		t.Errorf("21 ask, and the server is asked %d times", n)
	}
}

// Whose server does not answer gets what another one has fetched meanwhile, whatever the proxy makes of the end of its own request.
func TestFileFetchedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Files{site: new(contentcache.Cache).Open(defaultFilesSize), hunts: newHunts(), logger: zap.NewNop()}
		var later atomic.Bool
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if later.Swap(true) {
				io.WriteString(w, aScript)
				return nil
			}
			<-r.Context().Done()
			w.WriteHeader(499) // as reverse_proxy does
			return nil
		})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				w := httptest.NewRecorder()
				err := f.ServeHTTP(w, httptest.NewRequest("GET", addressOf(aScript), nil), next)
				if err != nil || w.Code != 200 || w.Body.String() != aScript {
					t.Errorf("got %d and %d bytes, %v", w.Code, w.Body.Len(), err)
				}
			})
		}
		all.Wait()
	})
}

// A reload in the middle of that cuts off nobody.
func TestFileFetchedWhileTheConfigEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		cache := new(contentcache.Cache)
		f.site = cache.Open(defaultFilesSize)
		cache.Open(defaultFilesSize) // the next config's
		var later atomic.Bool
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if later.Swap(true) {
				f.site.Close()
				io.WriteString(w, aScript)
				return nil
			}
			<-r.Context().Done()
			w.WriteHeader(499) // as reverse_proxy does
			return nil
		})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if w := askFor(t, f, addressOf(aScript), next); w.Code != 200 || w.Body.String() != aScript {
					t.Errorf("got %d and %d bytes", w.Code, w.Body.Len())
				}
			})
		}
		all.Wait()
	})
}

// A visitor who is slow to read holds up nobody else's files.
func TestSlowReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		f.site = new(contentcache.Cache).Open(minFilesSize)
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			io.WriteString(w, strings.Repeat(aScript, 7)) // of the 128 KiB that a file may take
			return nil
		})
		right := strings.Repeat(aScript, 7)
		ctx, leave := context.WithCancel(t.Context())
		var slow sync.WaitGroup
		for i := range 10 {
			for _, v := range []string{right, "gone"} {
				slow.Go(func() {
					r := httptest.NewRequest(http.MethodGet, fmt.Sprint("/", i, addressOf(v)), nil)
					_ = f.ServeHTTP(slowReader{httptest.NewRecorder(), ctx}, r.WithContext(ctx), next)
				})
				synctest.Wait()
			}
		}
		if w := askFor(t, f, addressOf(right), next); w.Header().Get("Cache-Status") != isMiss || w.Body.String() != right {
			t.Errorf("a file is not kept: %v", w.Header())
		}
		leave()
		slow.Wait()
	})
}

// slowReader is a visitor who reads nothing of an answer.
type slowReader struct {
	*httptest.ResponseRecorder
	ctx context.Context
}

func (s slowReader) Write([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// An answer of unknown length is held no longer than it may be a file.
func TestEndlessAnswer(t *testing.T) {
	w := &counted{}
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		chunk := make([]byte, 32<<10)
		for range 64 << 20 / len(chunk) {
			_, _ = w.Write(chunk)
		}
		return nil
	})
	f := newTestFiles()
	if err := f.ServeHTTP(w, httptest.NewRequest(http.MethodGet, addressOf("gone"), nil), next); err != nil {
		t.Fatal(err)
	}
	if most := defaultFilesSize / 8; w.largest > most {
		t.Errorf("%d bytes were held, %d are allowed", w.largest, most)
	}
}

// counted is a visitor who tells what came at once.
type counted struct {
	httptest.ResponseRecorder
	largest int
}

func (c *counted) Write(p []byte) (int, error) {
	c.largest = max(c.largest, len(p))
	return len(p), nil
}

// Over HTTP/3 nobody knows whether a request has a body that never ends. No server waits for it, nor those who ask for the same file.
func TestFileAskedForWithABody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			if _, err := io.Copy(io.Discard, r.Body); err != nil || r.ContentLength != 0 {
				t.Errorf("the server is sent a body of %d bytes, %v", r.ContentLength, err)
			}
			io.WriteString(w, aScript)
			return nil
		})
		body, end := io.Pipe()
		defer end.Close()
		r := httptest.NewRequest(http.MethodGet, addressOf(aScript), body)
		r.ProtoMajor, r.ContentLength = 3, -1
		done := make(chan struct{})
		go func() {
			_ = f.ServeHTTP(httptest.NewRecorder(), r, next)
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Error("the server waits for the rest of the request")
			end.Close()
			<-done
		}
	})
}

// The end of a visitor who has left is no error of ours.
func TestVisitorLeavesInTheMiddle(t *testing.T) {
	f := newTestFiles()
	ctx, leave := context.WithCancel(t.Context())
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		io.WriteString(w, aScript[:1000])
		leave()
		panic(http.ErrAbortHandler) // as reverse_proxy does
	})
	defer func() {
		if p := recover(); p != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so, too
			t.Error("it ends with", p)
		}
	}()
	err := f.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, addressOf(aScript), nil).WithContext(ctx), next)
	t.Error("Caddy is told of", err)
}

// A server knows its files by what they were when it read them first. What it sends by now is not to be kept for ten years under the old name.
func TestFileThatWasReplacedUnderItsServer(t *testing.T) {
	a := newFileServer(t, aScript)
	a.instead(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Etag", `"`+hashOf("before")+`"`)
		w.Header().Set("Cache-Control", "max-age=315360000")
		io.WriteString(w, aScript)
	})
	s := serve(t, "bokeh_proxy "+a.addr())
	f := s.fetch(t, "GET", addressOf("before"))
	f.want(t, 200, "bokeh-files; fwd=uri-miss; detail=wrong", aScript)
	if f.header.Get("Cache-Control") != "no-store" {
		t.Errorf("it may be kept: %v", f.header)
	}
}

// What the server calls text does not become a document that runs scripts.
func TestPictureThatIsCalledText(t *testing.T) {
	picture := `<svg xmlns="http://www.w3.org/2000/svg"><script>alert(document.domain)</script></svg>`
	a := newFileServer(t, picture)
	s := serve(t, "bokeh_proxy "+a.addr())
	for _, answer := range []struct{ typ, cache string }{ // in this order, for the second is kept
		{"text/plain", "bokeh-files; fwd=uri-miss; detail=unkept"},
		{"image/svg+xml; charset=utf-8", isMiss},
	} {
		a.instead(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", answer.typ)
			io.WriteString(w, picture)
		})
		f := s.fetch(t, "GET", "/uploads/static/a.svg?v="+hashOf(picture))
		f.want(t, 200, answer.cache, picture)
		if got := f.header.Get("Content-Type"); !strings.HasPrefix(answer.typ, got) {
			t.Errorf("%s is called %s", answer.typ, got)
		}
	}
}

// A reload asks once more, and keeps nothing of what was before.
func TestFilesAndReload(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, "bokeh_proxy "+a.addr())
	s.fetch(t, "GET", addressOf(aScript)).want(t, 200, isMiss, aScript)
	used := files.Used()
	s.reload("bokeh_proxy " + a.addr() + " {\n\t\tfiles 2MiB\n\t}")
	s.fetch(t, "GET", addressOf(aScript)).want(t, 200, isMiss, aScript)
	soon(t, "the last config's files are gone", func() bool { return files.Used() <= used })
}

func TestFilesOff(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, "bokeh_proxy "+a.addr()+" {\n\t\tfiles off\n\t}")
	for range 2 {
		s.fetch(t, "GET", addressOf(aScript)).want(t, 200, "", aScript)
	}
	wantAsks(t, []*fileServer{a}, 2)
}

func TestFilesValidate(t *testing.T) {
	err := newSite(t, storageDir(t)).load("bokeh_files 1MiB")
	if err != nil {
		t.Error(err)
	}
	if err := checkFilesSize(5); err == nil {
		t.Error("5 bytes are enough")
	}
}

func TestFileMetrics(t *testing.T) {
	a := newFileServer(t, aScript)
	s := serve(t, "handle /metrics {\n\t\tmetrics\n\t}\n\tbokeh_proxy "+a.addr())
	before := fileResults[filesHit].Load()
	s.fetch(t, "GET", addressOf(aScript))
	s.fetch(t, "GET", addressOf(aScript))
	text := s.fetch(t, "GET", "/metrics").body
	if !strings.Contains(text, fmt.Sprintf("caddy_bokeh_files_total{result=\"hit\"} %d\n", before+1)) || !strings.Contains(text, "caddy_bokeh_files_bytes ") {
		t.Error(text)
	}
}

// FuzzFileAsk finds no request that is read wrong.
func FuzzFileAsk(f *testing.F) {
	f.Add("GET", "/static/js/a.js", "v="+hashOf(aScript))
	f.Add("HEAD", "/static/%00.js", "v="+strings.Repeat("g", 128))
	f.Fuzz(func(t *testing.T, method, path, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.URL.Path, r.URL.RawQuery = method, path, query
		a, ok := readFileAsk(r)
		if !ok {
			return
		}
		want, err := hex.DecodeString(strings.TrimPrefix(query, "v="))
		if err != nil || !bytes.Equal(want, a.sum[:]) || !strings.Contains(path, "/static/") || a.v != query[2:] {
			t.Errorf("%q?%q is taken for a file", path, query)
		}
	})
}
