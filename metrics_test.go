// This file tests the metrics as Prometheus gets them from a running Caddy.

package caddybokeh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
)

// metrics returns the lines about the policy that Prometheus gets.
func (a *administered) metrics() string {
	a.t.Helper()
	res, err := a.http.Get(a.base + "/metrics")
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	var ours strings.Builder
	for line := range strings.Lines(string(all)) {
		if strings.HasPrefix(line, "caddy_bokeh_") {
			ours.WriteString(line)
		}
	}
	return ours.String()
}

func (a *administered) wantMetrics(when string, lines ...string) {
	a.t.Helper()
	got := a.metrics()
	for _, line := range lines {
		if !strings.Contains(got, line+"\n") {
			a.t.Errorf("%s: no line %q in\n%s", when, line, got)
		}
	}
}

func TestMetrics(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	other := newBokeh(t, "")
	handlers := fmt.Sprintf("handle /other* {\n reverse_proxy %s {\n lb_policy bokeh\n}\n}\n reverse_proxy %%s {\n lb_policy bokeh\n stream_close_delay 1h\n}", other.addr())
	a := administer(t, fmt.Sprintf(handlers, b1.addr()+" "+b2.addr()))
	_, w := a.visit()
	a.get("/static/js/bokeh.js")
	of := func(name, labels string) string {
		return "caddy_bokeh_" + name + `{` + labels + `upstream="` + w.server + `"`
	}
	a.wantMetrics("with a session",
		of("sessions", `state="connected",`)+"} 1",
		of("sessions", `state="waiting",`)+"} 0",
		of("upstream_draining", "")+"} 0",
		of("upstream_failing", "")+"} 0",
		of("selections_total", `decision="new",`)+"} 1",
		of("selections_total", `decision="bound",`)+"} 1",
		of("pages_without_socket_total", "")+"} 0",
		of("reply_seconds_count", "")+"} 1",
		"caddy_bokeh_keys_agree 1",
		`caddy_bokeh_unknown_stamps_total{request="socket"} 0`,
		`caddy_bokeh_storage_errors_total{operation="store"} 0`,
	)
	if !strings.Contains(a.metrics(), of("upstream_busy_ratio", "")+"} ") {
		t.Error("there is no word of how busy the upstream was")
	}
	if strings.Contains(a.metrics(), "drain_start_time") {
		t.Error("there is a start time though nothing drains")
	}
	a.want(200, "draining", "PUT", "/bokeh/draining/"+w.server, "")
	a.want(200, `"marked":true`, "PUT", "/bokeh/draining/"+b1.addr()+"?force=true", "")
	a.want(200, `"marked":true`, "PUT", "/bokeh/draining/"+b2.addr()+"?force=true", "")
	if p := a.get("/app"); p.status != 503 {
		t.Fatal("all drain, and a page is answered with ", p.status)
	}
	soon(t, "counted", func() bool {
		return strings.Contains(a.metrics(), `caddy_bokeh_no_upstream_total{reason="draining"} 1`)
	})
	a.wantMetrics("draining", of("upstream_draining", "")+"} 1", of("upstream_drained", "")+"} 0")
	if !strings.Contains(a.metrics(), of("upstream_drain_start_time_seconds", "")+"} 1.") {
		t.Errorf("no start time in\n%s", a.metrics())
	}
	// A reload changes no count, and what is in no pool is told of while it has sessions or a mark.
	a.want(200, "ready", "DELETE", "/bokeh/draining/"+b1.addr(), "")
	a.want(200, "ready", "DELETE", "/bokeh/draining/"+b2.addr(), "")
	a.reload(fmt.Sprintf(handlers, other.addr()))
	a.wantMetrics("after a reload", of("sessions", `state="connected",`)+"} 1", of("selections_total", `decision="new",`)+"} 1")
	for _, b := range []*bokehServer{b1, b2} {
		if b.addr() != w.server && strings.Contains(a.metrics(), b.addr()) {
			t.Error("an upstream is told of that nobody knows any more")
		}
	}
}

// A label steers no terminal, and no two upstreams have the same.
func TestLabels(t *testing.T) {
	names := []string{"app1:5006", "bücher:80", "\x1b]0;owned\a", `\x1b]0;owned\a`, `"\x1b]0;owned\a"`, "\u009b2J", "a\u202e:80", "\xff", `"\xff"`, `"`, ""}
	seen := make(map[string]string)
	for _, name := range names {
		label := labelOf(name)
		if other, twice := seen[label]; twice || printable.Text(label) != label {
			t.Errorf("the label of %q is %q, that of %q too: %v", name, label, other, twice)
		}
		seen[label] = name
	}
	if labelOf("bücher:80") != "bücher:80" {
		t.Error("the label of a name that is text is another one")
	}
}

// Nobody drains an upstream whose name would steer a terminal.
func TestDrainOfAnEscapeSequence(t *testing.T) {
	l, name := newLedger(), "\x1b]0;owned\a\u009b2J"
	n := cluster.New(context.Background(), testConfig(l.Table, nil, nil))
	l.Hold(name)
	for _, force := range []bool{false, true} {
		if _, err := drain(t.Context(), n, name, record.Request{State: api.StateDraining, Force: force}); err == nil {
			t.Errorf("it is written, by force: %v", force)
		}
	}
}

// A client that makes up an address which is no text does not end the metrics.
func TestMetricsOfStrangeNames(t *testing.T) {
	l := newLedger()
	n := cluster.New(context.Background(), testConfig(l.Table, noStorage, zap.NewNop()))
	l.Hold("unix//run/\xff.sock")
	l.Hold("unix//run/\xfe.sock")
	registry := prometheus.NewPedanticRegistry()
	if err := registerOnce(registry, metrics{n, l}); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Gather(); err != nil {
		t.Error(err)
	}
}

// What the metrics count of sessions that move, and of pages whose socket never comes.
func TestMetricsOfTroubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startCaddy(t, clustertest.NewVault())
		_ = a.visitAt(u0) // and its socket never comes
		token := a.visitAt(u0)
		_, hangUp := a.socket(token)
		pass(time.Minute)
		r := newSocket(a.s, token)
		_, _ = r.choose(a.pool)
		r.refuse()
		for range 3 { // retries count once
			if _, why := r.choose(a.pool); why != "moved" {
				t.Errorf("after a refusal the session is %s", why)
			}
		}
		r.end()
		hangUp()
		a.door.Fail(errors.New("disk full"))
		pass(5 * time.Second)
		u := a.s.members.get(u0)
		if got := u.History.Moved[movedUnreachable].Load(); got != 1 {
			t.Errorf("%d sessions are counted as moved", got)
		}
		if got := u.History.Silent.Load(); got < 1 {
			t.Errorf("%d pages are counted without a socket", got)
		}
		if a.StorageErrors()["list"].Load() == 0 {
			t.Error("no storage error is counted")
		}
		registry := prometheus.NewPedanticRegistry()
		for range 2 {
			if err := registerOnce(registry, metrics{a.Cluster, a.s.table}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := registry.Gather(); err != nil {
			t.Error(err)
		}
	})
}
