// This file tests the command line, each command in a process of its own, against a running Caddy.

package caddybokeh

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/caddyserver/certmagic"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
)

// asCaddy in the environment makes the test's program a Caddy with this module, see TestMain.
const asCaddy = "CADDY_BOKEH_TEST_AS_CADDY"

// command is a run of the command line.
type command struct {
	t   *testing.T
	cmd *exec.Cmd
	mu  sync.Mutex // guards out
	out bytes.Buffer
}

// Write takes what the command writes.
func (c *command) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *command) output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

// begin starts a command that talks to the site's admin API.
func (a *administered) begin(args ...string) *command {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 5*hangs)
	a.t.Cleanup(cancel)
	c := &command{t: a.t, cmd: exec.CommandContext(ctx, os.Args[0], append([]string{"bokeh", "--address", a.api}, args...)...)}
	c.cmd.Env = append(os.Environ(), asCaddy+"=1")
	c.cmd.Stdout, c.cmd.Stderr = c, c
	if err := c.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	return c
}

// end waits for the command, which must exit with a code and have written some text.
func (c *command) end(code int, text string) {
	c.t.Helper()
	err := c.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		c.t.Fatal(err)
	} else if got := c.cmd.ProcessState.ExitCode(); got != code || !strings.Contains(c.output(), text) {
		c.t.Errorf("%v: exit code %d %v, want %d and %q; it wrote:\n%s", c.cmd.Args[4:], got, exit, code, text, c.output())
	}
}

// says waits until the command has written some text.
func (c *command) says(text string) {
	c.t.Helper()
	soon(c.t, fmt.Sprintf("said %q by %v", text, c.cmd.Args[4:]), func() bool { return strings.Contains(c.output(), text) })
}

func TestCommands(t *testing.T) {
	b1, b2, configured := newBokeh(t, ""), newBokeh(t, ""), newBokeh(t, "")
	handlers := fmt.Sprintf("reverse_proxy %s %s %s {\n lb_policy bokeh {\n"+shortLived+"drain %s\n}\nstream_close_delay 1h\n}",
		b1.addr(), b2.addr(), configured.addr(), configured.addr())
	a := administer(t, handlers)
	_, w := a.visit()
	home := w.server

	a.begin("status").end(0, home)
	c := a.begin("status", "--json")
	c.end(0, "")
	var all []api.Upstream
	if err := json.Unmarshal([]byte(c.output()), &all); err != nil || len(all) != 3 {
		t.Errorf("%v: %s", err, c.output())
	}
	a.begin("status", "extra").end(1, "unknown command")
	a.begin("drain").end(1, "requires at least 1 arg")
	a.begin("drain", "127.0.0.1:1").end(1, "known are: 127.0.0.1:")
	a.begin("drain", "127.0.0.1:1").end(1, "--force")
	_, port, _ := strings.Cut(home, ":")
	a.begin("drain", "localhost:"+port).end(1, "is it "+home+"?")
	a.begin("drain", home, "--timeout", "3s").end(1, "--timeout needs --wait")
	a.begin("drain", home, "--wait", "--timeout", "3").end(1, "malformed --timeout")
	a.begin("drain", home, "--grace-period", "3").end(1, "malformed --grace-period")
	a.begin("undrain", configured.addr()).end(1, "drain line")
	if st := a.status(home); st.State != api.StateReady {
		t.Errorf("after what failed it is %s", st.State)
	}
	a.begin("drain", home, "127.0.0.1:1").end(1, "known are: 127.0.0.1:")
	if st := a.status(home); st.State != api.StateReady {
		t.Errorf("with a typo in another address it is %s", st.State)
	}
	a.begin("drain", home).end(0, home+" is draining, with 1 session")
	a.begin("drain", "--force", "127.0.0.1:1").end(0, "no Caddy has 127.0.0.1:1 in a pool")
	a.begin("undrain", "127.0.0.1:1").end(0, "127.0.0.1:1 is gone")
	a.begin("nonsense").end(1, "unknown command")
	a.begin("undrain", home).end(0, home+" is ready, with 1 session")
	a.begin("drain", home, "--wait", "--timeout", "100ms", "--reason", "new version").end(124, "the drain stays on; still there: 1 session at "+home)
	a.begin("status").end(0, "new version")
	a.begin("status").end(0, configured.addr()+": draining since 20")
	a.begin("status").end(0, " by the config\n")

	c = a.begin("drain", home, "--wait")
	c.says("the oldest of")
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.end(130, "the drain stays on")
	c = a.begin("drain", home, "--wait")
	c.says("the oldest of")
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.end(130, "the drain stays on")
	if st := a.status(home); st.State != api.StateDraining {
		t.Errorf("after an interrupted wait it is %s", st.State)
	}

	// The waiting outlives a reload, and ends when the session does.
	c = a.begin("drain", home, "--wait")
	c.says("1 session at " + home + ", the oldest of")
	a.reload(handlers)
	w.Close()
	c.end(0, "drained: ")
	a.begin("status").end(0, "drained")
	c = a.begin("drain", b1.addr(), b2.addr(), "--force", "--wait")
	c.end(0, "drained: ")
	a.begin("undrain", b1.addr(), b2.addr()).end(0, "is ready")

	// When the grace period is over, what is left is closed.
	_, w = a.visit()
	a.want(200, "draining", "PUT", "/bokeh/draining/"+w.server, `{"grace_period":"1h","span":"1s"}`)
	a.begin("status").end(0, "to be closed at")
	a.begin("drain", w.server, "--grace-period", "1ms", "--wait").end(0, "drained: ")
	a.begin("status").end(0, "closed since")
	a.begin("undrain", w.server).end(0, "is ready")

	// Somebody else takes it back.
	_, w = a.visit()
	c = a.begin("drain", w.server, "--wait")
	c.says("the oldest of")
	a.want(200, "ready", "DELETE", "/bokeh/draining/"+w.server, "")
	c.end(1, "somebody has taken it back")
	a.begin("drain", "127.0.0.1:1", "--force").end(0, "127.0.0.1:1 is ")
	c = a.begin("drain", "127.0.0.1:1", "--force", "--wait", "--timeout", "20s")
	c.says("127.0.0.1:1 is draining")
	a.want(200, "gone", "DELETE", "/bokeh/draining/127.0.0.1:1", "")
	c.end(1, "somebody has taken it back")

	a.begin("drain", "--force", configured.addr()).end(0, configured.addr()+" is ")
	a.begin("undrain", configured.addr()).end(1, "then take the mark back")
}

// Where upstreams are discovered, none is known before the first visit.
func TestStatusBeforeTheFirstVisit(t *testing.T) {
	b := newBokeh(t, "")
	host, port, _ := strings.Cut(b.addr(), ":")
	a := administer(t, "respond nothing")
	a.begin("status").end(1, "this Caddy has no bokeh_proxy, and no reverse_proxy with lb_policy bokeh")
	a.reload("reverse_proxy {\n dynamic a " + host + " " + port + "\n lb_policy bokeh\n}")
	a.begin("status").end(0, "known from the first visit on")
	a.begin("drain", b.addr()).end(1, "known from the first visit on")
	a.visit()
	a.begin("status").end(0, b.addr())
}

// The command finds the admin API by a config, as Caddy's own commands do, and says where it looked.
func TestCommandFindsCaddy(t *testing.T) {
	b := newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")
	config := t.TempDir() + "/Caddyfile"
	if err := os.WriteFile(config, []byte("{\n\tadmin "+a.api+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.begin("status", "--address", "", "--config", config).end(0, b.addr())
	nobody := freeAddr(t)
	a.begin("status", "--address", nobody).end(1, "no Caddy answers at "+nobody)
	a.begin("status", "--address", "unix/"+config+".sock").end(1, "--address or --config say where")
	a.begin("status", "--address", "http://"+nobody).end(1, "with no scheme")
	other := newBokeh(t, "")
	a.begin("status", "--address", other.addr()).end(1, "is not the admin API of a Caddy with this module")
	a.begin("status", "--address", "", "--config", config+"x").end(1, "no such file")
}

func TestCommandThatChecksTheStorage(t *testing.T) {
	b := newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")
	c := a.begin("storage-check")
	c.end(0, "storage: *certmagic.FileStorage")
	for _, text := range []string{"asked without a slash", "delete", thisNode().Name() + " on " + hostname(), "(this one)"} {
		if !strings.Contains(c.output(), text) {
			t.Errorf("%q is missing in %s", text, c.output())
		}
	}
	a.want(200, `"ok":true`, "POST", api.StorageCheckPath, "")
	a.want(405, "", "GET", api.StorageCheckPath, "")

	// Nothing can be stored where a file is in the place of the folder.
	dir := runningStorage().(*certmagic.FileStorage).Path
	check := filepath.Join(dir, filepath.FromSlash("caddy-bokeh/check/"))
	if err := errors.Join(os.RemoveAll(check), os.WriteFile(check, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	c = a.begin("storage-check")
	c.end(1, "FAILED")
	if !strings.Contains(c.output(), "so nothing can be drained") {
		t.Errorf("nobody is told what it means: %s", c.output())
	}

	a.reload("respond nothing")
	c = a.begin("storage-check")
	c.end(1, "this Caddy has no bokeh_proxy")
	if strings.Contains(c.output(), "(this one)") {
		t.Errorf("it is said to be in the storage: %s", c.output())
	}
}

// What is wrong with the storage is told where operators look, with what to do.
func TestStatusTellsOfTheStorage(t *testing.T) {
	b := newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")
	st := runningStorage()
	if err := st.Store(t.Context(), clustertest.NodeKey("feedfeed"), []byte("{bro")); err != nil {
		t.Fatal(err)
	}
	told := func() bool { return strings.Contains(a.want(200, "", "GET", "/bokeh/nodes", ""), "feedfeed") }
	soon(t, "told that a record is broken", told)
	c := a.begin("status")
	c.end(0, "a record that is broken: delete it): reading "+clustertest.NodeKey("feedfeed"))
	if !strings.Contains(c.output(), b.addr()) {
		t.Errorf("the table is missing: %s", c.output())
	}
	if err := st.Delete(t.Context(), clustertest.NodeKey("feedfeed")); err != nil {
		t.Fatal(err)
	}
	soon(t, "well again", func() bool { return !told() })
	c = a.begin("status")
	c.end(0, b.addr())
	if strings.Contains(c.output(), "the storage fails") {
		t.Errorf("with the record deleted: %s", c.output())
	}
}

// Who waits for a place is shown.
func TestStatusTellsOfTheLine(t *testing.T) {
	b := newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh {\n"+shortLived+"max_sessions 1\n}\n lb_try_duration 20s\n}")
	_, w := a.visit()
	waits := make(chan page)
	go func() { waits <- a.get("/app") }()
	soon(t, "a visit waits", func() bool { return thisLedger().Waiting.Len(thisLedger().Now()) == 1 })
	a.begin("status").end(0, "visits at this Caddy that wait for a place, for all servers have max_sessions sessions: 1")
	a.want(200, `"visits_waiting":1`, "GET", "/bokeh/node", "")
	w.Close()
	if p := <-waits; p.status != http.StatusOK {
		t.Errorf("who waited is answered %d", p.status)
	}
	if c := a.begin("status"); strings.Contains(c.output(), "wait for a place") {
		t.Errorf("nobody waits, and it says %s", c.output())
	}
}

// Whoever waits for a drain waits for a Caddy that is just restarting, and is told so.
func TestDrainWhileCaddyRestarts(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	handlers := fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh {\n"+shortLived+"}\n}", b1.addr(), b2.addr())
	a := administer(t, handlers)
	next := a.api + "2"
	drain := []string{"drain", b1.addr(), "--address", next}
	a.begin(drain...).end(1, "no Caddy answers")
	drain = append(drain, "--wait")
	c := a.begin(drain...)
	c.says("no Caddy answers")
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.end(130, "nothing was marked")
	c = a.begin(drain...)
	c.says("trying for 10s")
	a.config = strings.Replace(a.config, "admin "+a.api, "admin "+next, 1)
	a.reload(handlers)
	c.end(0, "drained: "+b1.addr())
}
