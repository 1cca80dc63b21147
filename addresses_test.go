// This file tests what is said where the name of an upstream leads to several servers.

package caddybokeh

import (
	"net"
	"net/http/httptrace"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestNameOfSeveralServers(t *testing.T) {
	for name, c := range map[string]struct {
		pool  []string
		found string
		want  string // the lines in the log; empty for none
	}{
		"one address":                  {[]string{"app:5006"}, "10.0.0.1", ""},
		"one of each family":           {[]string{"app:5006"}, "10.0.0.1 fd00::1", ""},
		"the same twice":               {[]string{"app:5006"}, "10.0.0.1 10.0.0.1 ::ffff:10.0.0.1", ""},
		"this machine":                 {[]string{"localhost:5006"}, "127.0.0.1 ::1", ""},
		"this machine, by two of each": {[]string{"app.localhost:5006"}, "127.0.0.1 127.0.1.1 ::1", ""},
		"two":                          {[]string{"App:5006"}, "10.0.0.1 10.0.0.2", "dynamic a app 5006"},
		"two of IPv6":                  {[]string{"http://app"}, "10.0.0.1 fd00::1 fd00::2", "dynamic a app 80 {\n\tversions ipv6\n}"},
		"two of each":                  {[]string{"app:5006"}, "10.0.0.1 10.0.0.2 fd00::1 fd00::2", "dynamic a app 5006 {\n\tversions ipv4\n}"}, // else each would be two
		"two of each, beside others": {
			[]string{"app:5006", "localhost:5007", "[fd00::9]:80", "unix//run/app.sock", "spare:5006"},
			"10.0.0.1 10.0.0.2 fd00::1 fd00::2",
			"dynamic multi {\n\ta app 5006 {\n\t\tversions ipv4\n\t}\n\ta localhost 5007 {\n\t\tversions ipv4\n\t}\n\ta fd00::9 80\n\t# unix//run/app.sock has no name that could be looked up\n\ta spare 5006\n}",
		},
		"beside others": {[]string{"app:5006", "10.0.0.9:80"}, "10.0.0.1 10.0.0.2", "dynamic multi {\n\ta app 5006\n\ta 10.0.0.9 80\n}"},
	} {
		t.Run(name, func(t *testing.T) {
			var pool reverseproxy.UpstreamPool
			for _, dial := range c.pool {
				pool = append(pool, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
			}
			var found []net.IPAddr
			for addr := range strings.FieldsSeq(c.found) {
				found = append(found, net.IPAddr{IP: net.ParseIP(addr)})
			}
			core, logs := observer.New(zapcore.WarnLevel)
			s := newTestSelection(pool)
			s.logger = zap.New(core)
			m := s.members.get(c.pool[0])
			for range 3 {
				s.lookedUp(m, found)
			}
			var said strings.Builder
			for _, entry := range logs.All() {
				said.WriteString(entry.ContextMap()["caddyfile"].(string))
			}
			if said.String() != c.want {
				t.Errorf("it says %q, want %q", said.String(), c.want)
			}
			if c.want != "" {
				if _, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(":80 {\nreverse_proxy {\n"+c.want+"\nlb_policy bokeh\n}\n}"), nil); err != nil {
					t.Errorf("Caddy does not take the lines: %v", err)
				}
			}
			if got := m.Addresses.Load() > 1; got != (c.want != "") {
				t.Errorf("it has %d addresses", m.Addresses.Load())
			}
		})
	}
}

// The addresses of a proxy on the way to an upstream are not the upstream's.
func TestNameOfAForwardProxy(t *testing.T) {
	for host, want := range map[string]int32{"proxy.internal": 0, "App.": 2} {
		pool := reverseproxy.UpstreamPool{{Host: new(reverseproxy.Host), Dial: "app:5006"}}
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.choose(pool)
		trace := r.visit().trace(r.visit().attempt)
		trace.DNSStart(httptrace.DNSStartInfo{Host: host})
		trace.DNSDone(httptrace.DNSDoneInfo{Addrs: []net.IPAddr{{IP: net.IPv4(10, 0, 0, 1)}, {IP: net.IPv4(10, 0, 0, 2)}}})
		if got := s.members.get("app:5006").Addresses.Load(); got != want {
			t.Errorf("after a look-up of %s the upstream has %d addresses, want %d", host, got, want)
		}
	}
}

// Through a running Caddy: the status tells of a name that leads to two servers.
func TestNameOfSeveralServersIsTold(t *testing.T) {
	_, port := samePort(t)
	dns := newResolver(t, port)
	s := administer(t, "reverse_proxy bokeh.test:"+port+" {\n transport http {\n resolvers "+dns.addr+"\n }\n lb_policy bokeh\n}")
	s.get("/app")
	st := s.status("bokeh.test:" + port)
	if st.Addresses != 2 {
		t.Errorf("it is said to have %d addresses", st.Addresses)
	}
	s.begin("status").end(0, "dynamic a bokeh.test "+port)
}
