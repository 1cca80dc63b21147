// This file holds Caddy as a peer, with one policy or another.

package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

const (
	// retries is what users have who do not want to lose visits.
	retries = "lb_try_duration 5s"
	// notices is what users have who want Caddy to see that a server fails.
	notices = retries + `
		fail_duration 10s
		unhealthy_status 5xx`
	// bokehPolicy is ours, told how long these servers keep a session that nobody uses.
	bokehPolicy = `lb_policy bokeh {
			unused_session_lifetime LIFETIME
			check_unused_sessions CHECK
		}`
)

// caddyfile is the config: listener, admin endpoint, upstreams, policy and retries.
const caddyfile = `{
	admin %[2]s
	persist_config off
	log {
		level ERROR
	}
	servers {
		max_header_size 64KB
	}
}

http://%[1]s {
	reverse_proxy %[3]s {
		%[4]s
		%[5]s
		stream_close_delay 24h
	}
}
`

// caddyFront is a running Caddy.
type caddyFront struct {
	proxy
	*stack.Caddy
	servers []string
	admin   string
	config  func(servers []string) string
}

// caddy returns how to start Caddy with a policy.
func caddy(policy, retries string) func(*run, site) (front, error) {
	return func(r *run, s site) (front, error) {
		addrs, err := freeAddrs(2)
		if err != nil {
			return nil, err
		}
		f := &caddyFront{proxy: proxy{addrs[0]}, servers: s.servers, admin: addrs[1]}
		lifetime, check := r.work.lifetimes()
		policy := strings.NewReplacer("LIFETIME", lifetime.String(), "CHECK", check.String()).Replace(policy)
		f.config = func(servers []string) string {
			return fmt.Sprintf(caddyfile, f.addr, f.admin, strings.Join(servers, " "), policy, retries)
		}
		f.Caddy, err = stack.StartCaddy(stack.CaddyConfig{
			Program:   r.caddy,
			Caddyfile: f.config(f.servers),
			Home:      s.dir,
			Admin:     f.admin,
			Ready:     f.admin + "/config/",
		})
		if err != nil {
			return nil, err
		}
		return f, nil
	}
}

// join loads a config with one more upstream, as caddy reload does.
func (f *caddyFront) join(addr string) error {
	f.servers = append(f.servers, addr)
	res, err := http.Post("http://"+f.admin+"/load", "text/caddyfile", strings.NewReader(f.config(f.servers)))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		return fmt.Errorf("no reload: %s: %s", res.Status, text)
	}
	return nil
}

func (f *caddyFront) pid() int { return f.Pid() }
func (f *caddyFront) stop()    { f.Kill() }

// collect has the garbage collected, so that what is left can be compared.
func (f *caddyFront) collect() error {
	res, err := http.Get("http://" + f.admin + "/debug/pprof/heap?gc=1")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

func caddyVersion(b *bench) (string, error) { return said(b.caddy, "version") }
