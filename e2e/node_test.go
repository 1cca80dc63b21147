// This file tests replacing a Caddy without losing a websocket.

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// A Caddy behind a balancer is emptied and replaced by another program: no visit fails, and no websocket is closed.
func TestNodeIsReplaced(t *testing.T) {
	t.Parallel()
	p := quick(plan{keepAlive: true, origins: []string{"*"}})
	storage := t.TempDir()
	p.global = "\tshutdown_delay 10m\n\tstorage file_system " + storage
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
	f.awaitLog("shutdown scheduled") // before that it is a Caddy that goes on for ever
	// Who is there works on, also after a reconnect: for it the node is as before. New ones come through the other node.
	var node struct{ Node string }
	f.await(func() error {
		status, body, err := f.ask("/bokeh/node?wait=10s")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("the node is not empty: %s", body)
		}
		return errors.Join(err, json.Unmarshal([]byte(body), &node))
	})
	old.Kill() // its delay would last for long
	if said, err := os.ReadFile(filepath.Join(storage, "caddy-bokeh", "nodes", node.Node+".json")); err != nil || !strings.Contains(string(said), `"left":true`) {
		t.Errorf("the others do not hear that it is gone: %v %s", err, said)
	}
	c.awaitVisits(1)
	f.startCaddy()
	c.awaitVisits(6)
	c.disperse()
	t.Log(c)
	if c.failed+c.lost+c.closed > 0 {
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

// Whoever waits for a drain hears that Caddy ends, and the other node that it has ended.
func TestCaddyEndsInGoodOrder(t *testing.T) {
	t.Parallel()
	p := quick(plan{origins: []string{"*"}})
	p.global = "\tstorage file_system " + t.TempDir()
	f := start(t, p)
	g := f.another()
	g.atWork(1)
	g.bokeh("drain", f.servers[0].Addr()).wait()
	answer := make(chan string, 1)
	go func() {
		status, body, err := g.ask("/bokeh/upstreams/" + f.servers[0].Addr() + "?wait=1h")
		answer <- fmt.Sprint(status, body, err)
	}()
	g.awaitLog("?wait=1h")
	f.awaitNodes(2)
	g.caddy.Stop()
	if got := <-answer; !strings.HasPrefix(got, "503") {
		t.Error("who waits hears ", got)
	}
	f.awaitNodes(1) // it is gone, and forgotten when its visitors do not come back any more
	f.bokeh("drain", f.servers[0].Addr(), "--wait", "--timeout", stack.Stretch(time.Minute).String()).wait()
}

// awaitNodes waits until the fleet's Caddy knows of n nodes, itself among them.
func (f *fleet) awaitNodes(n int) {
	f.t.Helper()
	f.await(func() error {
		_, body, err := f.ask("/bokeh/nodes")
		if err == nil && strings.Count(body, `"node"`) != n {
			err = fmt.Errorf("want %d nodes: %s", n, body)
		}
		return err
	})
}

// On a terminal the waiting shows a bar, with what is left and how old it is.
func TestDrainOnATerminal(t *testing.T) {
	t.Parallel()
	f := start(t, quick(plan{size: 2}))
	b := f.visit()
	b.click(1)
	ctx, cancel := stack.Patience(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kit.caddy, "bokeh", "drain", f.server(b.place()).Addr(), "--wait", "--address", fmt.Sprint("localhost:", f.admin))
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 120})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var shown strings.Builder
	left := false
	for buf := make([]byte, 4096); ; {
		n, err := terminal.Read(buf)
		shown.Write(buf[:n])
		if !left && strings.Contains(shown.String(), "the oldest of") {
			left = true
			b.close()
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	text := shown.String()
	t.Log(strings.ReplaceAll(text, "\r", "\n"))
	for _, want := range []string{"1 session at ", "the oldest of ", "0%", "drained: "} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not show %q", want)
		}
	}
}
