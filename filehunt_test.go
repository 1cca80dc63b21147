// This file tests the hunt for a file that the first server does not have.

package caddybokeh

import (
	"context"
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
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/contentcache"
)

func newTestFiles() *Files {
	return &Files{site: new(contentcache.Cache).Open(defaultFilesSize), hunts: newHunts(), logger: zap.NewNop()}
}

// huntedServers is a policy with servers behind it, which are asked in the order of their answers.
type huntedServers struct {
	asks    atomic.Int64
	answers []func(w http.ResponseWriter, r *http.Request)
}

func (s *huntedServers) ServeHTTP(w http.ResponseWriter, r *http.Request) error {
	s.asks.Add(1)
	i := 0
	if asked, ok := r.Context().Value(askedKey{}).(*askedUpstreams); ok {
		i = len(asked.members)
		asked.members = append(asked.members, nil)
		asked.left = len(asked.members) < len(s.answers)
	}
	s.answers[i](w, r)
	return nil
}

func answerNotFound(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }

func answerScript(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, aScript) }

func answerOther(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "of another version") }

func answerError(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusInternalServerError)
}

// after takes a while.
func after(d time.Duration, answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(d)
		answer(w, r)
	}
}

func askFor(t *testing.T, f *Files, path string, next caddyhttp.Handler) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := f.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil), next); err != nil {
		t.Error(err)
	}
	return w
}

// Each server that does not have the file is one less to ask; what it has answered instead takes no room from the next.
func TestHuntThroughALargeFleet(t *testing.T) {
	large := strings.Repeat(aScript, 3) // of 128 KiB that a file may take
	servers := []*fileServer{newFileServer(t, large)}
	addrs := []string{servers[0].addr()}
	for i := range 6 {
		servers = append(servers, newFileServer(t, large[i+1:]))
		addrs = append(addrs, servers[i+1].addr())
	}
	for range 5 {
		s := serve(t, "bokeh_proxy "+strings.Join(addrs, " ")+" {\n\t\tfiles 1MiB\n\t}")
		if f := s.fetch(t, "GET", addressOf(large)); f.body != large {
			t.Fatalf("it is not found: %v", f.header)
		}
	}
}

// A page asks for all of its files at once, and works with all of them only.
func TestManyHuntsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerOther, after(100*time.Millisecond, answerScript)}}
		var all sync.WaitGroup
		for i := range 3 * maxHunts {
			all.Go(func() {
				if w := askFor(t, f, fmt.Sprint("/", i, addressOf(aScript)), &next); w.Body.String() != aScript {
					t.Errorf("file %d is of another version: %v", i, w.Header())
				}
			})
		}
		all.Wait()
	})
}

// Who waits for a place to hunt does not wait for ever.
func TestHuntsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerOther, after(time.Minute, answerScript)}}
		var all sync.WaitGroup
		for i := range maxHunts {
			all.Go(func() { askFor(t, f, fmt.Sprint("/", i, addressOf(aScript)), &next) })
		}
		synctest.Wait()
		begun := time.Now()
		if w := askFor(t, f, addressOf(aScript), &next); w.Body.String() == aScript || time.Since(begun) != huntTimeout {
			t.Errorf("it took %v: %v", time.Since(begun), w.Header())
		}
		all.Wait()
	})
}

// All servers are asked for what nobody has, but not by each visitor.
func TestNoServerHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerOther, answerNotFound, after(100*time.Millisecond, answerOther)}}
		var crowd sync.WaitGroup
		for range 10 {
			crowd.Go(func() {
				w := askFor(t, f, addressOf(aScript), &next)
				if w.Body.String() != "of another version" || w.Header().Get("Cache-Control") != "no-store" {
					t.Errorf("got %q, %v", w.Body, w.Header())
				}
			})
		}
		crowd.Wait()
		if n := next.asks.Load(); n != 3+9 {
			t.Errorf("10 visitors have 3 servers asked %d times", n)
		}
		time.Sleep(nowhereTTL)
		next.asks.Store(0)
		askFor(t, f, addressOf(aScript), &next)
		if n := next.asks.Load(); n != 3 {
			t.Errorf("later %d of 3 servers are asked", n)
		}
	})
}

// One that has failed may have had it.
func TestServerThatFailsInAHunt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerOther, answerError}}
		for range 2 {
			askFor(t, f, addressOf(aScript), &next)
		}
		if n := next.asks.Load(); n != 4 {
			t.Errorf("a server that failed was not asked again: %d", n)
		}
	})
}

// Those who ask at the same time wait for the end of a hunt, whatever is met on the way.
func TestCrowdWaitsForTheHunt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerNotFound, answerError, after(500*time.Millisecond, answerScript)}}
		var crowd sync.WaitGroup
		for range 10 {
			crowd.Go(func() {
				if w := askFor(t, f, addressOf(aScript), &next); w.Body.String() != aScript {
					t.Errorf("got %d, %v", w.Code, w.Header())
				}
			})
		}
		crowd.Wait()
		if n := next.asks.Load(); n != 3 {
			t.Errorf("10 visitors have 3 servers asked %d times", n)
		}
	})
}

// A server may answer for ever: that is no file, and the next one is asked.
func TestHuntMeetsAnEndlessAnswer(t *testing.T) {
	for name, length := range map[string]string{"chunks": "", "length": "1000000000000"} {
		synctest.Test(t, func(t *testing.T) {
			endless := func(w http.ResponseWriter, r *http.Request) {
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				chunk := make([]byte, 32<<10)
				for range 64 << 20 / len(chunk) {
					if _, err := w.Write(chunk); err != nil || r.Context().Err() != nil {
						panic(http.ErrAbortHandler) // as the proxy does
					}
				}
				t.Errorf("%s: 64 MiB are read of a file that is not the one", name)
			}
			f := newTestFiles()
			next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerNotFound, endless, answerScript}}
			if w := askFor(t, f, addressOf(aScript), &next); w.Body.String() != aScript {
				t.Errorf("%s: got %d, %v", name, w.Code, w.Header())
			}
		})
	}
}

// Who leaves in the middle of a hunt is followed by the next, and nobody says that there is no such file.
func TestHunterLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newTestFiles()
		next := huntedServers{answers: []func(http.ResponseWriter, *http.Request){answerNotFound, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(300 * time.Millisecond):
				answerScript(w, r)
			case <-r.Context().Done():
				w.WriteHeader(499)
			}
		}}}
		r := httptest.NewRequest(http.MethodGet, addressOf(aScript), nil)
		ctx, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		go func() { _ = f.ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx), &next) }()
		synctest.Wait()
		if w := askFor(t, f, addressOf(aScript), &next); w.Body.String() != aScript || next.asks.Load() != 4 {
			t.Errorf("got %d, %v; %d asks", w.Code, w.Header(), next.asks.Load())
		}
	})
}
