// This file tests discovered upstreams: which sources all requests share, and whose an address is that has left a pool.

package caddybokeh

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// byHost is a source that looks at the request, though its config has no placeholder, as one that knows containers does.
type byHost struct{}

func (byHost) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.test_by_host", New: func() caddy.Module { return new(byHost) }}
}

func (byHost) GetUpstreams(*http.Request) ([]*reverseproxy.Upstream, error) { return nil, nil }

// declared is a source that says whether it depends on the request.
type declared struct {
	byHost
	Label string `json:"label"`
}

func (*declared) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.test_declared", New: func() caddy.Module { return new(declared) }}
}

func (d *declared) DependsOnRequest() bool { return d.Label == "" }

func init() {
	caddy.RegisterModule(new(byHost))
	caddy.RegisterModule(new(declared))
}

func TestSharedSources(t *testing.T) {
	for config, want := range map[string]bool{
		`{"source":"a","name":"bokeh.internal","port":"5006"}`:                                             true,
		`{"source":"a","name":"bokeh.internal","resolver":{"addresses":["127.0.0.1:53"]}}`:                 true,
		`{"source":"a","name":"{http.request.host}.internal","port":"5006"}`:                               false,
		`{"source":"a","name":"\u007bhttp.request.host\u007d.internal","port":"5006"}`:                     false,
		`{"source":"a","name":"{http.vars.my site}.internal","port":"5006"}`:                               false,
		`{"source":"srv","service":"bokeh","proto":"tcp","name":"internal"}`:                               true,
		`{"source":"srv","name":"{labels.1}.internal"}`:                                                    false,
		`{"source":"multi","sources":[{"source":"a","name":"a"},{"source":"srv","name":"b"}]}`:             true,
		`{"source":"multi","sources":[{"source":"a","name":"a"},{"source":"test_by_host"}]}`:               false,
		`{"source":"multi","sources":[{"source":"multi","sources":[{"source":"a","name":"{labels.0}"}]}]}`: false,
		`{"source":"test_by_host"}`:                false,
		`{"source":"test_declared","label":"app"}`: true,
		`{"source":"test_declared"}`:               false,
		`{"source":"test_declared","label":7}`:     false,
		`{"source":"nobody"}`:                      false,
		`{}`:                                       false,
		`[]`:                                       false,
	} {
		if got := isShared([]byte(config)); got != want {
			t.Errorf("%s is shared: %v, want %v", config, got, want)
		}
	}
}

// sourced returns a policy of a handler that discovers its upstreams.
func sourced(t *ledger, source string) *Selection {
	s := newTestSelectionWith(t, nil)
	s.knowPool(&reverseproxy.Handler{DynamicUpstreamsRaw: []byte(source)})
	return s
}

// Where the source may look at the request, the servers of one site are never those of another one.
func TestSourceThatLooksAtTheRequest(t *testing.T) {
	s := sourced(newLedger(), `{"source":"test_by_host"}`)
	newRequest(s, "http://a.test/app").choose(testPool(2))
	if addr, _ := newRequest(s, "http://b.test/app").choose(nil); addr != "" {
		t.Errorf("a site that has no server is served by %s of another site", addr)
	}
	if (policyOf{s}).KnowsPool() {
		t.Error("all upstreams of its pool are said to be known")
	}
	inPool := 0
	for _, m := range (policyOf{s}).Pool() {
		if m.InPool {
			inPool++
		}
	}
	if inPool != 2 {
		t.Errorf("%d of 2 upstreams that were found lately may be in the pool", inPool)
	}
}

const (
	sourceA = `{"source":"a","name":"a.test"}`
	sourceB = `{"source":"a","name":"b.test"}`
)

// An address that has left a pool is still its sessions' server, also where another pool has it, unless that has taken
// it up since: then it is another server.
func TestWhoseAddressItIs(t *testing.T) {
	u := func(from, to int) reverseproxy.UpstreamPool { return testPool(9)[from:to] } // u0 is the one that leaves
	elsewhere := func(s *Selection) { newRequest(s, "http://b.test/static/x.js").choose(u(0, 1)) }
	for name, c := range map[string]struct {
		before, meanwhile, after func(a *Selection) // A has u0; its page is served, and its socket open; u0 has left the pool
		moved                    bool
	}{
		"nobody's": {},
		"another site discovers it": {
			after: func(a *Selection) { elsewhere(sourced(a.table, sourceB)) }, moved: true,
		},
		"another site discovers it, and then another one": {
			after: func(a *Selection) {
				b := sourced(a.table, sourceB)
				elsewhere(b)
				time.Sleep(time.Second)
				newRequest(b, "http://b.test/static/x.js").choose(u(5, 6))
			}, moved: true,
		},
		"another site may, depending on the request": {
			before: func(a *Selection) { elsewhere(sourced(a.table, `{"source":"test_by_host"}`)) },
			after:  func(a *Selection) { elsewhere(sourced(a.table, `{"source":"test_by_host"}`)) }, moved: true,
		},
		"a config names it for another site": {
			after: func(a *Selection) { newTestSelectionWith(a.table, u(0, 1)).members.started(u(0, 1)) }, moved: true,
		},
		"a config names it for another site, as the one before did": {
			before: func(a *Selection) { newTestSelectionWith(a.table, u(0, 1)).members.started(u(0, 1)) },
			after:  func(a *Selection) { newTestSelectionWith(a.table, u(0, 1)).members.started(u(0, 1)) },
		},
		"a config names it again": {
			before: func(a *Selection) {
				b := newTestSelectionWith(a.table, u(0, 1))
				b.members.started(u(0, 1))
				_ = b.Cleanup()
			},
			after: func(a *Selection) { newTestSelectionWith(a.table, u(0, 1)).members.started(u(0, 1)) }, moved: true,
		},
		"a config names it, and fails to load": {
			after: func(a *Selection) { _ = newTestSelectionWith(a.table, u(0, 1)).Cleanup() },
		},
		"another site had it as well": {
			before: func(a *Selection) { elsewhere(sourced(a.table, sourceB)) },
		},
		"another site had it as well, and has it still": {
			before: func(a *Selection) { elsewhere(sourced(a.table, sourceB)) },
			after:  func(a *Selection) { elsewhere(sourced(a.table, sourceB)) },
		},
		"another site discovers it while this one has it": {
			meanwhile: func(a *Selection) {
				elsewhere(sourced(a.table, sourceB))
				time.Sleep(time.Second)
				newRequest(a, "/static/x.js").choose(u(0, 1))
			},
		},
		"another site discovers it, and this one was not asked since": {
			meanwhile: func(a *Selection) { elsewhere(sourced(a.table, sourceB)) }, moved: true,
		},
		"another handler with the same source was asked since": {
			meanwhile: func(a *Selection) {
				elsewhere(sourced(a.table, sourceB))
				time.Sleep(time.Second)
				elsewhere(sourced(a.table, sourceA))
			},
		},
		"another handler with the same source loses it later": {
			after: func(a *Selection) { elsewhere(sourced(a.table, sourceA)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				do := func(step func(*Selection), a *Selection) {
					if step != nil {
						step(a)
					}
					time.Sleep(2 * time.Second)
				}
				a := sourced(newLedger(), sourceA)
				newRequest(a, "/static/x.js").choose(u(0, 1))
				do(c.before, a)
				home, token := landed(t, a, u(0, 1))
				open := newSocket(a, token)
				open.choose(u(0, 1))
				open.visit().connected(open.visit().attempt)
				open.visit().firstByteCame(open.visit().attempt)
				open.repl.Set(placeholderStatus, http.StatusSwitchingProtocols)
				time.Sleep(time.Second)
				do(c.meanwhile, a)
				open.end()
				synctest.Wait()
				time.Sleep(time.Second)
				newRequest(a, "/app").choose(u(1, 4)) // u0 has left
				do(c.after, a)

				left := upstreamAt(a.table, home)
				r := newSocket(a, token)
				addr, why := r.choose(u(1, 4))
				if moved := addr != home; moved != c.moved || moved && why != "moved" || !moved && why != "bound" {
					t.Fatalf("the session is %s at %s, its server was %s", why, addr, home)
				}
				if !c.moved {
					return
				}
				wantTally(t, "after its session moved", left, tally{})
				if n := left.History.Moved[movedReassigned].Load(); n != 1 {
					t.Errorf("%d sessions have left it for that", n)
				}
				r.answer(http.StatusSwitchingProtocols)
				synctest.Wait()
				if again, why := newSocket(a, token).choose(u(1, 4)); again != addr || why != "bound" {
					t.Errorf("it is then %s at %s, it moved to %s", why, again, addr)
				}
				if addr, why := newRequest(a, "/app", bokeh.SessionIDHeader, bokehtest.Stamp(home)).choose(u(1, 4)); addr == home {
					t.Errorf("a page with a stamp of it is %s there", why)
				}
				if addr, _ := newSocket(a, bokehtest.Token(t, bokehtest.Stamp(home), nil)).choose(u(1, 4)); addr == home {
					t.Error("a session that only its stamp tells of went there")
				}
				if addr, _ := newSocket(a, bokehtest.Token(t, bokehtest.Stamp(home), nil)).choose(u(0, 4)); addr != home {
					t.Errorf("where the pool has it again its stamp leads to %s", addr)
				}
			})
		})
	}
}

// What the source has at present is not lost, though a request that came with an older answer does not have it.
func TestAddressThatIsBack(t *testing.T) {
	tb := newLedger()
	s, other := sourced(tb, sourceA), sourced(tb, sourceB)
	newRequest(s, "/static/x.js").choose(testPool(2))
	newRequest(other, "/static/x.js").choose(testPool(1))
	newRequest(s, "/static/x.js").choose(testPool(2))
	if s.members.source.hasLost(s.members.get("u0:80")) {
		t.Error("an address that the source finds is said to be another server's")
	}
}

// addressServer is a server of the model below, and addressSession a session.
type addressServer struct {
	site  int
	alive bool
}

type addressSession struct {
	site, at int
	token    string
	server   *addressServer
	hangUp   func()    // nil while it has no socket
	idle     time.Time // since when
}

func (s *addressSession) close() {
	if s.hangUp != nil {
		s.hangUp()
		s.hangUp, s.idle = nil, time.Now()
	}
}

// Sites whose servers get each other's addresses: no session goes to a server of another site, and none leaves a server that lives.
func TestAddressModel(t *testing.T) {
	ended, kept := 0, 0
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			tb := newLedger()
			sites := []*Selection{sourced(tb, sourceA), sourced(tb, sourceB)}
			servers := make([]*addressServer, 8) // by address
			listed := make([]bool, len(servers))
			pool := func(site int) (found reverseproxy.UpstreamPool) {
				for i, srv := range servers {
					if srv != nil && listed[i] && srv.site == site {
						found = append(found, testPool(i + 1)[i])
					}
				}
				return found
			}
			begin := func(i, site int) { servers[i], listed[i] = &addressServer{site, true}, true }
			begin(0, 0)
			begin(1, 1)
			var all []*addressSession
			for range 400 {
				time.Sleep(time.Duration(500+rnd.IntN(4000)) * time.Millisecond)
				site, i := rnd.IntN(2), rnd.IntN(len(servers))
				switch dice := rnd.IntN(10); {
				case dice < 2 && len(pool(site)) > 0: // a visit
					page := newRequest(sites[site], fmt.Sprintf("http://%d.test/app", site))
					home, _ := page.choose(pool(site))
					page.answer(http.StatusOK)
					at := int(home[1] - '0')
					all = append(all, &addressSession{site: site, at: at, token: bokehtest.Token(t, page.stamp(), nil), server: servers[at], idle: time.Now()})
				case dice < 3 && servers[i] != nil && len(pool(servers[i].site)) > 1: // a server is told to go, and serves who is there
					listed[i] = false
				case dice < 4 && servers[i] != nil && !listed[i]: // it ends, and its connections with it
					servers[i].alive = false
					for _, s := range all {
						if s.server == servers[i] {
							s.close()
						}
					}
					servers[i] = nil
				case dice < 6 && servers[i] == nil: // its address is given away
					begin(i, site)
				case dice < 8: // somebody loses the connection
					for _, s := range all {
						if rnd.IntN(4) == 0 {
							s.close()
						}
					}
				}
				for site, s := range sites { // both are visited all the time
					newRequest(s, "http://x.test/static/x.js").choose(pool(site))
				}
				all = slices.DeleteFunc(all, func(s *addressSession) bool { return s.hangUp == nil && time.Since(s.idle) > 30*time.Second })
				for _, s := range all { // and browsers come back
					if s.hangUp != nil || rnd.IntN(2) == 0 {
						continue
					}
					r := newRequest(sites[s.site], fmt.Sprintf("http://%d.test/app/ws", s.site),
						"Upgrade", "websocket", "Connection", "Upgrade", "Sec-Websocket-Protocol", "bokeh, "+s.token)
					home, _ := r.choose(pool(s.site))
					if home == "" {
						continue
					}
					at := int(home[1] - '0')
					now := servers[at]
					switch {
					case now == nil: // refused
						r.refuse()
						r.end()
						continue
					case now.site != s.site:
						t.Fatalf("seed %d: a session of site %d went to u%d of site %d", seed, s.site, at, now.site)
					case s.server.alive && now != s.server:
						t.Fatalf("seed %d: a session of u%d went to u%d, and its server lives", seed, s.at, at)
					case s.server.alive:
						kept++
					default:
						ended++
					}
					s.at, s.server = at, now
					v := r.visit()
					v.connected(v.attempt)
					v.firstByteCame(v.attempt)
					r.repl.Set(placeholderStatus, http.StatusSwitchingProtocols)
					s.hangUp = r.end
				}
				synctest.Wait()
			}
			for _, s := range all {
				s.close()
			}
		})
	}
	if t.Logf("%d came back to their server, %d to another one", kept, ended); kept < 1000 || ended < 500 {
		t.Error("too little happens")
	}
}

// A resolver that fails while a config is loaded takes no server off, and shows no site the servers of another one.
func TestReloadWhileDiscoveryFails(t *testing.T) {
	tb := newLedger()
	before := sourced(tb, sourceA)
	newRequest(before, "/static/x.js").choose(testPool(3))
	failed := sourced(tb, sourceA)
	_ = failed.Cleanup()
	newRequest(before, "/static/x.js").choose(testPool(3)[1:]) // u0 has left
	after, other := sourced(tb, sourceA), sourced(tb, sourceB)
	_ = before.Cleanup()
	if !(policyOf{after}).KnowsPool() {
		t.Error("before the first request nobody is known")
	}
	inPool := map[string]bool{}
	for _, m := range (policyOf{after}).Pool() {
		inPool[m.Upstream.Name] = m.InPool
	}
	if len(inPool) != 3 || inPool["u0:80"] || !inPool["u1:80"] || !inPool["u2:80"] {
		t.Errorf("in the pool are %v", inPool)
	}
	homes := map[string]int{}
	for range 4 {
		r := newRequest(after, "/app")
		addr, _ := r.choose(nil)
		homes[addr]++
	}
	if homes["u1:80"] != 2 || homes["u2:80"] != 2 {
		t.Errorf("the visits went to %v", homes)
	}
	if addr, why := newSocket(after, bokehtest.Token(t, bokehtest.Stamp("u0:80"), nil)).choose(nil); addr != "u0:80" || why != "bound" {
		t.Errorf("a session of a server that had left before is %s at %s", why, addr)
	}
	if addr, _ := newRequest(other, "/app").choose(nil); addr != "" || (policyOf{other}).KnowsPool() {
		t.Errorf("another source serves %q", addr)
	}
	_ = after.Cleanup()
	_ = other.Cleanup()
	if n := len(tb.sources); n != 0 {
		t.Errorf("%d sources are kept for nobody", n)
	}
}

// What the config has for when discovery fails is not what was discovered.
func TestFallbackIsNotDiscovered(t *testing.T) {
	tb, fixed := newLedger(), testPool(3)[2:]
	s, other := newTestSelectionWith(tb, nil), sourced(tb, sourceA)
	s.knowPool(&reverseproxy.Handler{Upstreams: fixed, DynamicUpstreamsRaw: []byte(sourceA)})
	if addr, _ := newRequest(s, "/app").choose(fixed); addr != "u2:80" {
		t.Errorf("while discovery fails the visit goes to %q", addr)
	}
	if addr, _ := newRequest(other, "/app").choose(nil); addr != "" {
		t.Errorf("another site is served by %s, which only this config names", addr)
	}
	if (policyOf{s}).KnowsPool() {
		t.Error("the pool is said to be known")
	}
}

// Who gets the address of a server that was drained and has gone drains, and somebody should know.
func TestAddressOfADrainedServer(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	s := sourced(newLedger(), sourceA)
	s.logger = zap.New(core)
	u := s.table.Hold("u0:80")
	u.Drain.Set(new(sessions.DrainOrder))
	for _, pool := range []reverseproxy.UpstreamPool{testPool(2), testPool(2), testPool(2)[1:]} {
		newRequest(s, "/app").choose(pool)
	}
	if n := logs.Len(); n != 0 {
		t.Errorf("before it has come back: %v", logs.All())
	}
	newRequest(s, "/app").choose(slices.Clone(testPool(2)))
	if all := logs.All(); len(all) != 1 || all[0].ContextMap()["upstream"] != "u0:80" {
		t.Errorf("when it has come back: %v", all)
	}
}
