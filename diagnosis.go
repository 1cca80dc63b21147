// This file holds what is logged when requests and answers show a known mistake, with the mend.

package caddybokeh

import (
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// advicePause is how often the same mistake is logged at most.
const advicePause = time.Minute

// pacer lets something through from time to time.
type pacer struct {
	last atomic.Int64 // on the table's clock; 0 if never
}

// lets says whether it is time again.
func (p *pacer) lets(now time.Duration) bool {
	last := p.last.Load()
	return (last == 0 || now-time.Duration(last) > advicePause) && p.last.CompareAndSwap(last, int64(now))
}

// pacers are one for each mistake that a policy knows of.
type pacers struct{ allDrain, origin, expired, header pacer }

// examine looks at a websocket for what Bokeh will refuse, or Caddy soon.
func (s *Selection) examine(r *http.Request, c *claim) {
	now := s.table.now()
	if c.expires != 0 && time.Now().Unix() > c.expires && s.pacers.expired.lets(now) {
		s.logger.Warn("a browser brings a token that has expired; its server refuses it, and the page stands still"+
			" (start the servers with a longer --session-token-expiration, like 36000 for a working day; or set the clocks right)",
			zap.Duration("expired_ago", time.Since(time.Unix(c.expires, 0)).Truncate(time.Second)))
	}
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv.MaxHeaderBytes >= tokenHeaderBytes {
		return
	}
	if size := headerSize(r); size > srv.MaxHeaderBytes/4*3 && s.pacers.header.lets(now) {
		s.logger.Warn("the headers of a websocket are close to what the server takes; a visitor with more cookies sees an empty page"+
			" (set max_header_size 64KB in the servers option)",
			zap.Int("header_bytes", size), zap.Int("max_header_bytes", srv.MaxHeaderBytes))
	}
}

// headerSize returns how many bytes the header of r took, about.
func headerSize(r *http.Request) int {
	size := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(": \r\n") + len(v)
		}
	}
	return size
}

// refusedSocket takes note that a server answered 403 to a websocket.
func (s *Selection) refusedSocket(m *member, origin string) {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || !s.pacers.origin.lets(s.table.now()) {
		return
	}
	s.logger.Error("upstream refused a websocket with 403; unless the app has reasons of its own it does not know the site's name"+
		" (start the servers with the flag)",
		zap.String("upstream", m.name), zap.String("flag", "--allow-websocket-origin="+u.Host))
}
