// This file holds the drains: what operators say of upstreams at the admin API, and what a config says.

package caddybokeh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
)

// serveDraining lets an upstream drain, or takes that back.
func (adminAPI) serveDraining(w http.ResponseWriter, r *http.Request) error {
	params := []string{"force"}
	if r.Method == http.MethodDelete {
		params = nil
	}
	if err := allow(r, params, http.MethodPut, http.MethodDelete); err != nil {
		return err
	}
	address, err := target(r, api.DrainingPath)
	if err != nil {
		return err
	}
	force, err := forced(r)
	if err != nil {
		return err
	}
	n := thisNode()
	var body drainBody
	if err := readBody(w, r, &body); err != nil {
		return err
	}
	said, err := body.request(r.Method, signature(n))
	if err != nil {
		return err
	}
	said.Force = force
	var st *api.Upstream
	if r.Method == http.MethodPut {
		st, err = drain(r.Context(), n, address, said)
	} else {
		st, err = undrain(r.Context(), n, address, said)
	}
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, st)
}

// drainBody is what an operator may say beside that an upstream drains.
type drainBody api.DrainRequest[duration]

// duration is a time as an operator writes it. A bare number has no unit, so only 0 is one.
type duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *duration) UnmarshalJSON(text []byte) error {
	if string(text) == "0" {
		*d = 0
		return nil
	}
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("%s is no duration: it is written like \"30m\"", text)
	}
	parsed, err := caddy.ParseDuration(s)
	*d = duration(parsed)
	return err
}

// request returns what a request with the body asks for.
func (b drainBody) request(method, by string) (record.Request, error) {
	w := record.Request{State: api.StateDraining, By: by, Reason: b.Reason, Grace: (*time.Duration)(b.GracePeriod), Span: (*time.Duration)(b.Span)}
	switch {
	case len(w.Reason) > record.MaxReason:
		return w, apiError(http.StatusBadRequest, "the reason has %d bytes; it has at most %d", len(w.Reason), record.MaxReason)
	case printable.Text(w.Reason) != w.Reason:
		return w, apiError(http.StatusBadRequest, "malformed reason %q: it is text in one line, without characters that steer a terminal", w.Reason)
	case method == http.MethodDelete && (w.Grace != nil || w.Span != nil):
		return w, apiError(http.StatusBadRequest, "what is taken back has no grace_period and no span")
	case method == http.MethodDelete:
		w.State = api.StateReady
	case w.Grace != nil && (*w.Grace < 0 || *w.Grace > record.MaxLifetime):
		return w, apiError(http.StatusBadRequest, "malformed grace_period: it is a duration like 30m, from 0 (never) to %v", record.MaxLifetime)
	case w.Span != nil && (*w.Span <= 0 || *w.Span > record.MaxLifetime):
		return w, apiError(http.StatusBadRequest, "malformed span: it is a duration above zero, like 30s, up to %v", record.MaxLifetime)
	}
	return w, nil
}

// drain lets an upstream drain. Unless forced it must be known, and another one must take new sessions.
func drain(ctx context.Context, n *cluster.Cluster, address string, said record.Request) (*api.Upstream, error) {
	if len(address) > maxAddress {
		return nil, apiError(http.StatusBadRequest, "an address of %d bytes names no upstream: it has at most %d", len(address), maxAddress)
	}
	names := spellings(address)
	name := names[len(names)-1]
	if st, err := upstreamMeant(n, address); err == nil {
		name = st.Address
	} else if !said.Force {
		return nil, apiError(http.StatusNotFound, "%v (?force=true drains it all the same)", err)
	}
	if printable.Text(name) != name {
		return nil, noAddress(address)
	}
	switch err := n.SetDrain(ctx, name, said); {
	case errors.Is(err, cluster.ErrNoName):
		return nil, noAddress(address)
	case err != nil:
		return nil, storageError(err)
	}
	return upstreamMeant(n, name)
}

// undrain takes a drain back. What a config drains it cannot.
func undrain(ctx context.Context, n *cluster.Cluster, address string, said record.Request) (*api.Upstream, error) {
	st, err := upstreamMeant(n, address)
	switch {
	case err != nil:
		return nil, err
	case st.Drain != nil && st.Drain.Config:
		marked, then := "", ""
		if st.Drain.Marked {
			marked, then = ", and is marked as well", "; then take the mark back"
		}
		return nil, apiError(http.StatusConflict, "%s drains by this Caddy's config%s: take it off the drain line of its bokeh_proxy or lb_policy bokeh, and reload%s", st.Address, marked, then)
	}
	if err := n.SetDrain(ctx, st.Address, said); err != nil {
		return nil, storageError(err)
	}
	if after, err := upstreamMeant(n, st.Address); err == nil {
		return after, nil
	}
	// Nothing else knew of it.
	st.State, st.Drain, st.WaitingFor = api.StateGone, nil, nil
	return st, nil
}

func noAddress(address string) error {
	return apiError(http.StatusBadRequest, "%q is no address of an upstream", address)
}

// signature is what drains say they were made by.
func signature(n *cluster.Cluster) string {
	return "admin API of node " + n.Name() + " on " + hostname()
}

// drain drains the upstreams at the given addresses for as long as the config lasts.
func (ms *members) drain(addrs []string) {
	for _, addr := range addrs {
		u := ms.l.Hold(upstreamName(addr))
		u.Drain.AddConfigs(1)
		ms.drained = append(ms.drained, u)
	}
}
