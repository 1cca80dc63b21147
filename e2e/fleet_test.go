// This file holds a fleet: Bokeh servers behind Caddy.

package e2e

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// plan says what a fleet is made of. The zero plan is three stock servers and lb_policy bokeh.
type plan struct {
	policy    string        // after lb_policy
	quick     bool          // the servers drop unused sessions soon, and the policy knows
	lifetime  time.Duration // of them, if it is not Bokeh's default
	proxy     string        // more lines in reverse_proxy
	directive bool          // bokeh_proxy, with the options of the policy in its block
	scheme    string        // of the site
	site      string        // more lines in the site
	global    string        // more global options
	env       []string      // of Caddy
	size      int           // how many servers, if not three
	needs     string        // the file that lists what the servers need, if not what all do
	mixed     string        // the same for the last server, if it is another version
	program   []string      // instead of bokeh serve
	page      string        // path of the app
	ready     string        // path that a server answers when it is ready, if not that of a stock one
	enter     func(*tab)    // what a visitor does before the app is there
	serve     []string      // more arguments of the server
	serveEnv  []string
	origins   []string // more origins that may open websockets
	keepAlive bool     // of websockets over a reload
}

// fleet is Bokeh servers behind Caddy.
type fleet struct {
	t       *testing.T
	plan    plan
	python  stack.Python // of the servers
	last    stack.Python // of the last of them
	servers []*stack.Bokeh
	program string // of Caddy
	caddy   *stack.Caddy
	home    string
	runs    string // the file that the apps write to
	port    int    // of the site
	admin   int
	front   *front   // what the browser talks to
	others  []*fleet // with other Caddys before the same servers
}

func start(t *testing.T, p plan) *fleet {
	t.Helper()
	need(t)
	p.policy = cmp.Or(p.policy, "bokeh")
	p.scheme = cmp.Or(p.scheme, "http")
	p.page = cmp.Or(p.page, "/counter")
	python := kit.python
	if p.needs != "" {
		python = install(t, p.needs)
	}
	last := python
	if p.mixed != "" {
		last = install(t, p.mixed)
	}
	// On a quiet machine Bokeh's defaults hold, unless the plan says otherwise.
	if lifetime := min(stack.Stretch(quickLifetime), longestLifetime); p.lifetime == 0 && (p.quick || lifetime > bokehLifetime) {
		p.keepUnused(lifetime)
	}
	n := cmp.Or(p.size, 3)
	ports, err := stack.FreePorts(n + 2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := &fleet{t: t, plan: p, python: python, last: last, servers: make([]*stack.Bokeh, n), program: kit.caddy, home: dir, runs: filepath.Join(dir, "runs"), port: ports[n], admin: ports[n+1]}
	f.front = newFront(t, fmt.Sprint("127.0.0.1:", f.port))
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f.startServer(i, ports[i]) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	f.startCaddy()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("Caddy wrote:\n" + tail(f.caddy.Output(), 30))
		}
	})
	return f
}

// quickLifetime is how long servers that drop unused sessions soon keep one on a quiet machine. What takes them longer from a
// page to its websocket makes the app run again. However busy the machine is, it is less than drains are given.
const (
	quickLifetime   = 6 * time.Second
	bokehLifetime   = 15 * time.Second // by default
	longestLifetime = time.Minute
)

// quick are servers that drop unused sessions soon, and a policy that knows.
func quick(p plan) plan {
	p.quick = true
	return p
}

// keepUnused tells servers and policy how long unused sessions live.
func (p *plan) keepUnused(lifetime time.Duration) {
	const check = time.Second
	p.lifetime = lifetime
	// A server that has to share its core looks later than it was told to, and sees later that a socket is closed.
	atLast := stack.Stretch(2 * check)
	options := fmt.Sprintf("\n\t\t\tunused_session_lifetime %v\n\t\t\tcheck_unused_sessions %v", lifetime.Round(time.Millisecond), atLast.Round(time.Millisecond))
	head, rest, block := strings.Cut(p.policy, "{")
	switch {
	case !strings.HasPrefix(p.policy, "bokeh"):
	case block:
		p.policy = head + "{" + options + rest
	default:
		p.policy += " {" + options + "\n\t\t}"
	}
	milliseconds, checkMilliseconds := fmt.Sprint(lifetime.Milliseconds()), fmt.Sprint(check.Milliseconds())
	if p.serves() {
		p.serve = append(slices.Clone(p.serve), "--unused-session-lifetime", milliseconds, "--check-unused-sessions", checkMilliseconds)
	}
	p.serveEnv = append(slices.Clone(p.serveEnv), "UNUSED_SESSION_LIFETIME="+milliseconds, "CHECK_UNUSED_SESSIONS="+checkMilliseconds)
}

// serves says whether the servers are bokeh serve or panel serve, with their arguments.
func (p *plan) serves() bool { return len(p.program) == 0 || p.program[1] == "serve" }

// install returns a Python with what a file lists. Where there is none that is new enough for that, the test cannot run.
func install(t *testing.T, needs string) stack.Python {
	t.Helper()
	python, err := stack.NewPython(t.Context(), kit.root, needs)
	if _, tooOld := errors.AsType[*stack.NoPythonError](err); tooOld {
		lacks(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return python
}

func tail(s string, n int) string {
	lines := strings.Split(s, "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		lines[i] = l[:min(len(l), 300)]
	}
	return strings.Join(lines, "\n")
}

func (f *fleet) startServer(i, port int) {
	f.t.Helper()
	var args []string
	origins := append([]string{f.host()}, f.plan.origins...)
	if f.plan.serves() {
		for _, o := range origins {
			args = append(args, "--allow-websocket-origin", o)
		}
	}
	python := f.python
	if i == len(f.servers)-1 {
		python = f.last
	}
	b, err := python.StartBokeh(kit.root, stack.BokehConfig{
		Port: port, Program: f.plan.program, Ready: f.plan.ready,
		Args: append(args, f.plan.serve...),
		Env:  append([]string{"RUNS_FILE=" + f.runs, "ENDS_FILE=" + f.runs + ".ends", "ORIGINS=" + strings.Join(origins, " ")}, f.plan.serveEnv...),
	})
	if err != nil {
		f.t.Error(err)
		return
	}
	f.servers[i] = b
	f.t.Cleanup(b.Kill)
}

func (f *fleet) startCaddy() {
	f.t.Helper()
	c, err := stack.StartCaddy(stack.CaddyConfig{
		Program: f.program, Caddyfile: f.caddyfile(), Home: f.home, Env: f.plan.env,
		Admin: fmt.Sprint("localhost:", f.admin),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.caddy = c
	if err := c.Await(20*time.Second, f.reachable); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		c.Stop()
		keepOutput(c.Output())
	})
}

// reachable says whether Caddy takes connections. Its certificate comes a moment after its listener.
func (f *fleet) reachable() error {
	var c net.Conn
	var err error
	if f.plan.scheme == "https" {
		c, err = tls.Dial("tcp", f.front.to, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true})
	} else {
		c, err = net.Dial("tcp", f.front.to)
	}
	if err != nil {
		return err
	}
	return c.Close()
}

// another starts another Caddy in front of the same servers. The storage is the same if the plan says so.
func (f *fleet) another() *fleet {
	f.t.Helper()
	return f.anotherOf(f.program)
}

// anotherOf does the same with another program.
func (f *fleet) anotherOf(program string) *fleet {
	f.t.Helper()
	ports, err := stack.FreePorts(2)
	if err != nil {
		f.t.Fatal(err)
	}
	g := *f
	g.others, g.program = nil, program
	g.home, g.port, g.admin = f.t.TempDir(), ports[0], ports[1]
	g.front = newFront(f.t, fmt.Sprint("127.0.0.1:", g.port))
	g.startCaddy()
	f.others = append(f.others, &g)
	return &g
}

// restartCaddy ends Caddy and starts a new one with the same storage.
func (f *fleet) restartCaddy() {
	f.t.Helper()
	f.caddy.Stop()
	f.startCaddy()
}

// reload loads the config anew, with what has changed in the plan.
func (f *fleet) reload() {
	f.t.Helper()
	f.plan.site += "\n\theader X-Reloaded yes"
	if err := f.caddy.Reload(f.caddyfile()); err != nil {
		f.t.Fatal(err)
	}
}

// caddyfile is the shipped one with the site replaced, at DEBUG.
func (f *fleet) caddyfile() string {
	shipped, err := os.ReadFile(filepath.Join(kit.root, "testdata", "Caddyfile"))
	if err != nil {
		f.t.Fatal(err)
	}
	global, _, ok := strings.Cut(string(shipped), "\n# For a site")
	if !ok || !strings.Contains(global, "\tlog {\n") {
		f.t.Fatal("testdata/Caddyfile is not as expected")
	}
	global = strings.Replace(global, "\tlog {\n", fmt.Sprintf("\tadmin localhost:%d\n\tskip_install_trust\n\tauto_https disable_redirects\n%s\n\tlog {\n\t\tlevel DEBUG\n", f.admin, f.plan.global), 1)
	var addrs []string
	for _, b := range f.servers {
		addrs = append(addrs, b.Addr())
	}
	return fmt.Sprintf("%s\n%s://localhost:%d {\n\tbind 127.0.0.1\n\tlog\n%s\n\t%s\n}\n",
		global, f.plan.scheme, f.port, f.plan.site, f.plan.handler(strings.Join(addrs, " ")))
}

// handler is the directive that sends requests to the servers.
func (p plan) handler(addrs string) string {
	lines := p.proxy
	if p.keepAlive {
		lines += "\n\t\tstream_close_delay 1h"
	}
	if !p.directive {
		return fmt.Sprintf("reverse_proxy %s {\n\t\tlb_policy %s\n%s\n\t}", addrs, p.policy, lines)
	}
	options := strings.Trim(strings.TrimPrefix(p.policy, "bokeh"), " {}")
	return fmt.Sprintf("bokeh_proxy %s {\n%s\n%s\n\t}", addrs, options, lines)
}

// ask gets something from the admin API.
func (f *fleet) ask(path string) (status int, body string, err error) {
	res, err := http.Get(fmt.Sprintf("http://localhost:%d%s", f.admin, path))
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// host is the site as the browser names it.
func (f *fleet) host() string { return fmt.Sprint("localhost:", f.front.port()) }

func (f *fleet) url(path string) string { return f.plan.scheme + "://" + f.host() + path }

// appRuns returns how often the app ran, by server.
func (f *fleet) appRuns() (total int, by map[string]int) {
	f.t.Helper()
	return f.lines(f.runs)
}

// lines counts the lines of a file, in all and by what they say.
func (f *fleet) lines(path string) (total int, by map[string]int) {
	f.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	by = map[string]int{}
	for name := range strings.FieldsSeq(string(text)) {
		by[name]++
		total++
	}
	return total, by
}

func (f *fleet) wantRuns(want int) {
	f.t.Helper()
	if n, by := f.appRuns(); n != want {
		f.t.Errorf("the app ran %d times, want %d: %v", n, want, by)
	}
}

// server returns the server with the name that its app shows.
func (f *fleet) server(name string) *stack.Bokeh {
	for _, b := range f.servers {
		if fmt.Sprint(":", b.Port) == name {
			return b
		}
	}
	f.t.Fatalf("no server is named %q", name)
	return nil
}

// awaitLog waits until Caddy has written some text.
func (f *fleet) awaitLog(text string) {
	f.t.Helper()
	f.await(func() error {
		if !strings.Contains(f.caddy.Output(), text) {
			return fmt.Errorf("Caddy has not written %q", text)
		}
		return nil
	})
}

// awaitLogged waits until Caddy has logged so many requests of one kind, and checks what it says of each.
func (f *fleet) awaitLogged(want int, kind, each string) {
	f.t.Helper()
	var lines []string
	f.await(func() error {
		lines = nil
		for line := range strings.Lines(f.caddy.Output()) {
			if strings.Contains(line, "handled request") && strings.Contains(line, kind) {
				lines = append(lines, line)
			}
		}
		if len(lines) != want {
			return fmt.Errorf("Caddy has logged %d requests with %s, want %d", len(lines), kind, want)
		}
		return nil
	})
	for _, line := range lines {
		if !strings.Contains(line, each) {
			f.t.Errorf("not %s: %s", each, line)
		}
	}
}

func (f *fleet) await(so func() error) {
	f.t.Helper()
	if err := f.caddy.Await(patience+f.plan.lifetime, so); err != nil {
		f.t.Fatal(err)
	}
}
