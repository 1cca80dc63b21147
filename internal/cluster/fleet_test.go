// This file holds a policy for tests, which sends visitors to upstreams as far as nodes must know of it, and Caddys that have it.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster/clustertest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

const u0 = "u0:80"

// thisHost is the name of the machine that tables have in theirs of upstreams that belong to it.
const thisHost = "here"

// hangs is how long what should not take a moment may take.
const hangs = 30 * time.Second

// pass lets time pass, and what happens then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// testPool returns the names of some upstreams.
func testPool(n int) []string {
	pool := make([]string, n)
	for i := range pool {
		pool[i] = fmt.Sprintf("u%d:80", i)
	}
	return pool
}

// sharedName has the host in the name of what belongs to a machine.
func sharedName(name, host string) string {
	if strings.HasPrefix(name, "localhost:") || strings.HasPrefix(name, "127.0.0.1:") {
		return name + "@" + host
	}
	return name
}

func newTestTable() *sessions.Table {
	return sessions.NewTable(func(name string) string { return sharedName(name, thisHost) }, sessions.Labels{})
}

// testConfig is what a node is told in tests.
func testConfig(t *sessions.Table, running func() store.Storage, logger *zap.Logger) Config {
	return Config{
		Table: t, Host: thisHost, SessionTTL: 32 * time.Second, SharedName: sharedName,
		Running: running, Exiting: func() bool { return false },
		Dial:   func(context.Context, string) error { return errors.New("nobody is there") },
		Logger: logger,
	}
}

// noStorage is that of a Caddy without a config.
func noStorage() store.Storage { return nil }

// testPolicy is a policy for visitors who are one call each.
type testPolicy struct {
	table    *sessions.Table
	pool     []*sessions.Upstream // held until it is cleaned up
	lifetime time.Duration
	keys     []string
	raise    func(name string, data map[string]any)

	n       *Cluster // that it is attached to; nil if it is not
	drained []*sessions.Upstream
}

func newTestPolicy(pool []string) *testPolicy { return newTestPolicyWith(newTestTable(), pool) }

// newTestPolicyWith returns a policy of another config of the same process.
func newTestPolicyWith(t *sessions.Table, pool []string) *testPolicy {
	s := &testPolicy{table: t, lifetime: 32 * time.Second, keys: []string{"the key of the fleet"}}
	for _, name := range pool {
		s.pool = append(s.pool, t.Hold(name))
	}
	return s
}

// join attaches the policy, and returns when the node knows what drains.
func (s *testPolicy) join(n *Cluster, st store.Storage) {
	s.n = n
	<-n.Attach(s, st)
}

// Cleanup ends the policy.
func (s *testPolicy) Cleanup() error {
	if s.n != nil {
		s.n.Detach(s)
	}
	for _, u := range s.pool {
		s.table.Release(u)
	}
	for _, u := range s.drained {
		u.Drain.AddConfigs(-1)
		s.table.Release(u)
	}
	s.pool, s.drained = nil, nil
	return nil
}

// drain lets the config of the policy drain an upstream.
func (s *testPolicy) drain(name string) {
	u := s.table.Hold(name)
	u.Drain.AddConfigs(1)
	s.drained = append(s.drained, u)
}

// get returns an upstream of the pool.
func (s *testPolicy) get(name string) *sessions.Upstream {
	for _, u := range s.pool {
		if u.Name == name {
			return u
		}
	}
	return nil
}

func (s *testPolicy) Pool() (pool []PoolMember) {
	for _, u := range s.pool {
		pool = append(pool, PoolMember{Upstream: u, InPool: true})
	}
	return pool
}

func (s *testPolicy) PoolHealth() (pool []MemberHealth) {
	for _, m := range s.Pool() {
		pool = append(pool, MemberHealth{PoolMember: m, Unreachable: m.Upstream.IsUnreachable(), Told: true, Healthy: true})
	}
	return pool
}

func (s *testPolicy) KnowsPool() bool           { return true }
func (s *testPolicy) StampKeys() []string       { return s.keys }
func (s *testPolicy) SessionTTL() time.Duration { return s.lifetime }

func (s *testPolicy) Emit(name string, data map[string]any) {
	if s.raise != nil {
		s.raise(name, data)
	}
}

func (s *testPolicy) terms() sessions.Terms { return sessions.Terms{Lifetime: s.lifetime, Owner: s} }

// page begins a session where one may begin, and says where, and what its socket brings.
func (s *testPolicy) page() (home, token string) {
	var ready []*sessions.Upstream
	for _, u := range s.pool {
		if !u.Drain.On() {
			ready = append(ready, u)
		}
	}
	if len(ready) == 0 {
		return "", ""
	}
	u := ready[rand.IntN(len(ready))]
	id := store.RandomName()
	load := s.table.BeginPage(s.table.Key(id), u, s.terms())
	load.PageBuilt()
	load.PageEnded(true, true)
	synctest.Wait()
	return u.Name, id + " " + u.Name
}

// homeOf returns where the session of a token is, or may be.
func (s *testPolicy) homeOf(k sessions.Key, named string) (home *sessions.Upstream) {
	s.table.Find(k, func(seen sessions.Sighting) {
		if s.get(seen.At.Name) != nil {
			home = seen.At
		}
	})
	if home == nil {
		home = s.get(named)
		if home != nil && home.Drain.On() && home.Drain.HasEnded(s.table.Now(), k) {
			home = nil
		}
	}
	if home != nil && home.Drain.IsClosed() {
		return nil
	}
	return home
}

// testSocket is a websocket that is open.
type testSocket struct {
	at      *sessions.Upstream
	load    sessions.Load
	request *sessions.OpenRequest
	once    sync.Once
}

// CutOff ends it.
func (o *testSocket) CutOff() {
	o.once.Do(func() {
		o.at.Drain.Requests.Remove(o.request)
		o.load.SocketEnded(true)
	})
}

// socket opens the socket of a token, and says where, and what closes it.
func (s *testPolicy) socket(token string) (addr string, hangUp func()) {
	id, named, _ := strings.Cut(token, " ")
	k := s.table.Key(id)
	u := s.homeOf(k, named)
	if u == nil {
		u = s.elsewhere(id)
	}
	if u == nil {
		return "", func() {}
	}
	o := &testSocket{at: u, load: s.table.BeginSocket(k, k, u, s.terms())}
	o.request = &sessions.OpenRequest{Of: o}
	u.Drain.Requests.Add(o.request)
	u.Drain.Requests.Opened(o.request)
	o.load.SocketOpened()
	return u.Name, func() {
		o.CutOff()
		synctest.Wait()
	}
}

// elsewhere returns the first upstream that takes sessions in an order that is the same on every node.
func (s *testPolicy) elsewhere(id string) (first *sessions.Upstream) {
	order := func(u *sessions.Upstream) uint64 {
		h := fnv.New64a()
		h.Write([]byte(id + u.Name))
		return h.Sum64()
	}
	for _, u := range s.pool {
		if !u.Drain.On() && (first == nil || order(u) < order(first)) {
			first = u
		}
	}
	return first
}

// find returns what is told of an upstream.
func find(n *Cluster, name string) (*api.Upstream, error) {
	all := n.Upstreams()
	if i := slices.IndexFunc(all, func(st *api.Upstream) bool { return st.Address == name }); i >= 0 {
		return all[i], nil
	}
	return nil, errors.New("no such upstream")
}

// askDrain drains an upstream as an operator does.
func askDrain(ctx context.Context, n *Cluster, name string, r record.Request) error {
	if _, err := find(n, name); err != nil && !r.Force {
		return err
	}
	return n.SetDrain(ctx, name, r)
}

// drainAsked drains an upstream as an operator does, and returns how the admin API would answer.
func (c *caddyNode) drainAsked(addr string, force bool) (status int, said string) {
	err := askDrain(context.Background(), c.Cluster, addr, record.Request{State: api.StateDraining, By: c.name, Force: force})
	_, refused := errors.AsType[RefusedError](err)
	switch {
	case err == nil:
		return http.StatusOK, ""
	case refused && !errors.Is(err, ErrUnsure):
		return http.StatusConflict, err.Error()
	}
	return http.StatusServiceUnavailable, err.Error()
}

// storedState returns what is stored of an upstream.
func storedState(v *clustertest.Vault, addr string) string {
	m, _ := record.LoadDrain(context.Background(), v.Door(), addr)
	if m == nil {
		return api.StateReady
	}
	return m.State
}

// soon waits until something is so.
func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(hangs)
	for tick := time.NewTicker(2 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %v: not %s", hangs, what)
		}
	}
}
