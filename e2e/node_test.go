// This file tests replacing a Caddy without losing a websocket.

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// A Caddy behind a balancer is emptied and replaced by another program: no visit fails, and no websocket is closed.
func TestNodeIsReplaced(t *testing.T) {
	p := quick(plan{keepAlive: true, origins: []string{"*"}})
	p.global = "\tshutdown_delay 10m\n\tstorage file_system " + t.TempDir()
	p.site = `
	@leaving {
		path /healthy
		vars {http.shutting_down} true
	}
	respond @leaving 503
	respond /healthy 200`
	f := start(t, p)
	g := f.another()
	balancer := f.balance(f, g)

	c := balancer.gather(3)
	old := f.caddy
	if err := old.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// Who is there works on, also after a reconnect: for it the node is as before. New ones come through the other node.
	await(t, func() error {
		res, err := http.Get(fmt.Sprintf("http://localhost:%d/bokeh/node?wait=30s", f.admin))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("the node is not empty: %s", res.Status)
		}
		return nil
	})
	old.Kill() // its delay would last for long
	time.Sleep(time.Second)
	f.startCaddy()
	time.Sleep(8 * time.Second)
	c.disperse()
	t.Log(c)
	if c.visits < 5 || c.failed+c.lost+c.closed > 0 {
		t.Errorf("people noticed: %s", c)
	}
	f.wantRuns(c.visits)
}

// balance starts a Caddy that knows nothing of Bokeh in front of others, and returns a fleet that is visited through it.
func (f *fleet) balance(nodes ...*fleet) *fleet {
	f.t.Helper()
	ports, err := stack.FreePorts(2)
	if err != nil {
		f.t.Fatal(err)
	}
	var to []string
	for _, n := range nodes {
		to = append(to, fmt.Sprint("localhost:", n.port))
	}
	b := *f
	b.home, b.port, b.admin = f.t.TempDir(), ports[0], ports[1]
	c, err := stack.StartCaddy(stack.CaddyConfig{
		Program: kit.caddy, Home: b.home, Admin: fmt.Sprint("localhost:", b.admin), Ready: fmt.Sprint("localhost:", b.port, "/healthy"),
		Caddyfile: fmt.Sprintf(`{
	admin localhost:%d
	auto_https off
}
http://:%d {
	bind 127.0.0.1
	reverse_proxy %s {
		header_up Host {upstream_hostport}
		lb_policy round_robin
		lb_try_duration 5s
		health_uri /healthy
		health_interval 200ms
	}
}`, b.admin, b.port, strings.Join(to, " ")),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Stop)
	b.caddy = c
	b.front = newFront(f.t, fmt.Sprint("127.0.0.1:", b.port))
	return &b
}

func await(t *testing.T, so func() error) {
	t.Helper()
	deadline := time.Now().Add(2 * patience)
	for {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
