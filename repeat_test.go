// This file tests that a request which may have reached a server reaches no other one.

package caddybokeh

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func TestDeadlyRequest(t *testing.T) {
	const duration = "lb_try_duration 5s\n lb_try_interval 1ms\n"
	for name, tc := range map[string]struct {
		proxy, path string
		header      []string
		dead        int
	}{
		"page":                             {proxy: "bokeh_proxy %s", path: "/app?die", dead: 1},
		"page of lb_policy":                {proxy: "reverse_proxy %s {\n lb_policy bokeh\n " + duration + "}", path: "/app?die", dead: 1},
		"page with lb_retries":             {proxy: "reverse_proxy %s {\n lb_policy bokeh\n lb_retries 5\n}", path: "/app?die", dead: 1},
		"page of a session":                {proxy: "bokeh_proxy %s", path: "/app?die&bokeh-session-id=given", dead: 1},
		"page that says it is a script":    {proxy: "bokeh_proxy %s", path: "/app?die", header: []string{"Sec-Fetch-Dest", "script"}, dead: 1},
		"embedded page":                    {proxy: "bokeh_proxy %s", path: "/app/autoload.js?die", dead: 1},
		"login":                            {proxy: "bokeh_proxy %s", path: "/login?die", dead: 1},
		"what an app answers":              {proxy: "bokeh_proxy %s", path: "/app/data?die", dead: 1},
		"file":                             {proxy: "reverse_proxy %s {\n lb_policy bokeh\n lb_retries 5\n}", path: "/static/js/bokeh.min.js?die", dead: 3},
		"page where the config repeats it": {proxy: "reverse_proxy %s {\n lb_policy bokeh\n lb_retries 5\n lb_retry_match {\n method GET\n }\n}", path: "/app?die", dead: 3},
	} {
		for when, visits := range map[string]int{"first": 0, "on connections that were kept": 6} {
			t.Run(name+" "+when, func(t *testing.T) {
				servers, addrs := three(t)
				s := serve(t, fmt.Sprintf(tc.proxy, addrs))
				for range visits {
					s.visit()
				}
				if got := s.get(tc.path, tc.header...).status; got != http.StatusBadGateway {
					t.Errorf("answered with %d", got)
				}
				if got := died(servers); got != tc.dead {
					t.Errorf("%d servers are dead, want %d", got, tc.dead)
				}
			})
		}
	}
}

func TestDeadlySocket(t *testing.T) {
	servers, addrs := three(t)
	s := serve(t, "bokeh_proxy "+addrs)
	p := s.get("/app")
	w, err := s.tryOpen("/app/ws?die", "bokeh, "+p.Token)
	if err != nil || w.status != http.StatusBadGateway {
		t.Errorf("answered with %d, error %v", w.status, err)
	}
	if got := died(servers); got != 1 {
		t.Errorf("%d servers are dead, want 1", got)
	}
}

func died(servers []*bokehServer) (n int) {
	for _, b := range servers {
		if b.died.Load() {
			n++
		}
	}
	return n
}

// A request that has found nobody is not ended with the server that refused it: another one may take it.
func TestRefusedRequestIsNotEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.choose(pool)
		v := r.visit()
		r.refuse()
		_ = v.noAnswer(reverseproxy.NewDialError(syscall.ECONNREFUSED))
		v.attempt.m.Drain.Requests.EndAll(time.Nanosecond)
		pass(time.Second)
		if r.Context().Err() != nil {
			t.Error("it was ended")
		}
		r.end()
	})
}
