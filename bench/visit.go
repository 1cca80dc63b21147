// This file holds a visit: a page, its websocket, the document, and what a browser does when the websocket is lost.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"time"

	"github.com/coder/websocket"
)

const (
	// visitLimit is how long a visitor waits until the page is ready.
	visitLimit = 20 * time.Second
	// reconnects and firstReconnect are BokehJS's: at once, then after 2, 4, 8 and 16 s.
	reconnects     = 5
	firstReconnect = 2 * time.Second / scale
	// messageLimit is the size of the largest document.
	messageLimit = 16 << 20
)

// visitor is a browser: an address of its own, and cookies if they are let in.
type visitor struct {
	addr netip.Addr
	jar  http.CookieJar
}

func newVisitor(addr netip.Addr, cookies bool) visitor {
	v := visitor{addr: addr}
	if cookies {
		v.jar, _ = cookiejar.New(nil)
	}
	return v
}

// client returns a client with connections of its own: a browser opens one for each websocket as well.
func (v visitor) client() *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: v.addr.AsSlice()}}
	return &http.Client{Jar: v.jar, Transport: &http.Transport{DialContext: d.DialContext}}
}

// visit is one that is under way.
type visit struct {
	visitor
	to    route
	app   string // the path
	cost  time.Duration
	query string
	again string // the query of a websocket that comes again
	stay  time.Duration
	leave <-chan struct{} // closed when all leave
	ready func()          // called when the page is ready
}

// outcome is what became of a visit.
type outcome struct {
	ready      time.Duration // since it began; 0 if never
	failed     string        // why, if it did
	reconnects int
}

// begin visits. The time counts from since, when the visitor came, however late this began.
func (v visit) begin(ctx context.Context, since time.Time) (o outcome) {
	limited, cancel := context.WithDeadline(ctx, since.Add(visitLimit))
	defer cancel()
	at, token, err := v.page(limited)
	if err != nil {
		o.failed = "page: " + reason(err)
		return o
	}
	s, err := v.socket(limited, at, token, v.query)
	if err != nil && v.to.lost(at) {
		s, err = v.socketAnywhere(limited, token, v.query)
	}
	if err != nil {
		o.failed = "socket: " + reason(err)
		return o
	}
	o.ready = time.Since(since)
	if v.ready != nil {
		v.ready()
	}
	end := time.Now().Add(v.stay)
	for v.hold(ctx, s, end) {
		if s = v.reconnect(ctx, token); s == (socket{}) {
			if ctx.Err() == nil {
				o.failed = "lost"
			}
			return o
		}
		o.reconnects++
	}
	return o
}

// page gets a page and returns where it came from and its token.
func (v visit) page(ctx context.Context) (at, token string, err error) {
	for {
		at = v.to.enter(v.cost)
		token, err = v.get(ctx, "http://"+at+v.app+"?"+v.query)
		if err == nil || !v.to.lost(at) {
			return at, token, err
		}
	}
}

func (v visit) get(ctx context.Context, url string) (token string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	_, token, err = v.ask(req)
	return token, err
}

// ask asks for a page and returns what it says.
func (v visitor) ask(req *http.Request) (header http.Header, token string, err error) {
	c := v.client()
	defer c.CloseIdleConnections()
	res, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%d", res.StatusCode)
	}
	html, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, "", err
	}
	found := tokenInPage.FindSubmatch(html)
	if found == nil {
		return nil, "", errNoToken
	}
	return res.Header, string(found[1]), nil
}

// socket opens the websocket and pulls the document.
func (v visit) socket(ctx context.Context, at, token, query string) (socket, error) {
	c := v.client()
	defer c.CloseIdleConnections()
	conn, res, err := websocket.Dial(ctx, "ws://"+at+v.app+"/ws?"+query, &websocket.DialOptions{ //nolint:bodyclose // its documentation: never to be closed
		HTTPClient:   c,
		Subprotocols: []string{"bokeh", token},
	})
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols {
			err = fmt.Errorf("%d", res.StatusCode)
		}
		return socket{}, err
	}
	conn.SetReadLimit(messageLimit)
	s := socket{conn}
	if err := s.pull(ctx); err != nil {
		conn.CloseNow()
		return socket{}, err
	}
	return s, nil
}

// pull waits for the server's first message, asks for the document and waits for that.
func (s socket) pull(ctx context.Context) error {
	for want := "ACK"; ; {
		h, _, err := s.receive(ctx)
		switch {
		case err != nil:
			return err
		case h.Type != want:
		case want == "ACK":
			want = "PULL-DOC-REPLY"
			if err := s.send(ctx, header{ID: "1000", Type: "PULL-DOC-REQ"}, "{}"); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// hold keeps a socket until the visitor leaves, and says whether it was cut before.
func (v visit) hold(ctx context.Context, s socket, end time.Time) (cut bool) {
	open := s.CloseRead(ctx)
	t := time.NewTimer(time.Until(end))
	defer t.Stop()
	select {
	case <-open.Done():
		cut = ctx.Err() == nil
	case <-t.C:
	case <-v.leave:
	}
	// A tab that is closed waits for nobody.
	s.CloseNow()
	return cut
}

// reconnect tries as often as a browser does, and returns none if it gives up.
func (v visit) reconnect(ctx context.Context, token string) socket {
	pause := time.Duration(0)
	for range reconnects {
		if sleep(ctx, pause) != nil {
			break
		}
		if s, err := v.socketAnywhere(ctx, token, v.again); err == nil {
			return s
		}
		pause = max(firstReconnect, 2*pause)
	}
	return socket{}
}

func (v visit) socketAnywhere(ctx context.Context, token, query string) (socket, error) {
	ctx, cancel := context.WithTimeout(ctx, visitLimit)
	defer cancel()
	return v.socket(ctx, v.to.enter(v.cost), token, query)
}

// reason is why a visit failed, in few words that count together.
func reason(err error) string {
	var closed websocket.CloseError
	var status interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &status) && status.Timeout():
		return "too late"
	case errors.As(err, &closed):
		return "closed with " + closed.Code.String()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op + " " + op.Err.Error()
	}
	return err.Error()
}
