// This file tests what is logged at load of configs that do not do what they seem to.

package caddybokeh

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// logAtLoad returns the lines of a level that Caddy logs as it starts with the handlers of a site.
func logAtLoad(t *testing.T, level, handlers string) (lines []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "log")
	s := newSite(t, storageDir(t))
	s.config = strings.Replace(s.config, "output discard", "output file "+file, 1)
	s.start(handlers)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var l struct{ Level, Logger string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Level == level && strings.HasSuffix(l.Logger, "selection_policies.bokeh") {
			lines = append(lines, line)
		}
	}
	return lines
}

// A proxy that gets no visit for one before it is logged with the servers of both. What may get one is not.
func TestUnreachedProxyIsWarnedOf(t *testing.T) {
	const block = " {\n max_sessions 40\n}\n"
	for name, c := range map[string]struct{ handlers, takes, never string }{
		"Docker labels":               {"bokeh_proxy a:1" + block + "bokeh_proxy b:1" + block + "bokeh_proxy c:1" + block, `["a:1"]`, `["b:1","c:1"]`},
		"beside another proxy":        {"bokeh_proxy a:1\n reverse_proxy /api/* b:1", `["a:1"]`, `["b:1"]`},
		"the policy comes second":     {"route {\n reverse_proxy a:1 a:2\n bokeh_proxy b:1\n}", `["a:1","a:2"]`, `["b:1"]`},
		"two handles":                 {"handle {\n bokeh_proxy a:1\n}\n handle {\n bokeh_proxy b:1\n}", `["a:1"]`, `["b:1"]`},
		"in a handle":                 {"handle /x/* {\n bokeh_proxy a:1\n bokeh_proxy b:1\n}", `["a:1"]`, `["b:1"]`},
		"behind a handle":             {"handle {\n bokeh_proxy a:1\n}\n bokeh_proxy b:1", `["a:1"]`, `["b:1"]`},
		"a star is no matcher":        {"bokeh_proxy * a:1\n bokeh_proxy b:1", `["a:1"]`, `["b:1"]`},
		"discovered":                  {"bokeh_proxy {\n dynamic a app 80\n}\n bokeh_proxy b:1", `["(discovered)"]`, `["b:1"]`},
		"one":                         {handlers: "bokeh_proxy a:1 b:1"},
		"none of ours":                {handlers: "handle /x {\n bokeh_proxy a:1\n}\n reverse_proxy b:1\n reverse_proxy c:1"},
		"a path":                      {handlers: "bokeh_proxy /a/* a:1\n bokeh_proxy b:1"},
		"a path on the second line":   {handlers: "bokeh_proxy b:1\n bokeh_proxy /a/* a:1"}, // Caddy puts it first
		"a matcher":                   {handlers: "@a header X-A b\n bokeh_proxy b:1\n bokeh_proxy @a a:1"},
		"handles":                     {handlers: "handle /a/* {\n bokeh_proxy a:1\n}\n handle {\n bokeh_proxy b:1\n}"},
		"paths that are taken off":    {handlers: "handle_path /a/* {\n bokeh_proxy a:1\n}\n handle_path /b/* {\n bokeh_proxy b:1\n}"},
		"a handle that hands on":      {handlers: "handle /a/* {\n header X-A b\n}\n handle {\n bokeh_proxy a:1\n}\n bokeh_proxy b:1"},
		"a login":                     {handlers: "forward_auth a:1 {\n uri /auth\n}\n bokeh_proxy b:1"},
		"a proxy that may hand on":    {handlers: "route {\n reverse_proxy a:1 {\n lb_policy bokeh\n @ok status 2xx\n handle_response @ok {\n header X-A b\n }\n }\n bokeh_proxy b:1\n}"},
		"a proxy for errors":          {handlers: "bokeh_proxy a:1\n handle_errors {\n bokeh_proxy b:1\n}"},
		"a proxy in another's answer": {handlers: "bokeh_proxy a:1 {\n @gone status 404\n handle_response @gone {\n reverse_proxy b:1\n }\n}"},
	} {
		t.Run(name, func(t *testing.T) {
			got := fmt.Sprint(logAtLoad(t, "warn", c.handlers))
			switch {
			case c.never == "" && strings.Contains(got, "never_reached"):
				t.Errorf("logged %s", got)
			case c.never != "" && (strings.Count(got, "never_reached") != 1 || !strings.Contains(got, `"takes_all":`+c.takes) || !strings.Contains(got, `"never_reached":`+c.never)):
				t.Errorf("logged %s, want once that %s takes all and %s is never reached", got, c.takes, c.never)
			}
		})
	}
}

// The labels of several containers that the documents give become one proxy, and so they are no mistake.
func TestLabelsThatWorkAreNoMistake(t *testing.T) {
	got := logAtLoad(t, "warn", "reverse_proxy a:1 b:1 c:1 {\n lb_policy bokeh {\n max_sessions 40\n }\n lb_try_duration 5s\n stream_close_delay 24h\n}")
	if len(got) > 0 {
		t.Errorf("logged %s", got)
	}
}

// Buffers in which a websocket would get lost are warned of at load; others are not.
func TestBuffersAreWarnedOf(t *testing.T) {
	for option, want := range map[string]int{"response_buffers 4k": 1, "response_buffers unlimited": 1, "request_buffers 4k": 0, "flush_interval -1": 0} {
		for _, proxy := range []string{"bokeh_proxy a:1 {\n %s\n}", "reverse_proxy a:1 {\n lb_policy bokeh\n %s\n}", "reverse_proxy a:1 {\n lb_policy cookie {\n fallback bokeh\n }\n %s\n}"} {
			got := logAtLoad(t, "warn", fmt.Sprintf(proxy, option))
			if n := strings.Count(fmt.Sprint(got), "response_buffers holds up websockets"); n != want {
				t.Errorf("%s in %s: warned %d times, want %d: %s", option, proxy, n, want, got)
			}
		}
	}
}

// After forward_auth a group is named by a header, as the log and the documents say; a visitor cannot write it.
func TestGroupAfterForwardAuth(t *testing.T) {
	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Remote-User", r.Header.Get("X-Who"))
	}))
	defer auth.Close()
	_, addrs := three(t)
	s := serve(t, "forward_auth "+auth.Listener.Addr().String()+" {\n uri /\n copy_headers Remote-User\n}\n"+
		"bokeh_proxy "+addrs+" {\n group_by {http.request.header.Remote-User}\n}")
	for _, who := range []string{"anna", "bob", "carl"} {
		home := s.get("/app", "X-Who", who).Server
		for i := range 4 {
			if p := s.get("/app", "X-Who", who, "Remote-User", fmt.Sprint("somebody else ", i)); p.Server != home {
				t.Errorf("%s is at %s, and then at %s", who, home, p.Server)
			}
		}
	}
}
