// This file tests which stamp a request is sent with, and which servers take it as an id.

package caddybokeh

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

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

// A server that signs says so. A 403 without that may be the app's verdict on a visitor, and counts only
// while the server has not taken an id.
func TestRefusedIDs(t *testing.T) {
	const own = "403 Forbidden"
	for name, tc := range map[string]struct {
		answers []string // to pages, each "200" or a status text
		want    bool     // whether ids are given afterwards
	}{
		"says so":                  {[]string{refusal}, false},
		"says nothing":             {[]string{own}, false},
		"has taken one":            {[]string{"200", own, own}, true},
		"signs since it restarted": {[]string{"200", refusal}, false},
		"and is not asked again":   {[]string{refusal, "200"}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			for _, a := range tc.answers {
				r := newRequest(s, "/app")
				r.choose(pool)
				r.repl.Set(placeholderStatusText, a)
				status := 403
				if a == "200" {
					status = 200
				}
				r.answer(status)
				synctest.Wait()
			}
			r := newRequest(s, "/app")
			r.choose(pool)
			if given := r.Header.Get(bokeh.SessionIDHeader) != ""; given != tc.want {
				t.Errorf("%s: an id is given: %v, want %v", name, given, tc.want)
			}
			// Another key is another matter.
			s.ring.Store(&stamp.Keyring{stamp.NewKey([]byte("another"))})
			r = newRequest(s, "/app")
			r.choose(pool)
			if r.Header.Get(bokeh.SessionIDHeader) == "" {
				t.Errorf("%s: no id by another key", name)
			}
		})
	}
}

// Caddy copies the headers of each attempt from those of the first where there are header
// operations, and sends the ones on the request where there are none.
func TestFreshStampIsSent(t *testing.T) {
	for name, withOps := range map[string]bool{"header operations": true, "none": false} {
		pool := testPool(4)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		original := r.Header
		for range 4 {
			addr, _ := r.choose(pool)
			if withOps {
				r.Header = original.Clone()
				r.Header.Set("X-A", "b")
			}
			if tg, k, ok := bokehtest.Ring.Verify(r.Header.Get(bokeh.SessionIDHeader)); !ok || tg != k.Tag(addr) {
				t.Errorf("%s: the stamp sent does not name %s", name, addr)
			}
			r.refuse()
		}
	}
}

// Whoever has told the policy of signing hears of the key, not to tell it.
func TestRefusedIDsAreAdvisedOn(t *testing.T) {
	for ids, want := range map[string]string{sessionIDsUnsigned: "set session_ids signed", sessionIDsSigned: "compare the first secret_key"} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			s.SessionIDs, s.givesIDs = ids, true
			core, logs := observer.New(zapcore.ErrorLevel)
			s.logger = zap.New(core)
			r := newRequest(s, "/app")
			r.choose(pool)
			r.repl.Set(placeholderStatusText, refusal)
			r.answer(http.StatusForbidden)
			synctest.Wait()
			if text := fmt.Sprint(logs.All()); !strings.Contains(text, want) {
				t.Errorf("with session_ids %s it does not say %q: %s", ids, want, text)
			}
		})
	}
}
