// This file tests that it is known after a reload which policy stands where another one stood.

package caddybokeh

import (
	"fmt"
	"slices"
	"testing"
)

// placesAt returns where the policies of a site stand, in the order of its routes.
func (s *site) placesAt(handlers string) (places []place) {
	s.t.Helper()
	if err := s.load(handlers); err != nil {
		s.t.Fatal(err)
	}
	t := thisLedger()
	t.mu.Lock()
	c := t.loading()
	t.mu.Unlock()
	for _, o := range t.ownersOf(c) {
		places = append(places, o.place)
		if o.handler != nil || c.app != nil {
			s.t.Error("a handler is kept")
		}
	}
	return places
}

// What differs in a matcher is another place, also what differs in a matcher that is turned round. The upstreams do not count.
func TestPlaces(t *testing.T) {
	s := serve(t, "bokeh_proxy a:1")
	const proxies = `
	@in {
		remote_ip 10.0.0.0/8
		header X-A b
		path /x/*
		method GET
	}
	@out not remote_ip 10.0.0.0/8
	@there not remote_ip 192.168.0.0/16
	@said expression {http.request.uri.query} == "x"
	handle @in {
		bokeh_proxy %[1]s:1
	}
	handle @out {
		bokeh_proxy %[1]s:2
	}
	handle @there {
		bokeh_proxy %[1]s:3
	}
	handle @said {
		bokeh_proxy %[1]s:4
	}
	handle_path /y/* {
		bokeh_proxy /deep/* %[1]s:5
		bokeh_proxy %[1]s:6
	}
	handle {
		bokeh_proxy %[1]s:7
	}`
	first := s.placesAt(fmt.Sprintf(proxies, "a"))
	if len(first) != 7 {
		t.Fatalf("%d policies", len(first))
	}
	for i, p := range first {
		if (p == place{}) || slices.Index(first, p) != i {
			t.Errorf("policy %d: its place is not known, or another one's", i+1)
		}
	}
	for _, upstream := range []string{"a", "b", "c"} {
		if !slices.Equal(first, s.placesAt(fmt.Sprintf(proxies, upstream))) {
			t.Error("after a reload they stand elsewhere")
		}
	}
	for name, handlers := range map[string]string{
		"two in one place":              "route {\n bokeh_proxy a:1\n bokeh_proxy a:2\n}",
		"in the answer of another one":  "reverse_proxy a:1 {\n @gone status 404\n handle_response @gone {\n bokeh_proxy b:1\n }\n}",
		"in a route that others invoke": "route {\n invoke named\n}\n}\n&(named) {\n reverse_proxy a:1 {\n lb_policy bokeh\n }",
	} {
		places := s.placesAt(handlers)
		if len(places) == 0 || slices.ContainsFunc(places, func(p place) bool { return p != place{} }) {
			t.Errorf("%s: of %d policies one's place is known", name, len(places))
		}
	}
}

// A reload that replaces a server of one app keeps its sessions, though another app of the same host has the other server.
func TestReloadBesideAnotherApp(t *testing.T) {
	servers, _ := three(t)
	one, two, three := servers[0].addr(), servers[1].addr(), servers[2].addr()
	s := serve(t, "handle_path /a/* {\n bokeh_proxy "+one+" "+two+"\n}\nhandle_path /b/* {\n bokeh_proxy "+two+"\n}")
	page := func() (p page) {
		for p.Server != one {
			p = s.get("/a/app")
		}
		return p
	}
	own, stray := page(), page()
	if err := s.load("handle_path /a/* {\n bokeh_proxy " + two + " " + three + "\n}\nhandle_path /b/* {\n bokeh_proxy " + two + "\n}"); err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct{ path, token, want string }{{"/a/app/ws", own.Token, one}, {"/b/app/ws", stray.Token, two}} {
		var w ws
		soon(t, "open", func() (open bool) { // a reload may close a connection that it finds, and a browser tries again
			var err error
			w, err = s.tryOpen(at.path, "bokeh, "+at.token)
			return err == nil
		})
		if w.server != at.want {
			t.Errorf("%s leads to %q, want %s", at.path, w.server, at.want)
		}
		w.Close()
	}
}
