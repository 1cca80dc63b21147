// This file tests what operators can ask and say, at the admin API of a running Caddy.

package caddybokeh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable/printabletest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// administered is a site whose Caddy has an admin API.
type administered struct {
	*site
	api  string // how the config names it
	base string
	http *http.Client
}

// administer runs Caddy with one site and an admin API on a unix socket.
func administer(t *testing.T, handlers string) *administered {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin") // a unix socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	a := &administered{site: newSite(t, storageDir(t)), api: "unix/" + socket, base: "http://caddy"}
	a.config = strings.Replace(a.config, "admin off", "admin "+a.api, 1)
	a.http = &http.Client{Timeout: hangs, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	a.start(handlers)
	return a
}

// ask sends a request to the API and returns the status and the body of the answer.
func (a *administered) ask(method, path, body string) (int, string) {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), method, a.base+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	res, err := a.http.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if got := res.Header.Get("Content-Type"); got != "application/json" {
		a.t.Errorf("%s %s: the answer is %s", method, path, got)
	}
	return res.StatusCode, string(text)
}

// want sends a request whose answer must have a status, and contain some text.
func (a *administered) want(status int, text, method, path, body string) string {
	a.t.Helper()
	got, answer := a.ask(method, path, body)
	if got != status || !strings.Contains(answer, text) {
		a.t.Errorf("%s %s: %d %s, want %d and %q", method, path, got, answer, status, text)
	}
	if got >= 400 && got != http.StatusGatewayTimeout {
		var e struct {
			Error string `json:"error"`
		}
		if err := json.Unmarshal([]byte(answer), &e); err != nil || e.Error == "" {
			a.t.Errorf("%s %s: no JSON error: %s", method, path, answer)
		}
	}
	return answer
}

// status returns what the API tells of an upstream.
func (a *administered) status(addr string) api.Upstream {
	a.t.Helper()
	var st api.Upstream
	answer := a.want(200, addr, "GET", "/bokeh/upstreams/"+addr, "")
	if err := json.Unmarshal([]byte(answer), &st); err != nil {
		a.t.Fatal(err)
	}
	return st
}

// settle lets the node of this process be up for so long that no browser comes back any more.
func settle() {
	thisNode = sync.OnceValue(func() *cluster.Cluster {
		conf := processConfig()
		conf.StartedAt = -time.Hour
		return cluster.New(context.Background(), conf)
	})
}

// shortLived are the lines that make sessions end soon.
const shortLived = "unused_session_lifetime 1s\n check_unused_sessions 1s\n"

func TestAdminDrains(t *testing.T) {
	a1, a2 := newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, "reverse_proxy "+a1.addr()+" "+a2.addr()+" {\n lb_policy bokeh {\n"+shortLived+"}\n}")
	_, w := a.visit()
	home := a1
	if w.server == a2.addr() {
		home = a2
	}
	st := a.status(home.addr())
	if st.State != api.StateReady || st.Total != 1 || st.Sessions.Connected != 1 || !st.Healthy || st.NumRequests != 1 || st.Oldest <= 0 || len(st.Nodes) != 1 {
		t.Errorf("before: %+v", st)
	}
	a.want(200, `"state":"draining"`, "PUT", "/bokeh/draining/"+home.addr(), `{"reason":"new version"}`)
	a.want(200, `"reason":"new version"`, "PUT", "/bokeh/draining/"+home.addr(), "")
	for range 10 {
		if _, w := a.visit(); w.server == home.addr() {
			t.Fatal("a new session went to the draining upstream")
		}
	}
	a.want(504, "it has 1 session", "GET", "/bokeh/upstreams/"+home.addr()+"?wait=100ms", "")
	w.Close()
	answer := a.want(200, `"state":"drained"`, "GET", "/bokeh/upstreams/"+home.addr()+"?wait=1m", "")
	if err := json.Unmarshal([]byte(answer), &st); err != nil || st.Total != 0 || st.EndedRecently != 1 || st.Drain.Since == nil || !st.Drain.Marked || st.Drain.Config {
		t.Errorf("drained: %s", answer)
	}
	a.want(200, `"state":"ready"`, "DELETE", "/bokeh/draining/"+home.addr(), "")
	a.want(200, `"state":"ready"`, "DELETE", "/bokeh/draining/"+home.addr(), "")
	a.want(409, "is not draining", "GET", "/bokeh/upstreams/"+home.addr()+"?wait=1m", "")
}

func TestAdminRefuses(t *testing.T) {
	b1, b2, configured := newBokeh(t, ""), newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, fmt.Sprintf("reverse_proxy %s %s %s {\n lb_policy bokeh {\n drain %s\n}\n}", b1.addr(), b2.addr(), configured.addr(), configured.addr()))
	draining := "/bokeh/draining/" + b1.addr()
	for _, c := range []struct {
		status             int
		text, method, path string
		body               string
	}{
		{405, "GET is", "POST", "/bokeh/upstreams", ""},
		{405, "GET is", "DELETE", "/bokeh/upstreams/" + b1.addr(), ""},
		{405, "PUT or DELETE", "GET", draining, ""},
		{405, "PUT or DELETE", "POST", draining, ""},
		{405, "GET is", "PUT", "/bokeh/nodes", ""},
		{405, "DELETE is", "PUT", "/bokeh/nodes/x", ""},
		{404, "known are: 127.0.0.1:", "GET", "/bokeh/upstreams/127.0.0.1:1", ""},
		{404, "known are: ", "PUT", "/bokeh/draining/127.0.0.1:1", ""},
		{404, "known are: ", "DELETE", "/bokeh/draining/127.0.0.1:1", ""},
		{404, "nothing is named", "PUT", "/bokeh/draining/", ""},
		{404, "no other node", "DELETE", "/bokeh/nodes/x", ""},
		{400, "malformed body", "PUT", draining, "{"},
		{400, "malformed body", "PUT", draining, `"a"`},
		{400, "more than one value", "PUT", draining, `{} {}`},
		{400, `unknown field \"raeson\"`, "PUT", draining, `{"raeson":"x"}`},
		{400, "it has at most 1000", "PUT", draining, `{"reason":"` + strings.Repeat("x", 1001) + `"}`},
		{400, "names no upstream: it has at most 320", "PUT", "/bokeh/draining/" + strings.Repeat("x", 400) + ":80?force=true", ""},
		{400, "malformed force", "DELETE", "/bokeh/nodes/x?force=yes", ""},
		{413, "larger than 65536", "PUT", draining, `{"reason":"` + strings.Repeat("x", 70_000) + `"}`},
		{413, "larger than 65536", "PUT", draining, strings.Repeat(" ", 70_000)},
		{400, "malformed force", "PUT", draining + "?force=yes", ""},
		{400, `unknown parameter \"forced\"`, "PUT", draining + "?forced=true", ""},
		{400, "malformed query", "PUT", draining + "?force=%zz", ""},
		{400, "malformed wait", "GET", "/bokeh/upstreams/" + b1.addr() + "?wait=10", ""},
		{400, "malformed wait", "GET", "/bokeh/upstreams/" + b1.addr() + "?wait=-1s", ""},
		{400, "malformed wait", "GET", "/bokeh/upstreams/" + b1.addr() + "?wait=", ""},
		{400, "malformed wait", "GET", "/bokeh/node?wait=soon", ""},
		{405, "GET is", "DELETE", "/bokeh/node", ""},
		{400, "malformed grace_period", "PUT", draining, `{"grace_period":"-1s"}`},
		{400, "malformed span", "PUT", draining, `{"span":"0s"}`},
		{400, "up to 8760h", "PUT", draining, `{"span":"8761h"}`},
		{400, "to 8760h", "PUT", draining, `{"grace_period":"106751d"}`},
		{400, "array does not belong at", "PUT", draining, "[]"},
		{400, `number does not belong at \"reason\"`, "PUT", draining, `{"reason":1}`},
		{404, "there is nothing at /bokeh/upstream;", "GET", "/bokeh/upstream", ""},
		{404, "there is nothing at /bokeh/draining;", "PUT", "/bokeh/draining", ""},
		{404, "there is nothing at /bokeh/;", "GET", "/bokeh/", ""},
		{400, "malformed body", "PUT", draining, `{"grace_period":"soon"}`},
		{400, "5 is no duration", "PUT", draining, `{"grace_period":5}`},
		{400, "3600 is no duration", "PUT", draining, `{"span":3600}`},
		{400, "no address", "PUT", "/bokeh/draining/a@b:80?force=true", ""},
		{400, "no address", "PUT", "/bokeh/draining/unix%2F%2Frun%2F%ff?force=true", ""},
		{400, "no grace_period", "DELETE", draining, `{"grace_period":"1h"}`},
		{409, "config", "DELETE", "/bokeh/draining/" + configured.addr(), ""},
	} {
		a.want(c.status, c.text, c.method, c.path, c.body)
	}
	for _, b := range []*bokehServer{b1, b2} {
		if st := a.status(b.addr()); st.State != api.StateReady {
			t.Errorf("after what was refused %s is %s", b.addr(), st.State)
		}
	}
	if st := a.status(configured.addr()); st.State == api.StateReady || st.Drain == nil || !st.Drain.Config || st.Drain.Marked ||
		st.Drain.Since == nil || time.Since(*st.Drain.Since) > time.Minute {
		t.Errorf("drained by config: %+v", st)
	}
	a.want(200, "draining", "PUT", draining, "")
	a.want(409, "last upstream", "PUT", "/bokeh/draining/"+b2.addr(), "")
	a.want(200, "draining", "PUT", "/bokeh/draining/"+b2.addr()+"?force=true", "")
	a.want(200, "draining", "PUT", "/bokeh/draining/127.0.0.1:1?force=true", "")
	a.want(200, "127.0.0.1:1", "GET", "/bokeh/upstreams", "")
	a.want(200, `"self":true`, "GET", "/bokeh/nodes", "")
}

// A proxy in the answers of another one has upstreams of its own.
func TestUpstreamsOfTheInnerProxy(t *testing.T) {
	outer, inner := newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, fmt.Sprintf("reverse_proxy %s {\n handle_response {\n reverse_proxy %s {\n lb_policy bokeh\n}\n}\n}", outer.addr(), inner.addr()))
	if answer := a.want(200, inner.addr(), "GET", "/bokeh/upstreams", ""); strings.Contains(answer, outer.addr()) {
		t.Errorf("the outer proxy's upstream is told of: %s", answer)
	}
	a.want(409, "last upstream", "PUT", "/bokeh/draining/"+inner.addr(), "")
}

// What keeps the last living upstream in service is known before anybody visits, and for as long as nothing has
// shown otherwise.
func TestLastLivingUpstreamIsKept(t *testing.T) {
	b := newBokeh(t, "")
	dead := newBokeh(t, "")
	dead.stop()
	handlers := fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh\n%%s}", b.addr(), dead.addr())
	checked := fmt.Sprintf(handlers, "health_uri /app\n health_interval 100ms\n")
	a := administer(t, checked)
	refused := func(when string) {
		t.Helper()
		soon(t, when+" the last living upstream is known", func() bool { st := a.status(dead.addr()); return !st.Healthy || st.Unreachable })
		a.want(409, "last upstream", "PUT", "/bokeh/draining/"+b.addr(), "")
	}
	refused("after the start")
	a.reload(checked + "\nheader X-Reloaded yes")
	refused("after a reload")
	a.reload(fmt.Sprintf(handlers, "lb_try_duration 1s\n"))
	for range 3 { // one of three visits new sessions to it, unless it is known
		a.visit()
	}
	u := thisLedger().Hold(dead.addr())
	defer thisLedger().Release(u)
	if !u.IsFailing(thisLedger().Now()) {
		t.Fatal("nobody was sent to the dead upstream")
	}
	u.Dialed(0, thisLedger().Now()-time.Hour, time.Second, syscall.ECONNREFUSED)
	refused("an hour after it refused a connection")
	newBokeh(t, dead.addr())
	a.want(200, `"state":"draining"`, "PUT", "/bokeh/draining/"+b.addr(), "") // nobody has visited since it came back
}

// The mark outlives reloads, also one that fails, and a restart.
func TestMarkOutlivesConfigs(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	handlers := fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh\n%%s}", b1.addr(), b2.addr())
	a := administer(t, fmt.Sprintf(handlers, ""))
	a.want(200, "draining", "PUT", "/bokeh/draining/"+b1.addr(), "")
	check := func(when string) {
		t.Helper()
		for range 5 {
			if _, w := a.visit(); w.server == b1.addr() {
				t.Errorf("%s: a new session went to the draining upstream", when)
			}
		}
		if st := a.status(b1.addr()); st.State != api.StateDraining {
			t.Errorf("%s: it is %s", when, st.State)
		}
	}
	a.reload(fmt.Sprintf(handlers, "lb_try_duration 1s\n"))
	check("after a reload")
	if err := a.load(fmt.Sprintf(handlers, "") + "\nreverse_proxy x:1 {\n lb_policy bokeh {\n secret_key {env.NONE}\n}\n}"); err == nil {
		t.Fatal("the config was loaded")
	}
	check("after a reload that failed")
	// As in a new process.
	forget(t)
	a.reload(fmt.Sprintf(handlers, ""))
	check("after a restart")
}

// A node is empty when it holds no websocket, whatever waits for one.
func TestNodeIsEmpty(t *testing.T) {
	b := newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")
	a.want(200, `"self":true`, "GET", "/bokeh/node?wait=1m", "")
	_, w := a.visit()
	a.get("/app")
	a.want(504, `"connected":1`, "GET", "/bokeh/node?wait=50ms", "")
	a.want(200, `"connected":1`, "GET", "/bokeh/node", "")
	w.Close()
	a.want(200, `"connected":0`, "GET", "/bokeh/node?wait=1m", "")
}

// Whoever waits holds up neither a reload nor the end.
func TestWaitEnds(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	handlers := fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh\n}", b1.addr(), b2.addr())
	a := administer(t, handlers)
	a.want(200, "draining", "PUT", "/bokeh/draining/"+b1.addr(), "")
	for what, end := range map[string]func(){
		"a reload": func() { a.reload(handlers) },
		"the end":  func() { thisNode().Close() },
	} {
		done := make(chan string, 1)
		go func() {
			for t.Context().Err() == nil {
				// A request that comes in the moment of a reload may find a server that is closing.
				res, err := a.http.Get(a.base + "/bokeh/upstreams/" + b1.addr() + "?wait=1h")
				if err == nil {
					res.Body.Close()
					done <- res.Status
					return
				}
			}
		}()
		soon(t, what+" ends the waiting", func() bool {
			end() // once more where it came before the waiting
			select {
			case got := <-done:
				if !strings.HasPrefix(got, "503") {
					t.Errorf("%s: %s", what, got)
				}
				return true
			case <-time.After(100 * time.Millisecond):
				return false
			}
		})
	}
}

// Whoever goes does not go on waiting.
func TestWaitEndsWithItsClient(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh\n}", b1.addr(), b2.addr()))
	_, w := a.visit()
	a.want(200, "draining", "PUT", "/bokeh/draining/"+w.server, "")
	somebodyWaits := func() bool {
		var all bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(all.String(), "(*Cluster).Await")
	}
	for _, path := range []string{"/bokeh/upstreams/" + w.server, "/bokeh/node"} {
		ctx, leave := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path+"?wait=1h", nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if res, err := a.http.Do(r); err == nil {
				res.Body.Close()
				t.Errorf("%s: %s", path, res.Status)
			}
		}()
		soon(t, path+" is waited for", somebodyWaits)
		leave()
		soon(t, path+" is waited for no longer", func() bool { return !somebodyWaits() })
	}
}

// An upstream on a unix socket can be named as a path names it, in every spelling.
func TestUnixUpstreamInAPath(t *testing.T) {
	a := administer(t, "reverse_proxy unix//run/a.sock unix//run/b.sock {\n lb_policy bokeh\n}")
	a.want(200, `"address":"unix//run/a.sock"`, "GET", "/bokeh/upstreams/unix%2F%2Frun%2Fa.sock", "")
	a.want(200, `"address":"unix//run/a.sock"`, "GET", "/bokeh/upstreams/unix/run/a.sock", "")
	a.want(200, `"state":"draining"`, "PUT", "/bokeh/draining/unix/run/a.sock", "")
	var list []api.Upstream
	if err := json.NewDecoder(bytes.NewBufferString(a.want(200, "", "GET", "/bokeh/upstreams", ""))).Decode(&list); err != nil || len(list) != 2 {
		t.Errorf("listed: %v %v", list, err)
	}
	a.want(200, `"state":"ready"`, "DELETE", "/bokeh/draining/"+url.PathEscape("unix//run/a.sock"), "")
}

// BenchmarkStatus tells of 1,000 upstreams with 100,000 sessions.
func BenchmarkStatus(b *testing.B) {
	ups := testPool(1000)
	s := newTestSelection(ups)
	n := cluster.New(b.Context(), testConfig(s.table.Table, noStorage, zap.NewNop()))
	d := clustertest.NewVault().Door()
	b.Cleanup(d.Hang()) // it reads and writes nothing meanwhile
	n.Attach(policyOf{s}, d)
	for i := range 100_000 {
		u := s.members.get(ups[i%len(ups)].Dial).Upstream
		s.table.BeginPage(s.table.Key(fmt.Sprint(i)), u, sessions.Terms{Lifetime: time.Hour})
	}
	for b.Loop() {
		if got := len(n.Upstreams()); got != len(ups) {
			b.Fatal(got, " upstreams")
		}
	}
}

// Through remote admin, reading and writing can be granted apart, as the example does.
func TestRemoteAdmin(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	watcher, deployer := newClientCert(t), newClientCert(t)
	storage := storageDir(t)
	s := newSite(t, storage)
	// Caddy keeps its own certificate there whatever the config says; one of yesterday is signed by another root.
	before := caddy.DefaultStorage.Path
	caddy.DefaultStorage.Path = storage
	t.Cleanup(func() { caddy.DefaultStorage.Path = before })
	remote := freeAddr(t)
	s.config = strings.Replace(s.config, "admin off", "admin "+freeAddr(t)+"\n\tskip_install_trust", 1)
	cfg, err := adapt(strings.Replace(fmt.Sprintf(s.config, fmt.Sprintf("reverse_proxy %s %s {\n lb_policy bokeh\n}", b1.addr(), b2.addr())), "ADDR", s.addr, 1))
	if err != nil {
		t.Fatal(err)
	}
	cfg = mergeJSON(t, cfg, remoteAdminExample(t, map[string]string{
		`":2021"`: strconv.Quote(remote),
		"<the base64 DER of the certificate of whoever watches>": base64.StdEncoding.EncodeToString(watcher.Certificate[0]),
		"<the base64 DER of the certificate of whoever deploys>": base64.StdEncoding.EncodeToString(deployer.Certificate[0]),
	}))
	if err := caddy.Load(cfg, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })

	// Clients trust the root that docs/draining.md names.
	roots := x509.NewCertPool()
	soon(t, "the root is in the storage", func() bool {
		root, err := os.ReadFile(filepath.Join(storage, "pki", "authorities", "local", "root.crt"))
		return err == nil && roots.AppendCertsFromPEM(root)
	})
	as := func(cert tls.Certificate) *administered {
		return &administered{site: s, base: "https://caddy.example.com:2021", http: &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", remote)
			},
		}}}
	}
	watch, deploy := as(watcher), as(deployer)
	soon(t, "the remote API has a certificate", func() bool {
		res, err := watch.http.Get(watch.base + "/bokeh/upstreams")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	upstream, draining := "/bokeh/upstreams/"+b1.addr(), "/bokeh/draining/"+b1.addr()
	watch.want(200, `"state":"ready"`, "GET", upstream, "")
	watch.want(200, `"self":true`, "GET", "/bokeh/nodes", "")
	watch.want(403, "", "PUT", draining, "")
	watch.want(403, "", "DELETE", "/bokeh/nodes/x", "")
	watch.want(403, "", "GET", "/config/", "")
	deploy.want(200, `"marked":true`, "PUT", draining, `{"reason":"new version"}`)
	deploy.want(504, `"reason":"new version"`, "GET", upstream+"?wait=100ms", "")
	watch.want(200, `"marked":true`, "GET", upstream, "")
	deploy.want(200, `"state":"ready"`, "DELETE", draining, "")
	deploy.want(403, "", "GET", "/bokeh/nodes", "")
	deploy.want(403, "", "GET", "/config/", "")
	if res, err := as(newClientCert(t)).http.Get(watch.base + upstream); err == nil {
		res.Body.Close()
		t.Errorf("a certificate that the config does not name is answered with %s", res.Status)
	}
}

// remoteAdminExample is the file in examples/ with what a user has to put in.
func remoteAdminExample(t *testing.T, values map[string]string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("examples", "remote-admin.json"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for place, value := range values {
		if !strings.Contains(text, place) {
			t.Fatalf("the example has no %s", place)
		}
		text = strings.ReplaceAll(text, place, value)
	}
	return []byte(text)
}

// mergeJSON adds one config to another, as jq does with '*'.
func mergeJSON(t *testing.T, into, add []byte) []byte {
	t.Helper()
	var a, b map[string]any
	if err := errors.Join(json.Unmarshal(into, &a), json.Unmarshal(add, &b)); err != nil {
		t.Fatal(err)
	}
	var merge func(a, b map[string]any)
	merge = func(a, b map[string]any) {
		for k, v := range b {
			inner, isMap := v.(map[string]any)
			if old, both := a[k].(map[string]any); isMap && both {
				merge(old, inner)
			} else {
				a[k] = v
			}
		}
	}
	merge(a, b)
	merged, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return merged
}

// newClientCert is a certificate that signs itself, which is what remote admin knows clients by.
func newClientCert(t *testing.T) tls.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// What a person writes is refused if it is not printable; what is in the storage all the same is shown.
func TestHostileReason(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b1.addr()+" "+b2.addr()+" {\n lb_policy bokeh\n}")
	body := func(reason string) string {
		text, _ := json.Marshal(drainBody{Reason: reason})
		return string(text)
	}
	for _, c := range "\n\t\r\x1b\x7f\u009b\u202e\u2028\u200f" {
		a.want(400, "steer a terminal", "PUT", "/bokeh/draining/"+b1.addr(), body("x"+string(c)))
		a.want(400, "steer a terminal", "DELETE", "/bokeh/draining/"+b1.addr(), body("x"+string(c)))
		printabletest.Check(t, "an error", a.want(400, "no address", "PUT", "/bokeh/draining/"+url.PathEscape("x"+string(c)+":1")+"?force=true", ""))
	}
	a.want(400, "the reason has 1001 bytes", "PUT", "/bokeh/draining/"+b1.addr(), body(strings.Repeat("x", 1001)))
	a.begin("drain", b1.addr(), "--reason", "x\x1b[2J").end(1, `malformed reason \"x\\x1b[2J\"`)
	if st := a.status(b1.addr()); st.State != api.StateReady {
		t.Errorf("after what was refused it is %s", st.State)
	}
	a.want(200, "neue Version", "PUT", "/bokeh/draining/"+b1.addr(), body(strings.Repeat("x", 1000-13)+" neue Version"))

	shared := sharedName(b2.addr())
	evil, err := json.Marshal(map[string]any{
		"id": "1", "said": 1, "upstream": shared, "state": printabletest.Hostile, "since": time.Now(), "by": printabletest.Hostile,
		"reason": printabletest.Hostile, "written": time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := runningStorage().Store(t.Context(), clustertest.DrainKey(shared), evil); err != nil {
		t.Fatal(err)
	}
	soon(t, "read what is in the storage", func() bool { return a.status(b2.addr()).Drain != nil })
	if st := a.status(b2.addr()); st.Drain.Reason != strings.ToValidUTF8(printabletest.Hostile, "\ufffd\ufffd") {
		t.Errorf("the reason is %q", st.Drain.Reason)
	}
	printabletest.Check(t, "the answer", a.want(200, "title", "GET", "/bokeh/upstreams", ""))
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"undrain", b2.addr()}} {
		c := a.begin(args...)
		c.end(0, b2.addr())
		printabletest.Check(t, args[0], c.output())
	}
}

// An operator's reason is as long as all nodes read it.
func TestLongReason(t *testing.T) {
	long, fits := strings.Repeat("x", 1001), strings.Repeat("x", 1000)
	if _, err := (drainBody{Reason: long}).request(http.MethodPut, ""); err == nil || !strings.Contains(err.Error(), "at most 1000") {
		t.Error(err)
	}
	if _, err := (drainBody{Reason: fits}).request(http.MethodPut, ""); err != nil {
		t.Error(err)
	}
}
