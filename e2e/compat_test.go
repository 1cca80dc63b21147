// This file tests a Caddy of the version before and one of today beside each other.

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// A Caddy of the version before and one of today share a storage. Each finds the sessions of the other, and what is said to one holds at
// the other: drains, and that they are taken back.
func TestVersionBefore(t *testing.T) {
	t.Parallel()
	need(t)
	commit, err := os.ReadFile(filepath.Join(kit.root, "testdata", "records", "commit"))
	if err != nil {
		t.Fatal(err)
	}
	program, err := stack.BuildCaddyOf(t.Context(), kit.root, strings.TrimSpace(string(commit)))
	if _, missing := errors.AsType[*stack.NoHistoryError](err); missing {
		lacks(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := plan{policy: "bokeh", origins: []string{"*"}, global: "\tstorage file_system " + t.TempDir()}
	p.keepUnused(stack.Stretch(3 * time.Second))
	now := start(t, p)
	before := now.anotherOf(program)
	both := []*fleet{now, before}

	// A session begun through one is found by the other.
	for range 4 {
		now.enter().through(before).leave()
		before.enter().through(now).leave()
	}
	now.wantRuns(8)

	// Each has a session at a server that drains as the other is told.
	ours := now.enter().through(now)
	theirs := before.enter().through(before)
	for theirs.server == ours.server {
		theirs.leave()
		theirs = before.enter().through(before)
	}
	now.say(http.MethodPut, theirs.server, `{"reason": "said to this one"}`)
	before.say(http.MethodPut, ours.server, `{"reason": "said to that one"}`)
	for _, f := range both {
		f.awaitDrain(theirs.server, "draining", "said to this one")
		f.awaitDrain(ours.server, "draining", "said to that one")
		for range 3 {
			v := f.enter()
			v.through(f).leave()
			if v.server == ours.server || v.server == theirs.server {
				t.Error("a new visit went to a draining server")
			}
		}
	}

	// What one waits for is the session of the other, and nothing else; so both are up.
	now.awaitOnlyWait(theirs.server, "it has 1 session")
	before.awaitOnlyWait(ours.server, "it has 1 session")
	for _, f := range both {
		f.awaitBothUp()
	}
	ours.leave()
	theirs.leave()
	for _, f := range both {
		f.awaitDrain(theirs.server, "drained", "said to this one")
		f.awaitDrain(ours.server, "drained", "said to that one")
	}

	// Either takes back what was said to the other.
	before.say(http.MethodDelete, theirs.server, "")
	now.say(http.MethodDelete, ours.server, "")
	for _, f := range both {
		f.awaitDrain(theirs.server, "ready", "")
		f.awaitDrain(ours.server, "ready", "")
	}
	for _, f := range []*fleet{before, now} { // where a drain was taken back a moment ago, new visits come a moment later
		came := map[string]bool{}
		f.await(func() error {
			v := f.enter()
			v.through(f).leave()
			if came[v.server] = true; !came[ours.server] || !came[theirs.server] {
				return fmt.Errorf("new visits went to %v", came)
			}
			return nil
		})
	}
}

// visitor is somebody who visits without a browser, and whose page and websocket may come through two Caddys.
type visitor struct {
	f      *fleet
	token  string
	server string // by its name
	socket io.ReadWriteCloser
}

// enter gets a page.
func (f *fleet) enter() *visitor {
	f.t.Helper()
	_, before := f.appRuns()
	page, _ := f.get(f.plan.page)
	token := regexp.MustCompile(`"token":"([^"]+)"`).FindStringSubmatch(page)
	if token == nil {
		f.t.Fatal("the page has no token: ", tail(page, 10))
	}
	keepToken(token[1])
	v := &visitor{f: f, token: token[1]}
	_, after := f.appRuns()
	for server, runs := range after {
		if runs > before[server] {
			v.server = server
		}
	}
	return v
}

// through opens the page's websocket through a Caddy. It must find the page's session: elsewhere the app runs once more.
func (v *visitor) through(f *fleet) *visitor {
	f.t.Helper()
	before, _ := f.appRuns()
	r, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.url(f.plan.page+"/ws"), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for name, value := range socketHeader("bokeh, " + v.token) {
		r.Header.Set(name, value)
	}
	r.Header.Set("Origin", "http://"+f.host())
	res, err := http.DefaultTransport.RoundTrip(r) //nolint:bodyclose // it is the websocket, which leave closes
	if err != nil {
		f.t.Fatal(err)
	}
	socket, open := res.Body.(io.ReadWriteCloser)
	if !open || res.StatusCode != http.StatusSwitchingProtocols {
		f.t.Fatalf("the websocket is answered with %d", res.StatusCode)
	}
	v.socket = socket
	f.t.Cleanup(v.leave)
	// Bokeh says so when the session is there, whether it was before or not.
	lines := bufio.NewReader(socket)
	for said := ""; !strings.Contains(said, `"ACK"`); {
		b, err := lines.ReadByte()
		if err != nil {
			f.t.Fatalf("the websocket ends: %v; it said %q", err, said)
		}
		said += string(rune(b))
	}
	if after, by := f.appRuns(); after != before {
		f.t.Errorf("the websocket of a page at %s went elsewhere: %v", v.server, by)
	}
	return v
}

// leave closes the websocket.
func (v *visitor) leave() { v.socket.Close() }

// say sends the admin API what is to become of the named server.
func (f *fleet) say(method, server, body string) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), method, fmt.Sprintf("http://localhost:%d/bokeh/draining/%s", f.admin, f.server(server).Addr()), strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	if text, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
		f.t.Fatalf("%s of %s: %d %s", method, server, res.StatusCode, text)
	}
}

// awaitDrain waits until the named server is in a state, for a reason.
func (f *fleet) awaitDrain(server, state, reason string) {
	f.t.Helper()
	f.await(func() error {
		var st struct {
			State string
			Drain struct{ Reason string }
		}
		_, body, err := f.ask("/bokeh/upstreams/" + f.server(server).Addr())
		if err = errors.Join(err, json.Unmarshal([]byte(body), &st)); err == nil && (st.State != state || st.Drain.Reason != reason) {
			err = fmt.Errorf("%s is not %s for %q: %s", server, state, reason, body)
		}
		return err
	})
}

// awaitBothUp waits until this Caddy calls itself and the other one up.
func (f *fleet) awaitBothUp() {
	f.t.Helper()
	f.await(func() error {
		_, body, err := f.ask("/bokeh/nodes")
		if err == nil && strings.Count(body, `"state":"up"`) != 2 {
			err = fmt.Errorf("want two that are up: %s", body)
		}
		return err
	})
}
