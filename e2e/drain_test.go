// This file tests taking a server out while people work on it.

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// Nobody who works on a draining server notices: neither the reload, nor a cut connection, nor a restart of Caddy.
func TestDrainByConfig(t *testing.T) {
	t.Parallel()
	f := start(t, plan{keepAlive: true})
	tabs := f.atWork(3)
	draining := tabs[0].place()
	f.plan.policy = fmt.Sprintf("bokeh {\n\t\t\tdrain %s\n\t\t}", f.server(draining).Addr())
	f.reload()
	f.newcomers(4, draining)
	for _, b := range tabs {
		b.click(3)
		if !b.kept() {
			t.Error("the reload closed a websocket")
		}
	}
	f.front.cut()
	for _, b := range tabs {
		b.reconnected()
		b.click(4)
		b.mark()
	}
	f.restartCaddy()
	for _, b := range tabs {
		b.reconnected()
		b.click(5)
	}
	if tabs[0].place() != draining {
		t.Errorf("the document moved from server %s to %s", draining, tabs[0].place())
	}
	f.newcomers(4, draining)
	f.wantRuns(3 + 2*4)
}

// newcomers visits n times, and never may be sent to the named server.
func (f *fleet) newcomers(n int, never string) {
	f.t.Helper()
	b := newTab(f.t)
	defer b.close()
	for range n {
		f.visitIn(b).click(1)
		if b.place() == never {
			f.t.Error("a new visit went to the draining server")
		}
	}
}

// command is a run of caddy bokeh.
type command struct {
	f    *fleet
	args []string
	out  bytes.Buffer
	done chan struct{}
	err  error
}

// bokeh starts a command that talks to the fleet's Caddy.
func (f *fleet) bokeh(args ...string) *command {
	f.t.Helper()
	ctx, cancel := stack.Patience(f.t.Context(), 3*time.Minute)
	f.t.Cleanup(cancel)
	c := &command{f: f, args: args, done: make(chan struct{})}
	cmd := exec.CommandContext(ctx, kit.caddy, append([]string{"bokeh", "--address", fmt.Sprint("localhost:", f.admin)}, args...)...)
	cmd.Stdout, cmd.Stderr = &c.out, &c.out
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c
}

// ended says whether the command has ended.
func (c *command) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// wait waits for the end of the command, which must be good.
func (c *command) wait() {
	c.f.t.Helper()
	<-c.done
	if c.err != nil {
		c.f.t.Fatalf("%v: %v\n%s", c.args, c.err, c.out.String())
	}
}

// A drain outlives kill -9 of Caddy: nobody who works there notices more than a reconnect, newcomers stay away, and who
// waits for the drain goes on waiting.
func TestDrainOutlivesKill(t *testing.T) {
	t.Parallel()
	f := start(t, quick(plan{keepAlive: true}))
	tabs := f.atWork(3)
	draining := tabs[0].place()
	drain := f.bokeh("drain", f.server(draining).Addr(), "--wait")
	f.awaitLog("marked draining")
	f.newcomers(2, draining)
	f.caddy.Kill()
	f.startCaddy()
	f.newcomers(2, draining)
	for _, b := range tabs {
		b.reconnected()
		b.click(3)
	}
	if tabs[0].place() != draining {
		t.Errorf("the document moved from server %s to %s", draining, tabs[0].place())
	}
	f.newcomers(2, draining)
	if drain.ended() {
		t.Errorf("the drain ended with a session open: %v %s", drain.err, drain.out.String())
	}
	for _, b := range tabs {
		b.close()
	}
	drain.wait()
	f.wantEmpty(draining)
	f.wantRuns(3 + 6)
}

// wantEmpty checks that a server that was called drained has none of the documents that it made.
func (f *fleet) wantEmpty(name string) {
	f.t.Helper()
	_, runs := f.appRuns()
	_, ends := f.lines(f.runs + ".ends")
	if runs[name] != ends[name] {
		f.t.Errorf("server %s is called drained: it ran the app %d times, and %d documents have ended", name, runs[name], ends[name])
	}
}

// What people see when the grace period of their server is over. Where BokehJS reconnects and the token is not too old they
// get a fresh document on another server; else a page that stands still until it is loaded again.
func TestGracePeriod(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env   []string
		token time.Duration // how long one lives on a quiet machine, if not for as long as usual; the page is older
		fresh bool
	}{
		"reconnect on":                {fresh: true},
		"reconnect off":               {env: []string{"RECONNECT=off"}},
		"reconnect on, token expired": {token: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := quick(plan{keepAlive: true, serveEnv: c.env})
			life := stack.Stretch(c.token).Truncate(time.Second)
			if c.token > 0 {
				p.serve = []string{"--session-token-expiration", fmt.Sprint(life.Seconds())}
			}
			f := start(t, p)
			tabs := f.atWork(3)
			if c.token > 0 {
				time.Sleep(life + 2*time.Second)
			}
			place := tabs[0].place()
			f.bokeh("drain", f.server(place).Addr(), "--grace-period", "1ms", "--wait").wait()
			if c.fresh {
				tabs[0].reconnected()
				tabs[0].click(1)
				if at := tabs[0].place(); at == place {
					t.Errorf("the document is still on server %s", at)
				}
			} else {
				tabs[0].eval(`clickable().click()`, nil)
				time.Sleep(stack.Stretch(2 * time.Second))
				if !tabs[0].holds(`model("count").text == "2"`) {
					t.Error("the page does not stand still")
				}
				f.visitIn(tabs[0]).click(1)
			}
			for _, b := range tabs[1:] {
				b.click(3)
				if !b.kept() {
					t.Error("a session of another server was closed")
				}
			}
		})
	}
}

// Two Caddys on one storage: what one is told holds on the other, and drained is what both call so.
func TestDrainOnTwoNodes(t *testing.T) {
	t.Parallel()
	p := quick(plan{keepAlive: true, origins: []string{"*"}})
	p.global = "\tstorage file_system " + t.TempDir()
	f := start(t, p)
	g := f.another()
	b := g.visit()
	b.click(1)
	draining := b.place()
	drain := f.bokeh("drain", f.server(draining).Addr(), "--wait")
	begun := time.Now()
	g.awaitLog("marked draining")
	if took := time.Since(begun); took > stack.Stretch(5*time.Second) {
		t.Errorf("the other node heard of it after %v", took)
	}
	g.newcomers(3, draining)
	f.newcomers(3, draining)
	// Who waits at one node waits for the last session of the other, and for nothing else.
	f.awaitOnlyWait(draining, "it has 1 session")
	time.Sleep(5 * time.Second)
	if drain.ended() {
		t.Fatalf("the drain ended with a session open through the other node: %v %s", drain.err, drain.out.String())
	}
	b.click(2)
	b.close()
	drain.wait()
	f.wantEmpty(draining)

	// The browser comes back through the first node, as behind a balancer that knows nothing.
	b = g.visit()
	b.clicks(2)
	b.mark()
	draining = b.place()
	drain = f.bokeh("drain", f.server(draining).Addr(), "--wait")
	f.awaitOnlyWait(draining, "it has 1 session")
	g.front.to = f.front.to
	g.front.cut()
	b.reconnected()
	b.click(3)
	if b.place() != draining {
		t.Errorf("the document moved from server %s to %s", draining, b.place())
	}
	g.caddy.Kill()
	b.click(4)
	if drain.ended() {
		t.Error("the drain ended with a session open")
	}
	b.close()
	drain.wait()
	f.wantEmpty(draining)
	f.wantRuns(2 + 6)
}

// awaitOnlyWait waits until the only thing that the named server's drain waits for is one of another node.
func (f *fleet) awaitOnlyWait(name, reason string) {
	f.t.Helper()
	f.await(func() error {
		var nodes []struct{ Node string } // that which is asked comes first
		var st struct {
			Waits []struct{ Node, Reason string } `json:"waiting_for"`
		}
		_, known, err := f.ask("/bokeh/nodes")
		if err != nil {
			return err
		}
		_, body, err := f.ask("/bokeh/upstreams/" + f.server(name).Addr())
		if err = errors.Join(err, json.Unmarshal([]byte(known), &nodes), json.Unmarshal([]byte(body), &st)); err != nil {
			return err
		}
		if len(st.Waits) != 1 || st.Waits[0].Reason != reason || st.Waits[0].Node == nodes[0].Node {
			return fmt.Errorf("the drain waits for %v", st.Waits)
		}
		return nil
	})
}

// Two hundred reloads while a server drains and people visit: mark, counts and sessions are exact at the end.
func TestDrainOverManyReloads(t *testing.T) {
	t.Parallel()
	f := start(t, quick(plan{keepAlive: true, proxy: "\t\tlb_try_duration 5s"}))
	tabs := f.atWork(3)
	draining := tabs[0].place()
	f.bokeh("drain", f.server(draining).Addr()).wait()
	c := f.gather(4)
	for i := range 200 {
		f.load(fmt.Sprint("header X-Round ", i))
	}
	c.disperse()
	t.Log(c)
	// A page that is requested in the very moment of a reload may find a server that is closing; that is Caddy's.
	if c.visits < 3 || c.lost+c.closed > 0 {
		t.Errorf("people noticed: %s", c)
	}
	for _, b := range tabs {
		b.click(3)
		if !b.kept() {
			t.Error("a websocket was closed")
		}
	}
	f.newcomers(3, draining)
	f.await(func() error {
		status := f.bokeh("status")
		status.wait()
		for _, b := range f.servers {
			want := b.Addr() + " +ready +yes +1 +0 +0 +1 +0 "
			if fmt.Sprint(":", b.Port) == draining {
				want = b.Addr() + " +draining +yes +1 +0 +0 +1 +0 "
			}
			if !regexp.MustCompile(want).MatchString(status.out.String()) {
				return fmt.Errorf("want one session at %s:\n%s", b.Addr(), status.out.String())
			}
		}
		return nil
	})
}

// load loads the config with another line in its site, at the admin API: that is faster than the command.
func (f *fleet) load(line string) {
	f.t.Helper()
	before := f.plan.site
	f.plan.site += "\n\t" + line
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, fmt.Sprintf("http://localhost:%d/load", f.admin), strings.NewReader(f.caddyfile()))
	if err != nil {
		f.t.Fatal(err)
	}
	f.plan.site = before
	req.Header.Set("Content-Type", "text/caddyfile")
	f.await(func() error { // also the admin API is replaced, and may be closing
		again := req.Clone(f.t.Context())
		again.Body, _ = req.GetBody()
		res, err := http.DefaultClient.Do(again)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("loading: %s", res.Status)
		}
		return nil
	})
}

// Every server is restarted, one after the other, while people visit and click all along, and once each time all their
// connections are cut: nobody notices.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	f := start(t, quick(plan{keepAlive: true, proxy: "\t\tlb_try_duration 5s"}))
	c := f.gather(3)
	f.rollingRestart(c.cut)
	c.disperse()
	t.Log(c)
	if c.visits < 10 || c.failed+c.lost+c.closed > 0 {
		t.Errorf("people noticed: %s", c)
	}
	f.wantRuns(c.visits)
}

// Of two servers the second is the last one that takes visitors until health checks have seen that the first is back.
func TestRollingRestartOfTwo(t *testing.T) {
	t.Parallel()
	f := start(t, quick(plan{size: 2, proxy: "\t\thealth_uri /counter/metadata\n\t\thealth_interval 8s"}))
	f.rollingRestart(func() {})
}

// rollingRestart restarts every server by the script that docs/draining.md gives, and calls meanwhile whenever one drains.
func (f *fleet) rollingRestart(meanwhile func()) {
	f.t.Helper()
	// Its restart command asks this test to restart a server, by a file.
	restart := filepath.Join(f.t.TempDir(), "restart")
	if err := os.WriteFile(restart, []byte("#!/bin/sh\ntouch \"$0.$1\"\nwhile [ -e \"$0.$1\" ]; do sleep 0.05; done\n"), 0o700); err != nil {
		f.t.Fatal(err)
	}
	args := []string{restart}
	for _, b := range f.servers {
		args = append(args, b.Addr())
	}
	script := exec.Command(filepath.Join(kit.root, "examples", "rolling-restart.sh"), args...)
	script.Env = append(os.Environ(), "CADDY="+kit.caddy, fmt.Sprintf("BOKEH_OPTIONS=--address localhost:%d", f.admin), fmt.Sprint("DRAIN_OPTIONS=--timeout ", stack.Stretch(2*time.Minute)))
	var out bytes.Buffer
	script.Stdout, script.Stderr = &out, &out
	if err := script.Start(); err != nil {
		f.t.Fatal(err)
	}
	for i, b := range f.servers {
		f.await(func() error {
			if n := strings.Count(f.caddy.Output(), "marked draining"); n != i+1 {
				return fmt.Errorf("%d servers were drained, want %d; the script wrote:\n%s", n, i+1, out.String())
			}
			return nil
		})
		meanwhile()
		asked := restart + "." + b.Addr()
		f.await(func() error {
			_, err := os.Stat(asked)
			return err
		})
		f.wantEmpty(fmt.Sprint(":", b.Port))
		b.Stop()
		f.startServer(i, b.Port)
		if err := os.Remove(asked); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := script.Wait(); err != nil {
		f.t.Errorf("%v: %s", err, out.String())
	}
}

// The same with what Caddy has: an operator takes a server off the config, waits until Caddy tells of no request to it, and
// restarts it. Page and websocket are pinned by a cookie, or not at all.
func TestRollingRestartOfOthers(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"cookie", "least_conn"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			f := start(t, plan{policy: policy, keepAlive: true, proxy: "\t\tlb_try_duration 5s"})
			f.visit().click(1) // who stays is where one of the servers is taken off; of those who come and go nobody may be
			c := f.gather(3)
			all := slices.Clone(f.servers)
			for i, b := range all {
				f.servers = slices.Delete(slices.Clone(all), i, i+1)
				f.reload()
				c.cut()
				f.await(func() error {
					_, list, err := f.ask("/reverse_proxy/upstreams")
					if err == nil && strings.Contains(list, fmt.Sprintf(`"address":"%s"`, b.Addr())) {
						err = fmt.Errorf("Caddy still lists %s: %s", b.Addr(), list)
					}
					return err
				})
				b.Stop()
				f.servers = slices.Clone(all)
				f.startServer(i, b.Port)
				all[i] = f.servers[i]
				f.reload()
			}
			c.disperse()
			runs, _ := f.appRuns()
			t.Logf("%s: %s, %d runs of the app", policy, c, runs)
			if c.lost == 0 && runs == c.visits+1 {
				t.Errorf("nobody noticed: %s", c)
			}
		})
	}
}
