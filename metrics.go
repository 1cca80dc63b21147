// This file holds the metrics, which Caddy serves to Prometheus: what this node has and has done.

package caddybokeh

import (
	"errors"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// metrics are read from the table when Prometheus asks. So no reload can make them drift, and what is
// told of an upstream ends when the upstream is forgotten.
type metrics struct {
	n *cluster.Cluster
	l *ledger
}

// registerOnce adds metrics to the registry of a config, where they are not there yet.
func registerOnce(r *prometheus.Registry, m prometheus.Collector) error {
	err := r.Register(m)
	if _, twice := errors.AsType[prometheus.AlreadyRegisteredError](err); twice {
		return nil
	}
	return err
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("caddy_bokeh_"+name, help, labels, nil)
}

var (
	descSessions = newDesc("sessions", "Live sessions by what they are doing: building (page requested, no byte of the answer yet),"+
		" waiting (page served, or its visitor gone, and no websocket yet), connected, unused (last websocket closed, the server still keeps the session).", "upstream", "state")
	descDraining = newDesc("upstream_draining", "Whether the upstream gets no new session.", "upstream")
	descDrained  = newDesc("upstream_drained", "Whether the upstream is draining and certainly empty, through all nodes.", "upstream")
	descStarted  = newDesc("upstream_drain_start_time_seconds", "When the upstream began to drain, by the clock of the node that was told; only while it drains.", "upstream")
	descFailing  = newDesc("upstream_failing", "Whether the upstream refused a connection, or failed to answer several page requests in a row, and has not been seen well since."+
		" New sessions go elsewhere, but for one at a time that tries it again after a growing pause.", "upstream")
	descSelected = newDesc("selections_total", "Upstreams chosen, by why: bound (the session is there), new (it begins there), moved (its own upstream is lost),"+
		" shared (any upstream answers this). Every attempt counts.", "upstream", "decision")
	descMoved = newDesc("sessions_moved_total", "Sessions that left the upstream, by why: unreachable (it refused a connection), unhealthy (health checks have"+
		" called it down for a minute), closed (its grace period is over), reassigned (it has left the pool, and another pool has its address by now).", "upstream", "reason")
	descHedged  = newDesc("hedged_requests_total", "Files that the upstream had not answered after hedge_after, and another one was asked for too, by outcome: won (the other one's answer was served), lost (it was not).", "upstream", "outcome")
	descNobody  = newDesc("no_upstream_total", "Requests for which no upstream could be chosen, by why: draining (all healthy ones are), full (all have max_sessions sessions), unavailable (all are unhealthy, or have their limit of requests), none (there is none).", "reason")
	descWaiting = newDesc("visits_waiting", "Visits that wait for a place because every upstream has max_sessions sessions.")
	descReplies = newDesc("reply_seconds", "How long the upstream took to answer what was said on its websockets, as a click, until its answer began; with the first answer, that a websocket is open.", "upstream")
	descBusy    = newDesc("upstream_busy_ratio", "The share of the last minute for which the upstream had something to do: a page to build, or something on a websocket to answer.", "upstream")
	descSilent  = newDesc("pages_without_socket_total", "Pages whose websocket never came.", "upstream")
	descStorage = newDesc("storage_errors_total", "Failures of Caddy's storage, by what was tried: load (also a record that is broken), list (also what lacks the report that this Caddy has stored), store, delete.", "operation")
	descKeys    = newDesc("keys_agree", "Whether this node can verify the stamps of all others that share its storage.")
	descUnknown = newDesc("unknown_stamps_total", "Requests that bring a stamp which no key of this node has signed, by what they are: page, socket."+
		" They come from a Caddy with another key, from before a key was replaced or lost, or from somebody who makes them up.", "request")
)

// Describe implements prometheus.Collector.
func (m metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descSessions, descDraining, descDrained, descStarted, descFailing, descSelected, descMoved, descHedged, descNobody, descWaiting, descSilent, descReplies, descBusy, descStorage, descKeys, descUnknown,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	now := m.l.Now()
	m.l.Each(func(u *sessions.Upstream) {
		label := labelOf(u.Name)
		for s, name := range stateNames {
			gauge(descSessions, float64(u.Count(s)), label, name)
		}
		gauge(descDraining, asFloat(u.Drain.On()), label)
		gauge(descDrained, asFloat(u.Drain.IsEmpty(now)), label)
		if since := u.Drain.Since(); !since.IsZero() {
			gauge(descStarted, float64(since.UnixMilli())/1e3, label)
		}
		gauge(descFailing, asFloat(u.Breaker.Tripped()), label)
		for d, n := range u.History.Selected {
			counter(descSelected, n.Load(), label, d)
		}
		for reason, n := range u.History.Moved {
			counter(descMoved, n.Load(), label, reason)
		}
		for outcome, n := range u.History.Hedged {
			counter(descHedged, n.Load(), label, outcome)
		}
		counter(descSilent, u.History.Silent.Load(), label)
		gauge(descBusy, u.History.Busy.Share(now), label)
		count, sum, within := u.History.Replies.Count()
		ch <- prometheus.MustNewConstHistogram(descReplies, count, sum, within, label)
	})
	for reason, n := range m.l.nobody {
		counter(descNobody, n.Load(), reason)
	}
	for operation, n := range m.n.StorageErrors() {
		counter(descStorage, n.Load(), operation)
	}
	for kind, n := range m.l.unknownStamps {
		counter(descUnknown, n.Load(), kind)
	}
	gauge(descWaiting, float64(m.l.Waiting.Len(now)))
	gauge(descKeys, asFloat(m.n.KeysAgree()))
}

// labelOf returns the label of an upstream: its name, or that in quotes where it would steer a terminal or is no text, which is a
// client's doing where an address depends on the request. So is one that begins with a quote, for no two may have the same label.
func labelOf(name string) string {
	if printable.Text(name) != name || strings.HasPrefix(name, `"`) {
		return strconv.QuoteToASCII(name)
	}
	return name
}

// stateNames are the states of sessions as metrics have them.
var stateNames = map[sessions.State]string{sessions.Building: "building", sessions.Waiting: "waiting", sessions.Connected: "connected", sessions.Unused: "unused"}

func asFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
