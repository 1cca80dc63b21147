// This file holds what is logged when requests and answers show a known mistake, with the mend.

package caddybokeh

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
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
type pacers struct{ allDrain, full, group, ownOrigin, otherOrigin, expired, header pacer }

// examine looks at a websocket for what Bokeh will refuse, or Caddy soon.
func (s *Selection) examine(r *http.Request, c *claim) {
	now := s.table.now()
	if c.expired() && s.pacers.expired.lets(now) {
		s.logger.Warn("a browser brings a token that has expired; its server refuses it, and the page stands still"+
			" (start servers of Bokeh and Panel with a longer --session-token-expiration, like 36000 for a working day; or set the clocks right)",
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

// unknownGroup takes note that nothing on the way of a visit has set the placeholder of group_by.
func (s *Selection) unknownGroup(now time.Duration, err error) {
	if s.pacers.group.lets(now) {
		s.logger.Warn("group_by has no value for a visit, which goes where it is ready first"+
			" (look for a typo; what sets the placeholder, as an authentication, must come before the reverse_proxy)",
			zap.String("group_by", s.GroupBy), zap.Error(err))
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

// expired says whether Bokeh refuses the token for its age.
func (c *claim) expired() bool { return c.expires != 0 && time.Now().Unix() > c.expires }

// refusedSocket takes note that a server answered 403 to a websocket. Anybody can send any origin, so what we
// tell to allow must be a name, and that of the site itself, or somebody must look at it.
func (s *Selection) refusedSocket(m *member, rn *run) {
	u, err := url.Parse(rn.origin)
	if err != nil || !siteName.MatchString(u.Host) || rn.expired() {
		return
	}
	now, upstream, flag := s.table.now(), zap.String("upstream", m.name), zap.String("flag", "--allow-websocket-origin="+u.Host)
	switch own := strings.EqualFold(u.Host, rn.host); {
	case own && s.pacers.ownOrigin.lets(now):
		s.logger.Error("upstream refused a websocket with 403; unless the app has reasons of its own it does not know the site's name"+
			" (start the servers with the flag; where an ASGI server runs the app, name the host in its extra_websocket_origins or websocket_origins)", upstream, flag)
	case !own && s.pacers.otherOrigin.lets(now):
		s.logger.Warn("upstream refused a websocket of another site's page with 403; if you do not know that site, all is well"+
			" (if it shall show the app, start the servers with the flag, or name the host in what an ASGI server takes for it)", upstream, flag, zap.String("site", rn.host))
	}
}

// siteName matches what browsers write for the host of an origin.
var siteName = regexp.MustCompile(`^([A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,39}\])(:[0-9]{1,5})?$`)
