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

// ideal is the peer that is none: the best that can be.
const ideal = "central-queue"

// peers are in the order of the tables.
var peers = []peer{
	{name: ideal, version: func(*bench) (string, error) { return "", nil }, start: startQueue},
	{name: "haproxy-leastconn", version: haproxyVersion, start: startHAProxy},
	{name: "nginx-least_conn", version: nginxVersion, start: nginx("least_conn;", "")},
	{name: "nginx-ip_hash", version: nginxVersion, start: nginx("ip_hash;", "")},
	{name: "nginx-sticky", version: nginxStickyVersion, start: nginx("least_conn;", "sticky cookie server;")},
	{name: "caddy-random", version: caddyVersion, start: caddy("lb_policy random", retries)},
	{name: "caddy-round_robin", version: caddyVersion, start: caddy("lb_policy round_robin", retries)},
	{name: "caddy-least_conn", version: caddyVersion, start: caddy("lb_policy least_conn", retries)},
	{name: "caddy-random_choose", version: caddyVersion, start: caddy("lb_policy random_choose 2", retries)},
	{name: "caddy-ip_hash", version: caddyVersion, start: caddy("lb_policy ip_hash", retries)},
	{name: "caddy-cookie", version: caddyVersion, start: caddy("lb_policy cookie", retries)},
	{name: "caddy-cookie-no-retries", extra: true, version: caddyVersion, start: caddy("lb_policy cookie", "")},
	{name: "caddy-first", extra: true, version: caddyVersion, start: caddy("lb_policy first", retries)},
	{name: "bokeh-no-retries", extra: true, version: caddyVersion, start: caddy(bokehPolicy, "")},
	{name: "bokeh", version: caddyVersion, start: caddy(bokehPolicy, retries)},
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
