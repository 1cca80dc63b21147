// This file holds the peers: what stands before the servers, one after the other.

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// route is a way to a server.
type route interface {
	// enter returns the address that a visitor has to ask for a page that costs so much.
	enter(cost time.Duration) (at string)
	// lost says whether the visitor knows that nobody is at the address any more, and enters again.
	lost(at string) bool
}

// front is a running peer.
type front interface {
	route
	// join adds a server.
	join(addr string) error
	// tell says that a server has died or come back, to whom could know.
	tell(addr string, up bool)
	// pid is the leader of the group of its processes, or 0.
	pid() int
	stop()
}

// peer is one that is measured.
type peer struct {
	name    string
	extra   bool                           // only where it is asked for
	version func(b *bench) (string, error) // fails where it cannot run
	start   func(r *run, s site) (front, error)
}

// site is where a peer is to run.
type site struct {
	dir     string
	servers []string // that are there
	late    []string // that will join
}

// ideal is the peer that is none: each visitor goes to the server that is done first.
const ideal = "central-queue"

// policies are Caddy's own, and the arguments that they need.
var policies = []string{"random", "round_robin", "least_conn", "random_choose 2", "ip_hash", "cookie"}

// peers are in the order of the tables. Those that are extra are beside the ones that users have most often.
var peers = slices.Concat(
	[]peer{
		{name: ideal, version: func(*bench) (string, error) { return "", nil }, start: startQueue},
		{name: "haproxy-leastconn", version: haproxyVersion, start: startHAProxy(oneBackend, "")},
		{name: "haproxy-slowstart", extra: true, version: haproxyVersion, start: startHAProxy(oneBackend, " slowstart 5s")},
		{name: "haproxy-two-backends", extra: true, version: haproxyVersion, start: startHAProxy(twoBackends, "")},
		{name: "nginx-least_conn", version: nginxVersion, start: nginx("least_conn;", "")},
		{name: "nginx-ip_hash", version: nginxVersion, start: nginx("ip_hash;", "")},
		{name: "nginx-sticky", version: nginxStickyVersion, start: nginx("least_conn;", "sticky cookie server;")},
	},
	caddys("", false, retries),
	[]peer{
		{name: "caddy-cookie-least_conn", extra: true, version: caddyVersion, start: caddy("lb_policy cookie {\n\t\t\tfallback least_conn\n\t\t}", retries)},
		{name: "caddy-cookie-fail_duration", extra: true, version: caddyVersion, start: caddy("lb_policy cookie", notices)},
		{name: "caddy-first", extra: true, version: caddyVersion, start: caddy("lb_policy first", retries)},
	},
	caddys(withoutRetries, true, ""),
	[]peer{
		{name: ours + withoutRetries, extra: true, version: caddyVersion, start: caddy(bokehPolicy, "")},
		{name: ours, version: caddyVersion, start: caddy(bokehPolicy, retries)},
	},
)

// caddys returns Caddy with each of its own policies.
func caddys(suffix string, extra bool, retries string) (all []peer) {
	for _, policy := range policies {
		name, _, _ := strings.Cut(policy, " ")
		all = append(all, peer{name: "caddy-" + name + suffix, extra: extra, version: caddyVersion, start: caddy("lb_policy "+policy, retries)})
	}
	return all
}

// unretried are the names of all peers without retries.
func unretried() (names []string) {
	for _, p := range peers {
		if strings.HasSuffix(p.name, withoutRetries) {
			names = append(names, p.name)
		}
	}
	return names
}

// choosePeers returns the peers of these names, or all usual ones.
func choosePeers(names string) (chosen []peer, err error) {
	for name := range strings.FieldsFuncSeq(names, isSeparator) {
		i := slices.IndexFunc(peers, func(p peer) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no peer %s", name)
		}
		chosen = append(chosen, peers[i])
	}
	if len(chosen) > 0 {
		return chosen, nil
	}
	return slices.DeleteFunc(slices.Clone(peers), func(p peer) bool { return p.extra }), nil
}

func isSeparator(r rune) bool { return r == ',' || r == ' ' }

// proxy is where a process serves all visitors.
type proxy struct{ addr string }

func (p proxy) enter(time.Duration) string { return p.addr }
func (p proxy) lost(string) bool           { return false }
func (p proxy) tell(string, bool)          {}
