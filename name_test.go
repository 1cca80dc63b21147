// This file tests the names of upstreams, and how long they are looked at.

package caddybokeh

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestUpstreamName(t *testing.T) {
	for addr, want := range map[string]string{
		"localhost:5006":         "localhost:5006",
		"LocalHost.:5006":        "localhost:5006",
		"tcp/localhost:5006":     "localhost:5006",
		"tcp4/10.0.0.1:5006":     "10.0.0.1:5006",
		"http://bokeh":           "bokeh:80",
		"https://Bokeh":          "bokeh:443",
		"h2c://bokeh":            "bokeh:80",
		"https://bokeh:8443":     "bokeh:8443",
		"bokeh":                  "bokeh:80",
		":5006":                  ":5006",
		"[::1]:5006":             "[::1]:5006",
		"[0:0:0:0:0:0:0:1]:5006": "[::1]:5006",
		"[2001:DB8::1]:5006":     "[2001:db8::1]:5006",
		"https://[2001:db8::1]":  "[2001:db8::1]:443",
		"unix//run/Bokeh.sock":   "unix//run/Bokeh.sock",
		"unix/run/bokeh.sock":    "unix/run/bokeh.sock",
		"udp/bokeh:53":           "udp/bokeh:53",
		"":                       ":80",
	} {
		got := upstreamName(addr)
		if got != want {
			t.Errorf("upstreamName(%q) = %q, want %q", addr, got, want)
		}
		if again := upstreamName(got); again != got {
			t.Errorf("the name %q of %q is named %q", got, addr, again)
		}
	}
}

// What several nodes read must not take this machine's servers for another's.
func TestSharedName(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for name, local := range map[string]bool{
		"localhost:5006":       true,
		"app.localhost:5006":   true,
		"127.0.0.9:5006":       true,
		"[::1]:5006":           true,
		"[::ffff:7f00:1]:5006": true,
		":5006":                true,
		"unix//run/bokeh.sock": true,
		"bokeh:5006":           false,
		"10.0.0.1:5006":        false,
		"[2001:db8::1]:5006":   false,
		"localhost.example:80": false,
	} {
		want := name
		if local {
			want += "@" + host
		}
		if got := sharedName(name); got != want {
			t.Errorf("sharedName(%q) = %q, want %q", name, got, want)
		}
	}
}

// What visitors make up is not remembered where nobody can dial it, and does not take the place of what can be.
func TestUndialableAddresses(t *testing.T) {
	pool := reverseproxy.UpstreamPool{{Host: new(reverseproxy.Host), Dial: "{app}:5006"}, {Host: new(reverseproxy.Host), Dial: "u0:80"}}
	s := newTestSelection(pool)
	core, logs := observer.New(zapcore.InfoLevel)
	s.logger = zap.New(core)
	choose := func(app string, pool reverseproxy.UpstreamPool) string {
		r := newRequest(s, "/app")
		defer r.end()
		r.repl.Set("app", app)
		addr, _ := r.choose(pool)
		return addr
	}
	for i := range 100 {
		if addr := choose(fmt.Sprint("x", i, strings.Repeat("x", 60_000)), pool); addr != "u0:80" {
			t.Fatalf("chose %q", addr)
		}
	}
	if addr := choose(strings.Repeat("x", 60_000), pool[:1]); addr != "" {
		t.Errorf("chose %q where none can be dialed", addr)
	}
	if _, n := s.table.Size(); n != 1 {
		t.Errorf("%d upstreams are remembered, want 1", n)
	}
	if n := logs.FilterMessageSnippet("longer than anything").Len(); n != 1 {
		t.Errorf("it was logged %d times", n)
	}
	if longest := strings.Repeat("x", 253); choose(longest, pool[:1]) == "" {
		t.Error("a name as long as the DNS allows is none")
	}
}

func FuzzUpstreamName(f *testing.F) {
	f.Add("https://[::1%25eth0]:5006")
	f.Add("unix//run/x|0200")
	f.Fuzz(func(_ *testing.T, addr string) { sharedName(upstreamName(addr)) })
}

// A request that outlives its config may see an upstream as unhealthy. Nobody checks that one any more.
func TestNobodyWatchesForAConfigThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(1))
		s.members.close()
		looked := 0
		s.members.get("u9:80").watch(func() bool {
			looked++
			return looked > 100
		})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if looked != 0 {
			t.Errorf("somebody has looked %d times", looked)
		}
	})
}
