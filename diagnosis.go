// This file holds what is logged when requests and answers show a known mistake, with the mend.

package caddybokeh

import (
	"cmp"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
)

// pacer lets something through from time to time.
type pacer struct {
	last atomic.Int64 // on the table's clock; 0 if never
}

// allows says whether it is time again.
func (p *pacer) allows(now time.Duration) bool {
	last := p.last.Load()
	return (last == 0 || now-time.Duration(last) > adviceInterval) && p.last.CompareAndSwap(last, int64(now))
}

// hostPacer lets something through from time to time for each host. Anybody can send any, so there are not many.
type hostPacer struct {
	mu   sync.Mutex
	last map[string]time.Duration // on the table's clock
}

// maxPacedHosts is for how many hosts in a pause something is let through.
const maxPacedHosts = 8

// allows says whether it is time again for a host.
func (p *hostPacer) allows(host string, now time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.last, func(_ string, last time.Duration) bool { return now-last > adviceInterval })
	if _, told := p.last[host]; told || len(p.last) >= maxPacedHosts {
		return false
	}
	if p.last == nil {
		p.last = make(map[string]time.Duration)
	}
	p.last[host] = now
	return true
}

// pacers are one for each mistake that a policy knows of.
type pacers struct {
	allDrain, full, group, expired, header, tooLong, upgrade, address pacer
	ownOrigin, otherOrigin, noOrigin, names                           hostPacer
	unknownPage, unknownSocket, reused                                pacer
}

// examine looks at a websocket for what Bokeh will refuse, or Caddy soon.
func (s *Selection) examine(r *http.Request, v *visit) {
	now, c := s.table.Now(), &v.Request
	if c.IsExpired(time.Now()) && s.pacers.expired.allows(now) {
		s.logger.Warn("a browser brings a token that has expired; its server refuses it, and the page stands still"+
			" (start the servers with --session-token-expiration 36000, for a working day, or where an ASGI server runs the app with its session_token_expiration=36000,"+
			" which bokeh-django and bokeh-fastapi do not have; or set the clocks right)",
			zap.Duration("expired_ago", time.Since(time.Unix(c.Expires, 0)).Truncate(time.Second)))
	}
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv.MaxHeaderBytes >= tokenHeaderBytes {
		return
	}
	if v.headerSize > srv.MaxHeaderBytes/4*3 && s.pacers.header.allows(now) {
		s.logger.Warn("the headers of a websocket are close to what the server takes; a visitor with more cookies sees an empty page"+
			" (set max_header_size 64KB in the servers option)",
			zap.Int("header_bytes", v.headerSize), zap.Int("max_header_bytes", srv.MaxHeaderBytes))
	}
}

// warnFull logs that visits have to wait for a slot.
func (s *Selection) warnFull(upstreams int) {
	now := s.table.Now()
	if s.pacers.full.allows(now) {
		s.logger.Error("every upstream has max_sessions sessions; new visitors wait as long as lb_try_duration allows, then get 503 (add an upstream, or raise max_sessions)",
			zap.Int("max_sessions", s.MaxSessions), zap.Int("upstreams", upstreams), zap.Int64("visits_waiting", s.table.Waiting.Len(now)))
	}
}

// The kinds of requests that bring stamps, as metrics have them.
const (
	kindPage   = "page"
	kindSocket = "socket"
)

var stampedKinds = []string{kindPage, kindSocket}

// unknownStamp takes note of a request with a stamp that no key here has signed: that of another Caddy, or one that is
// not held any more, or what anybody has made up.
func (s *Selection) unknownStamp(of bokeh.Kind) {
	var paced *pacer
	var name, text string
	switch of {
	case bokeh.Socket:
		paced, name = &s.pacers.unknownSocket, kindSocket
		text = "a websocket brings a stamp that no key of this Caddy has signed, so its server is not known and the app may run once more" +
			" (give every Caddy in front of these servers the same secret_key, or the same storage; after a key was replaced or lost this ends with the pages of before)"
	case bokeh.Page:
		paced, name = &s.pacers.unknownPage, kindPage
		text = "a page request names a session by a stamp that no key of this Caddy has signed, so its server is not known" +
			" (if it comes through another Caddy with lb_policy bokeh that stands in front of this one, all is well; else give every Caddy in front of these servers the same secret_key, or the same storage)"
	case bokeh.MaybePage, bokeh.Other: // every file of a page that comes through a Caddy in front brings one
		return
	}
	s.table.unknownStamps.Add(name)
	if paced.allows(s.table.Now()) {
		s.logger.Warn(text, zap.String("metric", "caddy_bokeh_unknown_stamps_total"))
	}
}

// unknownGroup takes note that nothing on the way of a visit has set the placeholder of group_by.
func (s *Selection) unknownGroup(now time.Duration, err error) {
	if s.pacers.group.allows(now) {
		s.logger.Warn("group_by has no value for a visit, which goes where it is ready first"+
			" (look for a typo; what sets the placeholder, as an authentication, must come before the reverse_proxy;"+
			" after basic_auth it is {http.auth.user.id}, after forward_auth a header of its copy_headers, as {http.request.header.Remote-User})",
			zap.String("group_by", s.GroupBy), zap.Error(err))
	}
}

// refuseAddress takes note that a request has made an address which is too long to be dialed.
func (s *Selection) refuseAddress(upstream string, size int) {
	if s.pacers.address.allows(s.table.Now()) {
		s.logger.Warn("a request makes the address of an upstream longer than anything that can be dialed, so that upstream is none for it"+
			" (somebody tries what the site takes; bound what the placeholder may be, as with a host matcher or a map)",
			zap.String("upstream", upstream), zap.Int("bytes", size), zap.Int("most", maxAddress))
	}
}

// plainHeader is what servers take of a header, in bytes: Twisted, which reads requests for Daphne, takes no more at all,
// h11 none that comes in pieces. Tornado hangs up without a word from 64 KB on.
const plainHeader = 16 << 10

// uvicornLine is what the websockets library, which reads them for uvicorn, takes of a header line. Of a longer one
// most versions of uvicorn say nothing at all, and keep the connection.
const uvicornLine = 8192

// software is what reads the requests of a server.
type software struct {
	name           string // as the Server header of its answers begins
	line, header   int    // what it takes as it comes, in bytes
	takeMoreHeader string // says how it is made to
}

// knownSoftware is what runs Bokeh. An answer by which a header is refused mostly has no Server header, so that of pages counts.
var knownSoftware = []*software{
	{
		"uvicorn", uvicornLine, plainHeader,
		"set WEBSOCKETS_MAX_LINE_LENGTH=65536 in the environment of uvicorn, and start it with --h11-max-incomplete-event-size 65536",
	},
	{
		"hypercorn", plainHeader, plainHeader,
		"start hypercorn with --config and a file that says h11_max_incomplete_size = 65536",
	},
	{
		"daphne", plainHeader, plainHeader,
		"daphne's limit is 16 KB and cannot be raised: run the app under uvicorn, or set fewer and shorter cookies",
	},
	{
		"TornadoServer", 64 << 10, 64 << 10,
		"its limit is 64 KB: start it with --exclude-cookies and the names of those that no app reads, or set fewer and shorter cookies",
	},
}

// unknownSoftware is one of them whose Server header we have not seen, or that somebody on the way has taken off.
var unknownSoftware = &software{"", uvicornLine, plainHeader, "under uvicorn: " + knownSoftware[0].takeMoreHeader +
	"; under hypercorn: " + knownSoftware[1].takeMoreHeader + "; " + knownSoftware[2].takeMoreHeader}

// softwareOf returns what gave an answer with this Server header.
func softwareOf(server string) *software {
	for _, sw := range knownSoftware {
		if strings.HasPrefix(server, sw.name) {
			return sw
		}
	}
	return unknownSoftware
}

// answeredAs takes note of what answered a page.
func (m *member) answeredAs(repl *caddy.Replacer) {
	server, _ := repl.GetString(placeholderServer)
	m.software.Store(softwareOf(server))
}

// runsOn returns what reads the requests of a server, as far as is known.
func (m *member) runsOn() *software { return cmp.Or(m.software.Load(), unknownSoftware) }

// awaitAnswer watches whether a server answers a websocket that uvicorn may not.
func (v *visit) awaitAnswer(a *attempt) {
	if !v.isTooLongFor(a.m.runsOn()) {
		return
	}
	time.AfterFunc(socketAnswerTimeout, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if a.connected && !a.answered && !a.finished {
			v.s.headerTooLong(a.m, v, 0)
		}
	})
}

// isTooLongFor says whether the header of the visit's request may be more than a server takes.
func (v *visit) isTooLongFor(sw *software) bool {
	return v.longest > sw.line || v.headerSize > sw.header
}

// headerTooLong takes note that a server did not take a websocket, if that may be for its long header.
func (s *Selection) headerTooLong(m *member, v *visit, status int) {
	sw := m.runsOn()
	if !v.isTooLongFor(sw) || !s.pacers.tooLong.allows(s.table.Now()) {
		return
	}
	s.logger.Warn("upstream does not take a websocket with a long header, as the token and the cookies of a visitor"+
		" with many cookies make it; that one sees an empty page ("+sw.takeMoreHeader+")",
		zap.String("upstream", m.Name), zap.String("server", sw.name), zap.Int("header_bytes", v.headerSize),
		zap.Int("line_bytes", v.longest), zap.Int("status", status))
}

// lostUpgrade takes note of a websocket that has come without the header that makes it one. Anybody can send such a request by hand.
func (s *Selection) lostUpgrade(r *http.Request) {
	if !s.pacers.upgrade.allows(s.table.Now()) {
		return
	}
	proxy, _, _ := net.SplitHostPort(r.RemoteAddr)
	s.logger.Warn("a websocket came without its Upgrade header, so no server opens it and the page stays empty; a proxy in front of Caddy takes that header off"+
		" (in nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;)",
		zap.String("proxy", proxy), zap.String("site", r.Host))
}

// refusedSocket takes note that a server answered 403 to a websocket. Anybody can send any origin, so what we
// tell to allow must be a name, and that of the site itself, or somebody must look at it.
func (s *Selection) refusedSocket(m *member, v *visit) {
	if v.IsExpired(time.Now()) {
		return
	}
	now, upstream := s.table.Now(), zap.String("upstream", m.Name)
	if v.origin == "null" || v.origin == "file://" {
		if s.pacers.noOrigin.allows(v.origin, now) {
			s.logger.Warn("upstream refused a websocket with 403 whose page belongs to no site: it was opened as a file, or stands in a sandboxed frame; if you do not know that page, all is well"+
				" (have the file served by a web server, or add allow-same-origin to the sandbox of the frame: servers can let in such pages only with those of everybody)",
				upstream, zap.String("origin", v.origin), zap.String("site", v.host))
		}
		return
	}
	u, err := url.Parse(v.origin)
	if err != nil || !siteName.MatchString(u.Host) {
		return
	}
	host := strings.ToLower(u.Host)
	setting, mend := allowOrigin(host)
	switch own := strings.EqualFold(host, v.host); {
	case own && s.pacers.ownOrigin.allows(host, now):
		s.logger.Error("upstream refused a websocket with 403; unless the app has reasons of its own it does not know the site's name"+
			" ("+mend+"; where an ASGI server runs the app, name the host in its extra_websocket_origins)", upstream, setting)
	case !own && s.pacers.otherOrigin.allows(host, now):
		s.logger.Warn("upstream refused a websocket of another site's page with 403; if you do not know that site, all is well"+
			" (if it shall show the app, "+mend+"; or name the host in extra_websocket_origins)", upstream, setting, zap.String("site", v.host))
	}
}

// allowOrigin returns what lets pages of a host in, and where to say it. Bokeh compares it as it is written with the origin in lower
// case; its flag takes no IPv6 address, and counts for nothing where the variable is set (bokeh/server/util.py, create_hosts_allowlist).
func allowOrigin(host string) (setting zap.Field, mend string) {
	if strings.HasPrefix(host, "[") {
		return zap.String("variable", "BOKEH_ALLOW_WS_ORIGIN="+host),
			"set the variable in the servers' environment, with commas between it and every other host, for it overrides their flag, which takes no IPv6 address"
	}
	return zap.String("flag", "--allow-websocket-origin="+host),
		"start the servers with the flag, or name the host in BOKEH_ALLOW_WS_ORIGIN where that is set, for it overrides the flag"
}

// siteName matches what browsers write for the host of an origin.
var siteName = regexp.MustCompile(`^([A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:]{2,39}\])(:[0-9]{1,5})?$`)
