// This file holds what operators can ask and say at Caddy's admin API.

package caddybokeh

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI is a module that serves the state of Bokeh upstreams at Caddy's admin API, and takes them
// out of service:
//
//	GET    /bokeh/upstreams
//	GET    /bokeh/upstreams/<address>[?wait=<duration>]
//	PUT    /bokeh/draining/<address>[?force=true]
//	DELETE /bokeh/draining/<address>
//	GET    /bokeh/node[?wait=<duration>]
//	GET    /bokeh/nodes
//	DELETE /bokeh/nodes/<node>
//	POST   /bokeh/storage-check
//
// It holds nothing: after a config that could not be loaded, Caddy serves the API of that one.
type adminAPI struct{}

// maxBody bounds the body of a request.
const maxBody = 64 << 10

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.bokeh",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Provision ends what waits at the API of the config before: a reload is not held up.
func (adminAPI) Provision(caddy.Context) error {
	thisNode().Interrupt()
	return nil
}

// Routes returns the routes of the API.
func (a adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: api.UpstreamsPath, Handler: caddy.AdminHandlerFunc(a.serveUpstreams)},
		{Pattern: api.UpstreamsPath + "/", Handler: caddy.AdminHandlerFunc(a.serveUpstream)},
		{Pattern: api.DrainingPath, Handler: caddy.AdminHandlerFunc(a.serveNothing)}, // or the router would redirect
		{Pattern: api.DrainingPath + "/", Handler: caddy.AdminHandlerFunc(a.serveDraining)},
		{Pattern: api.NodePath, Handler: caddy.AdminHandlerFunc(a.serveThisNode)},
		{Pattern: api.NodesPath, Handler: caddy.AdminHandlerFunc(a.serveNodes)},
		{Pattern: api.NodesPath + "/", Handler: caddy.AdminHandlerFunc(a.serveNode)},
		{Pattern: api.StorageCheckPath, Handler: caddy.AdminHandlerFunc(a.serveCheck)},
		{Pattern: "/bokeh/", Handler: caddy.AdminHandlerFunc(a.serveNothing)},
	}
}

// serveNothing answers what is none of the above, with an error as all others are.
func (adminAPI) serveNothing(_ http.ResponseWriter, r *http.Request) error {
	return apiError(http.StatusNotFound, "there is nothing at %s; there are %s, %s/<address>, %s/<address>, %s, %s, %s/<node> and %s",
		r.URL.Path, api.UpstreamsPath, api.UpstreamsPath, api.DrainingPath, api.NodePath, api.NodesPath, api.NodesPath, api.StorageCheckPath)
}

// serveUpstreams tells of all upstreams.
func (adminAPI) serveUpstreams(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, nil, http.MethodGet); err != nil {
		return err
	}
	return respond(w, http.StatusOK, thisNode().Upstreams())
}

// serveUpstream tells of one, at once or when it is drained.
func (adminAPI) serveUpstream(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, []string{"wait"}, http.MethodGet); err != nil {
		return err
	}
	address, err := target(r, api.UpstreamsPath)
	if err != nil {
		return err
	}
	n := thisNode()
	patience, err := patienceOf(r)
	if err != nil {
		return err
	}
	var st *api.Upstream
	drained, err := n.Await(r.Context(), patience, func() (bool, error) {
		if st, err = upstreamMeant(n, address); err != nil || patience == 0 {
			return true, err
		}
		if st.Drain == nil && st.State != api.StateUnknown {
			return false, apiError(http.StatusConflict, "%s is not draining; it would never be drained (PUT %s/%s)",
				st.Address, api.DrainingPath, url.PathEscape(st.Address))
		}
		return st.State == api.StateDrained, nil
	})
	if err != nil {
		return waitError(err)
	}
	return respond(w, inTime(drained), st)
}

// serveThisNode tells of this process, at once or when it holds no websocket and builds no page. If it is
// about to end it may be killed then.
func (adminAPI) serveThisNode(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, []string{"wait"}, http.MethodGet); err != nil {
		return err
	}
	patience, err := patienceOf(r)
	if err != nil {
		return err
	}
	n := thisNode()
	var st api.Node
	empty, err := n.Await(r.Context(), patience, func() (bool, error) {
		st = n.Self()
		return patience == 0 || st.Sessions.AtWork() == 0 && n.MayBeKilled(), nil
	})
	if err != nil {
		return waitError(err)
	}
	return respond(w, inTime(empty), st)
}

// patienceOf returns how long a request wants to wait, or 0 if it does not.
func patienceOf(r *http.Request) (time.Duration, error) {
	if !r.URL.Query().Has("wait") {
		return 0, nil
	}
	value := r.URL.Query().Get("wait")
	patience, err := caddy.ParseDuration(value)
	if err != nil || patience <= 0 {
		return 0, apiError(http.StatusBadRequest, "malformed wait %q: it is a duration above zero, like 30s", value)
	}
	return patience, nil
}

// waitError is what an operator hears who waits in vain.
func waitError(err error) error {
	if errors.Is(err, cluster.ErrInterrupted) {
		return apiError(http.StatusServiceUnavailable, "%v", err)
	}
	return err
}

// inTime is the status of an answer that was waited for.
func inTime(so bool) int {
	if so {
		return http.StatusOK
	}
	return http.StatusGatewayTimeout
}

// forced says whether a request is to be done though something speaks against it.
func forced(r *http.Request) (force bool, err error) {
	if said := r.URL.Query().Get("force"); r.URL.Query().Has("force") {
		if force, err = strconv.ParseBool(said); err != nil {
			return false, apiError(http.StatusBadRequest, "malformed force %q: it is true or false", said)
		}
	}
	return force, nil
}

// serveNodes tells of the nodes.
func (adminAPI) serveNodes(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, nil, http.MethodGet); err != nil {
		return err
	}
	return respond(w, http.StatusOK, thisNode().Nodes())
}

// serveNode lets an operator say that a node is dead.
func (adminAPI) serveNode(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, []string{"force"}, http.MethodDelete); err != nil {
		return err
	}
	name, err := target(r, api.NodesPath)
	if err != nil {
		return err
	}
	force, err := forced(r)
	if err != nil {
		return err
	}
	n := thisNode()
	switch err := n.RemoveNode(r.Context(), name, force); {
	case errors.Is(err, cluster.ErrUnknownNode):
		var known []string
		for _, st := range n.Nodes()[1:] {
			known = append(known, st.Node)
		}
		return apiError(http.StatusNotFound, "no other node is named %q; known are: %s", name, cmp.Or(strings.Join(known, ", "), "none"))
	case err != nil:
		return storageError(err)
	}
	return respond(w, http.StatusOK, n.Nodes())
}

// serveCheck tries the storage of the config that runs.
func (adminAPI) serveCheck(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, nil, http.MethodPost); err != nil {
		return err
	}
	running := caddy.ActiveContext()
	if running.Context == nil {
		return apiError(http.StatusServiceUnavailable, "no config is running, so there is no storage to try")
	}
	return respond(w, http.StatusOK, store.Check(r.Context(), running.Storage(), caddy.GetModuleID(running.Storage())))
}

// upstreamMeant returns what there is to tell of the upstream that an operator means by an address.
func upstreamMeant(n *cluster.Cluster, address string) (*api.Upstream, error) {
	all := n.Upstreams()
	for _, name := range spellings(address) {
		if i := slices.IndexFunc(all, func(st *api.Upstream) bool { return st.Address == name }); i >= 0 {
			return all[i], nil
		}
	}
	if len(all) == 0 {
		return nil, apiError(http.StatusNotFound, "no upstream %q is known, nor any other: %v", address, whyNone(n))
	}
	known := make([]string, len(all))
	for i, st := range all {
		known[i] = st.Address
	}
	meant := ""
	if i := slices.IndexFunc(known, func(name string) bool { return portsAgree(name, upstreamName(address)) }); i >= 0 {
		meant = "; is it " + known[i] + "?"
	}
	return nil, apiError(http.StatusNotFound, "no upstream %q is known; known are: %s%s", address, strings.Join(known, ", "), meant)
}

// portsAgree says whether two upstreams have the same port: 127.0.0.1:5006 may be meant for localhost:5006.
func portsAgree(a, b string) bool {
	_, portA, errA := net.SplitHostPort(a)
	_, portB, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && portA == portB
}

// whyNone says why no upstream is known.
func whyNone(n *cluster.Cluster) error {
	if err := n.Active(); err != nil {
		return err
	}
	return api.ErrNoneYet
}

// spellings returns the names that an address in a path may stand for. Caddy's router makes one
// slash of two before we see them.
func spellings(address string) []string {
	names := []string{upstreamName(address)}
	if path, ok := strings.CutPrefix(address, "unix/"); ok && !strings.HasPrefix(path, "/") {
		names = append(names, upstreamName("unix//"+path))
	}
	return names
}

// allow refuses methods and parameters that a route does not have.
func allow(r *http.Request, params []string, methods ...string) error {
	if !slices.Contains(methods, r.Method) {
		return apiError(http.StatusMethodNotAllowed, "method %s is not allowed here; %s is", r.Method, strings.Join(methods, " or "))
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return apiError(http.StatusBadRequest, "malformed query: %v", err)
	}
	for param := range query {
		if !slices.Contains(params, param) {
			return apiError(http.StatusBadRequest, "unknown parameter %q", param)
		}
	}
	return nil
}

// target returns what stands behind the path of a route.
func target(r *http.Request, path string) (string, error) {
	t, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), path+"/"))
	if err != nil || t == "" {
		return "", apiError(http.StatusNotFound, "nothing is named in the path; it is %s/<name>", path)
	}
	return t, nil
}

// readBody reads the JSON in a body, if there is one.
func readBody(w http.ResponseWriter, r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.Join(errors.New("more than one value"), err)
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return apiError(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", tooLarge.Limit)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return apiError(http.StatusBadRequest, "malformed body: %s does not belong at %q", wrong.Value, cmp.Or(wrong.Field, "the top, where an object does"))
	}
	return apiError(http.StatusBadRequest, "malformed body: %v", err)
}

func respond(w http.ResponseWriter, status int, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(printable.JSON(text), '\n')) // people read it with curl
	return err
}

func apiError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: printable.Error(fmt.Errorf(format, args...))}
}

// storageError is what an operator hears when the storage fails.
func storageError(err error) error {
	_, refused := errors.AsType[cluster.RefusedError](err)
	if refused && !errors.Is(err, cluster.ErrUnsure) || errors.Is(err, api.ErrNoPolicy) {
		return apiError(http.StatusConflict, "%v", err)
	}
	if errors.Is(err, cluster.ErrInterrupted) {
		return apiError(http.StatusServiceUnavailable, "%v", err)
	}
	if errors.Is(err, cluster.ErrUnsure) {
		return apiError(http.StatusServiceUnavailable, "nothing has changed yet, and it is not known whether it will: %v (ask for the status later)", err)
	}
	return apiError(http.StatusServiceUnavailable, "nothing has changed, for the storage fails: %v", err)
}

// Interface guards
var (
	_ caddy.Provisioner = (*adminAPI)(nil)
	_ caddy.AdminRouter = (*adminAPI)(nil)
)
