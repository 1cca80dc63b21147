// This file holds what Caddy and its command line say in the same words.

package api

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// ErrNoPolicy is what an operator hears from a Caddy that has no policy like this.
var ErrNoPolicy = errors.New("this Caddy has no bokeh_proxy, and no reverse_proxy with lb_policy bokeh")

// ErrNoneYet is what is said of a Caddy whose upstreams are all discovered when somebody visits.
var ErrNoneYet = errors.New("discovered upstreams are known from the first visit on, and nobody has visited yet")

// InWords returns a number of sessions as it is said.
func InWords(sessions int64) string {
	if sessions == 1 {
		return "1 session"
	}
	return fmt.Sprint(sessions, " sessions")
}

// Seconds returns a duration in whole seconds. It rounds up: what takes a moment yet is not said to be over.
func Seconds(d time.Duration) string {
	return (d + time.Second - 1).Truncate(time.Second).String()
}

// Source returns what stands behind dynamic in a Caddyfile to find all addresses of the named upstream. If it has no name that
// could be looked up, ok is false, and the source is a comment that says so.
func Source(name string) (source string, ok bool) {
	host, port, err := net.SplitHostPort(name)
	if err != nil || strings.Contains(name, "/") {
		return "# " + name + " has no name that could be looked up", false
	}
	return fmt.Sprintf("a %s %s", host, port), true
}
