// This file tests how --wait waits: what it asks for, how soon it shows what has changed, and how it ends.

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

// fakeCaddy answers as the admin API does.
type fakeCaddy struct {
	mu    sync.Mutex // guards all below
	all   map[string]api.Upstream
	down  bool
	news  chan struct{}  // closed when something changes
	load  chan struct{}  // closed when a config is loaded
	asked map[string]int // how often, by path and whether there is a wait
}

// newFakeCaddy returns one where each of the named upstreams drains and has one session.
func newFakeCaddy(names ...string) *fakeCaddy {
	f := &fakeCaddy{all: make(map[string]api.Upstream), news: make(chan struct{}), load: make(chan struct{}), asked: make(map[string]int)}
	for _, name := range names {
		f.all[name] = draining(name, 1)
	}
	return f
}

// draining returns an upstream that drains, with so many sessions.
func draining(name string, sessions int64) api.Upstream {
	st := api.Upstream{Address: name, State: api.StateDraining, Drain: &api.Drain{Marked: true}}
	st.Total = sessions
	return st
}

// drained returns an upstream that is drained.
func drained(name string) api.Upstream {
	st := draining(name, 0)
	st.State = api.StateDrained
	return st
}

// change changes something.
func (f *fakeCaddy) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.news)
	f.news = make(chan struct{})
}

// set changes what is told of an upstream.
func (f *fakeCaddy) set(st api.Upstream) { f.change(func() { f.all[st.Address] = st }) }

// reload ends what waits, as a load of a config does.
func (f *fakeCaddy) reload() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.load)
	f.load = make(chan struct{})
}

// requests returns what was asked for since the last time, as "3 /path".
func (f *fakeCaddy) requests() string {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, path := range slices.Sorted(maps.Keys(f.asked)) {
		all = append(all, fmt.Sprint(f.asked[path], " ", path))
	}
	clear(f.asked)
	return strings.Join(all, ", ")
}

// ServeHTTP implements http.Handler.
func (f *fakeCaddy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if r.URL.Query().Has("wait") {
		path += "?wait"
	}
	f.mu.Lock()
	f.asked[path]++
	f.mu.Unlock()
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	over := time.After(wait)
	for {
		f.mu.Lock()
		status, body := f.answer(r.URL.Path, wait > 0)
		news, load := f.news, f.load
		f.mu.Unlock()
		if status == http.StatusGatewayTimeout {
			select {
			case <-news:
				continue
			case <-load:
				status, body = http.StatusServiceUnavailable, map[string]string{"error": "Caddy is loading a config, or ends; ask again"}
			case <-over:
			}
		}
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
		return
	}
}

// answer returns what there is to tell at present. f.mu is locked.
func (f *fakeCaddy) answer(path string, waits bool) (status int, body any) {
	if path == api.UpstreamsPath {
		return http.StatusOK, slices.AppendSeq([]api.Upstream{}, maps.Values(f.all))
	}
	st, known := f.all[strings.TrimPrefix(path, api.UpstreamsPath+"/")]
	switch {
	case !known:
		return http.StatusNotFound, map[string]string{"error": "no upstream is known"}
	case waits && st.Drain == nil && st.State != api.StateUnknown:
		return http.StatusConflict, map[string]string{"error": "it would never be drained"}
	case waits && st.State != api.StateDrained:
		return http.StatusGatewayTimeout, st
	}
	return http.StatusOK, st
}

// request is Caddy's client.
func (f *fakeCaddy) request(_, method, uri string, _ http.Header, body io.Reader) (*http.Response, error) {
	f.mu.Lock()
	down := f.down
	f.mu.Unlock()
	if down {
		return nil, errors.New("performing request: dial tcp 127.0.0.1:2019: connect: connection refused")
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequest(method, uri, body))
	if w.Code >= 400 {
		return nil, fmt.Errorf("caddy responded with error: HTTP %d: %s", w.Code, w.Body)
	}
	return w.Result(), nil
}

// shown is a progress that keeps what it shows.
type shown struct {
	mu    sync.Mutex // guards all below
	texts []string
	over  string // what it says when all is done
	ended bool
}

func (s *shown) add(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts = append(s.texts, text)
}

func (s *shown) show(left []api.Upstream) { s.add(describe(left)) }
func (s *shown) trouble(err error)        { s.add("trouble: " + err.Error()) }
func (s *shown) done(text string)         { s.over = text }
func (s *shown) end()                     { s.ended = true }

func (s *shown) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.texts[len(s.texts)-1]
}

// waiting is a --wait that is under way.
type waiting struct {
	*fakeCaddy
	*shown
	t     *testing.T
	ended chan struct{}
	code  int
	err   error
}

// await begins to wait for the named upstreams, until ctx ends.
func (f *fakeCaddy) await(ctx context.Context, t *testing.T, names ...string) *waiting {
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	w := &waiting{fakeCaddy: f, shown: new(shown), t: t, ended: make(chan struct{})}
	c := &adminClient{"localhost:2019", f.request}
	go func() {
		defer close(w.ended)
		w.code, w.err = c.awaitDrained(ctx, w.shown, names)
	}()
	return w
}

// want fails unless the waiting ends without time going by, with a code and a text that it says in the end.
func (w *waiting) want(code int, text string) {
	w.t.Helper()
	synctest.Wait()
	select {
	case <-w.ended:
	default:
		w.t.Fatalf("it waits on, and shows %q", w.last())
	}
	said := w.over
	if w.err != nil {
		said = w.err.Error()
	}
	if w.code != code || said != text {
		w.t.Errorf("it ends with %d and %q, want %d and %q", w.code, said, code, text)
	}
}

// shows fails unless a text was shown last, and the waiting goes on.
func (w *waiting) shows(text string) {
	w.t.Helper()
	synctest.Wait()
	select {
	case <-w.ended:
		w.t.Fatalf("it has ended with %d %v", w.code, w.err)
	default:
	}
	if got := w.last(); got != text {
		w.t.Errorf("it shows %q, want %q", got, text)
	}
}

// asked fails unless just this was asked for since the last time.
func (w *waiting) asked(want string) {
	w.t.Helper()
	if got := w.requests(); got != want {
		w.t.Errorf("asked for were %q, want %q", got, want)
	}
}

// Caddy is asked to wait for the one upstream. The list of all is asked for once, at the start.
func TestWaitAsksForOneUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeCaddy("a:1", "b:1").await(t.Context(), t, "a:1")
		w.shows("1 session at a:1, the oldest of 0s")
		w.asked("1 /bokeh/upstreams, 1 /bokeh/upstreams/a:1?wait")
		time.Sleep(time.Minute + waitSlice/2)
		w.asked("60 /bokeh/upstreams/a:1?wait")
		w.set(draining("a:1", 2))
		time.Sleep(waitSlice / 2)
		w.shows("2 sessions at a:1, the oldest of 0s")
		time.Sleep(waitSlice / 3)
		w.set(drained("a:1"))
		w.want(caddy.ExitCodeSuccess, "drained: a:1") // at once
		w.asked("1 /bokeh/upstreams/a:1?wait")
	})
}

// What is drained at the start is not waited for.
func TestWaitForWhatIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCaddy()
		f.set(drained("a:1"))
		w := f.await(t.Context(), t, "a:1")
		w.want(caddy.ExitCodeSuccess, "drained: a:1")
		w.asked("1 /bokeh/upstreams")
	})
}

// Of several upstreams each is waited for. That all are drained at one moment the list says in the end, which is asked for once.
func TestWaitForSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeCaddy("a:1", "b:1", "c:1").await(t.Context(), t, "a:1", "b:1")
		w.shows("1 session at a:1, the oldest of 0s; 1 session at b:1, the oldest of 0s")
		w.asked("1 /bokeh/upstreams, 1 /bokeh/upstreams/a:1?wait, 1 /bokeh/upstreams/b:1?wait")
		w.set(drained("a:1"))
		time.Sleep(waitSlice)
		w.shows("1 session at b:1, the oldest of 0s")
		w.asked("1 /bokeh/upstreams/a:1?wait, 1 /bokeh/upstreams/b:1?wait")
		w.set(draining("a:1", 3)) // a session has come back
		time.Sleep(2 * waitSlice)
		w.shows("3 sessions at a:1, the oldest of 0s; 1 session at b:1, the oldest of 0s")
		w.set(drained("b:1"))
		time.Sleep(10 * waitSlice)
		w.shows("3 sessions at a:1, the oldest of 0s")
		w.requests()
		w.set(drained("a:1"))
		w.want(caddy.ExitCodeSuccess, "drained: a:1, b:1")
		w.asked("1 /bokeh/upstreams")
	})
}

// If one is not drained any more by the time that the other is, both are waited for again.
func TestWaitForSeveralAtOneMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeCaddy("a:1", "b:1").await(t.Context(), t, "a:1", "b:1")
		synctest.Wait()
		w.set(drained("a:1")) // which is answered
		synctest.Wait()
		w.set(draining("a:1", 1))
		w.set(drained("b:1"))
		w.shows("1 session at a:1, the oldest of 0s")
		time.Sleep(waitSlice)
		w.requests()
		time.Sleep(10 * waitSlice)
		w.asked("10 /bokeh/upstreams/a:1?wait, 10 /bokeh/upstreams/b:1?wait")
		w.set(drained("a:1"))
		w.want(caddy.ExitCodeSuccess, "drained: a:1, b:1")
	})
}

// Somebody takes the drain back, of an upstream that stays known or of one that nothing else knows of.
func TestWaitForADrainThatIsTakenBack(t *testing.T) {
	for name, takeBack := range map[string]func(all map[string]api.Upstream){
		"of a known one":  func(all map[string]api.Upstream) { all["b:1"] = api.Upstream{Address: "b:1", State: api.StateReady} },
		"of a stranger":   func(all map[string]api.Upstream) { delete(all, "b:1") },
		"while one is so": func(all map[string]api.Upstream) { all["a:1"] = drained("a:1"); delete(all, "b:1") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newFakeCaddy("a:1", "b:1").await(t.Context(), t, "a:1", "b:1")
				time.Sleep(waitSlice / 2)
				w.change(func() { takeBack(w.all) })
				time.Sleep(waitSlice)
				w.want(caddy.ExitCodeFailedStartup, "b:1 is not draining any more; somebody has taken it back")
				if !w.shown.ended {
					t.Error("the progress is not ended before the error is written")
				}
			})
		})
	}
}

// A reload ends what waits at the API. Nobody is told, and the waiting goes on.
func TestWaitOutlivesAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeCaddy("a:1").await(t.Context(), t, "a:1")
		for range 3 {
			time.Sleep(waitSlice / 4)
			w.reload()
			w.shows("1 session at a:1, the oldest of 0s")
		}
		w.set(draining("a:1", 2))
		time.Sleep(waitSlice)
		w.shows("2 sessions at a:1, the oldest of 0s")
		w.set(drained("a:1"))
		w.want(caddy.ExitCodeSuccess, "drained: a:1")
	})
}

// A restart of Caddy is told, and what it does not know yet; the waiting goes on.
func TestWaitOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFakeCaddy("a:1").await(t.Context(), t, "a:1")
		synctest.Wait()
		w.change(func() { w.down = true })
		w.reload()
		time.Sleep(waitSlice)
		w.shows("trouble: no Caddy answers at localhost:2019 (--address or --config say where its admin API is)")
		w.change(func() { w.down = false; w.all["a:1"] = api.Upstream{Address: "a:1", State: api.StateUnknown} })
		time.Sleep(waitSlice)
		w.shows("trouble: no word of a:1 at present")
		w.change(func() { clear(w.all) }) // its upstreams are not known before somebody visits
		time.Sleep(waitSlice)
		w.shows("trouble: no word of a:1 at present")
		w.change(func() { w.all["b:1"] = api.Upstream{Address: "b:1", State: api.StateUnknown} })
		time.Sleep(waitSlice)
		w.shows("trouble: no word of a:1 at present")
		w.requests()
		time.Sleep(10 * waitSlice)
		w.asked("10 /bokeh/upstreams")
		w.change(func() { w.all = map[string]api.Upstream{"a:1": draining("a:1", 2)} })
		time.Sleep(waitSlice)
		w.shows("2 sessions at a:1, the oldest of 0s")
		w.requests()
		w.set(drained("a:1"))
		w.want(caddy.ExitCodeSuccess, "drained: a:1")
		w.asked("")
	})
}

// The time is up, or whoever waits is interrupted: at once, though Caddy keeps the answer back.
func TestWaitEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), waitSlice/10)
		defer cancel()
		w := newFakeCaddy("a:1").await(ctx, t, "a:1")
		time.Sleep(waitSlice / 10)
		w.want(exitTimeout, "the time is up; the drain stays on; still there: 1 session at a:1, the oldest of 0s")

		ctx, interrupt := context.WithCancel(t.Context())
		w = newFakeCaddy("a:1", "b:1").await(ctx, t, "a:1", "b:1")
		time.Sleep(10*waitSlice + waitSlice/2)
		interrupt()
		w.want(exitInterrupted, "interrupted; the drain stays on, caddy bokeh undrain takes it back: a:1 b:1")
		time.Sleep(waitSlice) // what was asked is answered
	})
}

// Over HTTP, with Caddy's own client: the answers 200 and 504 both tell how it stands, and all others leave a doubt.
func TestWaitOverHTTP(t *testing.T) {
	const name = "unix//run/a.sock"
	f := newFakeCaddy(name)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.RawQuery = "wait=1ns"
		f.ServeHTTP(w, r)
	}))
	defer server.Close()
	c := &adminClient{strings.TrimPrefix(server.URL, "http://"), caddycmd.AdminAPIRequest}
	late := draining(name, 1)
	late.Drain.Reason = "connect: connection refused" // which tells of no connection
	f.set(late)
	if st, err := c.waitForOne(t.Context(), name); err != nil || st.Total != 1 || st.State != api.StateDraining {
		t.Errorf("while it is not drained: %+v %v", st, err)
	}
	f.set(drained(name))
	if st, err := c.waitForOne(t.Context(), name); err != nil || st.State != api.StateDrained {
		t.Errorf("when it is drained: %+v %v", st, err)
	}
	for _, state := range []string{api.StateReady, api.StateUnknown} {
		f.set(api.Upstream{Address: name, State: state})
		if _, err := c.waitForOne(t.Context(), name); !errors.Is(err, errDoubt) {
			t.Errorf("when it is %s: %v", state, err)
		}
	}
	if _, err := c.waitForOne(t.Context(), "b:1"); !errors.Is(err, errDoubt) {
		t.Errorf("when it is not known: %v", err)
	}
}

// An answer 504 that is not the API's is no news of an upstream.
func TestWaitBehindAnotherServer(t *testing.T) {
	c := &adminClient{"localhost:2019", func(string, string, string, http.Header, io.Reader) (*http.Response, error) {
		return nil, errors.New("caddy responded with error: HTTP 504: <h1>Gateway Timeout</h1>")
	}}
	want := "what answers at localhost:2019 is not the admin API of a Caddy with this module (--address or --config say where that is): HTTP 504"
	if _, err := c.waitForOne(t.Context(), "a:1"); err == nil || err.Error() != want {
		t.Errorf("it is taken for %v", err)
	}
}
