// This file tests upstreams that are discovered, in Caddy.

package caddybokeh

import (
	"errors"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"golang.org/x/net/dns/dnsmessage"
)

// shifting is a source of upstreams that makes new ones for every attempt, or fails.
type shifting struct {
	Addrs []string `json:"addrs"`
}

var (
	shiftingFails atomic.Bool
	shiftingHides atomic.Value // the address (string) of one that is not found any more
)

func (*shifting) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.test_shifting", New: func() caddy.Module { return new(shifting) }}
}

func (s *shifting) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	s.Addrs = d.RemainingArgs()
	return nil
}

func (*shifting) DependsOnRequest() bool { return false }

func (s *shifting) GetUpstreams(*http.Request) ([]*reverseproxy.Upstream, error) {
	if shiftingFails.Load() {
		return nil, errors.New("no answer")
	}
	var ups []*reverseproxy.Upstream
	for _, i := range mathrand.Perm(len(s.Addrs)) {
		if s.Addrs[i] != shiftingHides.Load() {
			ups = append(ups, &reverseproxy.Upstream{Dial: s.Addrs[i]})
		}
	}
	return ups, nil
}

func init() { caddy.RegisterModule(new(shifting)) }

func TestDynamicUpstreams(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "reverse_proxy {\n dynamic test_shifting "+addrs+" "+deadAddr(t)+"\n lb_policy bokeh\n lb_try_duration 5s\n lb_try_interval 1ms\n}")
	for range 9 {
		_, w := s.visit()
		w.Close()
	}
	if n := runs(servers); n != 9 {
		t.Errorf("9 visits ran the app %d times", n)
	}
	for _, b := range servers {
		soonCounts(t, "spread", b.addr(), tally{0, 0, 0, 3})
	}
	p, w := s.visit()
	shiftingFails.Store(true)
	defer shiftingFails.Store(false)
	w.Close()
	if w := s.open(p.Token); w.server != p.Server {
		t.Errorf("while discovery fails the socket went to %q, its page was at %q", w.server, p.Server)
	}
	s.visit()
}

// A server that discovery does not find any more keeps its sessions and gets no other.
func TestGoneFromDiscovery(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "reverse_proxy {\n dynamic test_shifting "+addrs+"\n lb_policy bokeh\n}")
	var pages []page
	for range 3 {
		p, w := s.visit()
		w.Close()
		pages = append(pages, p)
	}
	gone := at(servers, pages[0].Server)
	shiftingHides.Store(gone.addr())
	defer shiftingHides.Store("")
	before := gone.appRuns()
	for range 6 {
		s.visit()
	}
	for _, p := range pages {
		if w := s.open(p.Token); w.server != p.Server {
			t.Errorf("page by %s, socket by %s", p.Server, w.server)
		}
	}
	if n := gone.appRuns(); n != before {
		t.Errorf("the server that is gone ran the app %d times more", n-before)
	}
	soonCounts(t, "its session", gone.addr(), tally{0, 0, 1, 0})
	gone.stop()
	soonCounts(t, "cut", gone.addr(), tally{0, 0, 0, 1})
	s.open(pages[0].Token) // without retries the first one finds that it is dead
	if w := s.open(pages[0].Token); w.status != http.StatusSwitchingProtocols || w.server == gone.addr() {
		t.Errorf("socket %d by %s", w.status, w.server)
	}
}

// dynamic a and dynamic srv, with a resolver of our own that can fail.
func TestDynamicDNS(t *testing.T) {
	servers, port := samePort(t)
	dns := newResolver(t, port)
	for name, source := range map[string]string{
		"a":   "dynamic a bokeh.test " + port,
		"srv": "dynamic srv bokeh.test",
	} {
		t.Run(name, func(t *testing.T) {
			before := runs(servers)
			config := "reverse_proxy {\n " + source + " {\n resolvers " + dns.addr + "\n refresh 1ms\n }\n transport http {\n resolvers " + dns.addr + "\n }\n lb_policy bokeh\n}"
			s := serve(t, config)
			for range 8 {
				s.visit()
			}
			if n := runs(servers) - before; n != 8 {
				t.Errorf("8 visits ran the app %d times", n)
			}
			dns.fails.Store(true)
			defer dns.fails.Store(false)
			s.visit()
			s.reload("header X-Config next\n" + config)
			s.visit()
		})
	}
}

// samePort starts servers at several loopback addresses with one port.
func samePort(t *testing.T) ([]*bokehServer, string) {
	t.Helper()
	first := newBokeh(t, "127.0.0.2:0")
	_, port, _ := net.SplitHostPort(first.addr())
	return []*bokehServer{first, newBokeh(t, "127.0.0.3:"+port)}, port
}

// resolver is a DNS server that knows bokeh.test.
type resolver struct {
	addr  string
	fails atomic.Bool
}

func newResolver(t *testing.T, port string) *resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d := &resolver{addr: conn.LocalAddr().String()}
	n, _ := strconv.Atoi(port)
	go func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			answer, err := d.answer(buf[:size], uint16(n))
			if err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return d
}

func (d *resolver) answer(query []byte, port uint16) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.Additionals = true, nil
	q := m.Questions[0]
	if d.fails.Load() && q.Name.String() == "bokeh.test." {
		m.RCode = dnsmessage.RCodeServerFailure
		return m.Pack()
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	for i, host := range []string{"one.test.", "two.test."} {
		records := map[dnsmessage.Type]dnsmessage.ResourceBody{
			dnsmessage.TypeSRV: &dnsmessage.SRVResource{Port: port, Target: dnsmessage.MustNewName(host)},
			dnsmessage.TypeA:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, byte(2 + i)}},
		}
		if body, ok := records[q.Type]; ok {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: body})
		}
	}
	return m.Pack()
}
