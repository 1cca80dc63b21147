// This file holds the sources of discovered upstreams: which find the same for every request, what they found last, and which
// pool an upstream belongs to.

package caddybokeh

import (
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// SharedSource is a source of upstreams (a module in the namespace http.reverse_proxy.upstreams) that can say whether all
// requests share what it finds. Such a module needs the method alone, and nothing of this package.
//
// Where all requests share the upstreams, an empty answer of the source is taken for a failed look-up, and the upstreams that
// it found last go on serving, also over a reload of a config that says the same of the source. An upstream that it does not
// find any more keeps its sessions. Neither holds for a source without this method: what it finds for the next request
// may be another site's.
type SharedSource interface {
	// DependsOnRequest says whether the upstreams that the source finds depend on the request: its host, path or
	// headers, or placeholders that are replaced for each. It is asked once for each reverse proxy that a config
	// has, of a source that has its own config and is not provisioned yet.
	DependsOnRequest() bool
}

// isShared says whether all requests share what the source with the given config finds. The sources that Caddy brings only
// look at a request for placeholders.
func isShared(config json.RawMessage) bool {
	var is struct {
		Source  string            `json:"source"`
		Sources []json.RawMessage `json:"sources"` // of multi
	}
	var all any
	if json.Unmarshal(config, &is) != nil || json.Unmarshal(config, &all) != nil {
		return false
	}
	switch is.Source {
	case "a", "srv":
		return !holdsPlaceholder(all)
	case "multi":
		return !slices.ContainsFunc(is.Sources, func(config json.RawMessage) bool { return !isShared(config) })
	}
	info, err := caddy.GetModule("http.reverse_proxy.upstreams." + is.Source)
	if err != nil {
		return false // the reverse proxy says so
	}
	src, ok := info.New().(SharedSource)
	return ok && json.Unmarshal(config, src) == nil && !src.DependsOnRequest()
}

// holdsPlaceholder says whether there may be a placeholder in the value of a JSON text. In that text it may be written in many ways.
func holdsPlaceholder(value any) bool {
	switch v := value.(type) {
	case string:
		return hasPlaceholder(v)
	case []any:
		return slices.ContainsFunc(v, holdsPlaceholder)
	case map[string]any:
		return slices.ContainsFunc(slices.Collect(maps.Values(v)), holdsPlaceholder)
	}
	return false
}

// source is where upstreams are discovered, if all requests share what is found there. Policies whose configs say the same of
// it have one in common, also those of the next config: what it found outlives a reload at which it fails.
type source struct {
	t      *ledger
	config string
	users  int // policies; the ledger's mu guards it

	last   atomic.Pointer[discovery]
	lastAt atomic.Int64 // when it found that last, on the table's clock

	mu   sync.Mutex         // guards left, and the change of last
	left map[string]sighted // by name, what it found before and does not find any more
}

// discovery is what a source has found.
type discovery struct {
	dials []string
	names map[string]bool // of the upstreams
}

// sighted is when an upstream was found last, on the table's clock.
type sighted struct {
	dial string
	last time.Duration
}

// holdSource returns the source with the given config and keeps it until it is released.
func (t *ledger) holdSource(config string) *source {
	t.mu.Lock()
	defer t.mu.Unlock()
	src := t.sources[config]
	if src == nil {
		src = &source{t: t, config: config, left: make(map[string]sighted)}
		t.sources[config] = src
	}
	src.users++
	return src
}

// releaseSource takes back one hold of a source, which may be nil.
func (t *ledger) releaseSource(src *source) {
	if src == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if src.users--; src.users == 0 {
		delete(t.sources, src.config)
	}
}

// lastFound returns what the source found last. It is empty for a source that is nil, or that has found nothing yet.
func (src *source) lastFound() *discovery {
	if src != nil {
		if last := src.last.Load(); last != nil {
			return last
		}
	}
	return new(discovery)
}

// found takes note of what the source has found, and returns the upstreams that joined those it had found before.
func (src *source) found(pool reverseproxy.UpstreamPool, cs []candidate, now time.Duration) (joined []*member) {
	before := src.lastFound()
	if before.is(pool) {
		src.lastAt.Store(int64(now))
		return nil
	}
	src.mu.Lock()
	defer src.mu.Unlock()
	before = src.lastFound()
	next := &discovery{names: make(map[string]bool)}
	for _, c := range cs {
		m := c.member
		next.dials = append(next.dials, c.upstream.Dial)
		next.names[m.Name] = true
		if before.names[m.Name] {
			continue
		}
		m.Joined(src, now)
		delete(src.left, m.Name)
		if len(before.dials) > 0 {
			joined = append(joined, m)
		}
	}
	maps.DeleteFunc(src.left, func(name string, s sighted) bool { return now-s.last > memberTTL && src.t.SessionsAt(name) == 0 })
	for _, dial := range before.dials {
		if name := upstreamName(dial); !next.names[name] {
			src.left[name] = sighted{dial, time.Duration(src.lastAt.Load())}
		}
	}
	src.last.Store(next)
	src.lastAt.Store(int64(now))
	return joined
}

// hasLost says whether an upstream that has left the pool is most likely another server by now: another pool has taken its
// address up since the source found it last. That another pool has the address says nothing by itself, for two may share a server.
func (src *source) hasLost(m *member) bool {
	of, at := m.LastPool()
	if of == nil || of == src || m.static {
		return false
	}
	src.mu.Lock()
	defer src.mu.Unlock()
	return !src.lastFound().names[m.Name] && at > src.left[m.Name].last // it may be back for another request
}

// gaveAway says whether another pool has taken an upstream up since a time, which none of these upstreams is: so it is most likely
// another server by now.
func (ms *members) gaveAway(u *sessions.Upstream, since time.Duration) bool {
	of, at := u.LastPool()
	return of != nil && of != ms && of != ms.source && at > since
}

// discoverBy makes members of what a source found lately: sessions may be there.
func (ms *members) discoverBy(src *source) {
	ms.source = src
	src.mu.Lock()
	defer src.mu.Unlock()
	for _, dial := range src.lastFound().dials {
		ms.get(dial)
	}
	for _, s := range src.left {
		ms.get(s.dial)
	}
}

// is says whether d is what a pool is.
func (d *discovery) is(pool reverseproxy.UpstreamPool) bool {
	return slices.EqualFunc(d.dials, pool, func(dial string, u *reverseproxy.Upstream) bool { return dial == u.Dial })
}

// lastKnown returns a pool of what the source found last. That a source finds nobody means that the look-up failed, which
// tells nothing about the servers.
func (ms *members) lastKnown() reverseproxy.UpstreamPool {
	dials := ms.source.lastFound().dials
	pool := make(reverseproxy.UpstreamPool, len(dials))
	for i, dial := range dials {
		m := ms.get(dial)
		if m.last.Load() == nil { // another policy has found it
			m.last.CompareAndSwap(nil, &reverseproxy.Upstream{Dial: dial, Host: new(reverseproxy.Host)})
		}
		pool[i] = m.last.Load()
	}
	return pool
}

// discovered takes note of the pool that a request came with, where it is not the config's.
func (s *Selection) discovered(pool reverseproxy.UpstreamPool, cs *candidates) {
	if len(pool) == 0 || isSame(pool, s.static) || isSame(pool, s.fallback) {
		return
	}
	src := s.members.source
	if src == nil {
		for _, c := range cs.all {
			c.Lent(s.members, cs.now)
		}
		return
	}
	for _, m := range src.found(pool, cs.all, cs.now) {
		if m.Drain.ByOperator() && s.pacers.reused.allows(cs.now) {
			s.logger.Warn("discovery finds an upstream that it did not find before, and that operators have drained"+
				" (if another server has that address by now, take the drain back: caddy bokeh undrain, with the address)", zap.String("upstream", m.Name))
		}
	}
}
