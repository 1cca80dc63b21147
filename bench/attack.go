// This file holds the attacks: what hostile clients do beside the crowd, and what they know of the servers.

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// foes is how many addresses the hostile clients have.
	foes = 4
	// mostLearned bounds the pages by which they find out what binds to a server: some peers bind nobody.
	mostLearned = 100
	// givenUpAfter is when they abort a page: the server has it by then, and is not done.
	givenUpAfter = 5 * time.Millisecond
	// dripEvery is how often they send one more byte of a body, and come again where they were cut off.
	dripEvery = 2 * time.Second
	// failingQuery makes an address that any server answers with 500 at once.
	failingQuery = "boom"
	// hostileVisit is the name of the visits that are theirs.
	hostileVisit = "hostile"
)

// attack is what hostile clients do while a run lasts. Nobody is hostile if it is empty.
type attack struct {
	held   int     // requests whose bodies never come in full
	pages  float64 // a second
	abort  bool    // the pages are given up at once
	errors float64 // requests a second that any server answers with 500
}

func (a attack) empty() bool { return a == attack{} }

// binds says whether the clients keep away from one server: what they do then makes it look idle.
func (a attack) binds() bool { return a.held > 0 || a.abort }

// without is what an attack is compared with. A page that is aborted makes as much work as one that comes in full, so
// there the same clients let the same pages come.
func (a attack) without() attack { return attack{pages: a.pages} }

// explained says what the hostile clients know, and what the crowd's figures are compared with.
func (a attack) explained() string {
	knows := fmt.Sprintf("Four hostile clients have addresses of their own. Without is the same crowd %s, in a run right before or after.", a.company())
	if a.binds() {
		knows += " The clients bring to three of the four servers what binds to them: the peer's cookie, or this policy's stamp in a made-up token."
	}
	return knows
}

// company is what comes beside the crowd without the attack.
func (a attack) company() string {
	if a.pages == 0 {
		return "and nobody else"
	}
	return "and the same pages of the same clients, which come in full wherever the peer sends them" +
		" (a server builds an aborted page to its end, so that both take as much of it)"
}

// attacked lets a peer do a work with its attack and without, one right after the other. Which is the first changes with the seed.
func (b *bench) attacked(ctx context.Context, w *work, p peer, seed uint64) (n numbers, err error) {
	calm := *w
	calm.attack = w.attack.without()
	works, got := []*work{w, &calm}, make([]numbers, 2)
	for turn := range uint64(len(works)) {
		i := (seed + turn) % uint64(len(works))
		if got[i], err = b.run(ctx, works[i], p, seed); err != nil {
			return n, err
		}
	}
	n, without := got[0], got[1]
	n.Lag = max(n.Lag, without.Lag)
	n.Without = &calmNumbers{Ready99: without.Ready99, Failed: without.Failed, Hostile: without.Hostile}
	return n, nil
}

// foe is all hostile clients of a run.
type foe struct {
	*run
	attack
	addrs []netip.Addr
	known []binding       // of the servers that they keep to
	costs []time.Duration // of their pages
}

// binding is what a request brings to come to a server: what a page of that server has left with a browser.
type binding struct {
	id      string
	cookies []*http.Cookie
}

// newFoe lets the hostile clients find out what they need.
func (r *run) newFoe(ctx context.Context) (*foe, error) {
	f := &foe{run: r, attack: r.work.attack}
	for i := range foes {
		// Not one of the crowd, and each in a net of its own.
		f.addrs = append(f.addrs, netip.AddrFrom4([4]byte{127, byte(251 + i), 0, 1}))
	}
	rnd := rand.New(rand.NewPCG(r.seed, 3))
	for range int(f.pages * (r.warmUp + r.measured).Seconds()) {
		f.costs = append(f.costs, r.work.draw(rnd).cost)
	}
	if !f.binds() {
		return f, nil
	}
	return f, f.learn(ctx)
}

// learn asks for pages until what binds to all servers but one is known.
func (f *foe) learn(ctx context.Context) error {
	seen := map[string]bool{}
	for i := 0; i < mostLearned && len(seen) < len(f.servers)-1; i++ {
		v := newVisitor(f.addrs[i%foes], true)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.front.enter(0)+"/app?visit=learning", nil)
		if err != nil {
			return err
		}
		header, token, err := v.ask(req)
		if err != nil {
			return fmt.Errorf("what binds to servers: %w", err)
		}
		server := header.Get(serverHeader)
		if seen[server] {
			continue
		}
		seen[server] = true
		id, err := idInToken(token)
		if err != nil {
			return err
		}
		f.known = append(f.known, binding{id, v.jar.Cookies(req.URL)})
	}
	return nil
}

// fight attacks until all leave.
func (f *foe) fight(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	for i := range f.held {
		all.Go(func() { f.hold(ctx, i) })
	}
	all.Go(func() { f.each(ctx, f.pages, len(f.costs), f.page) })
	all.Go(func() { f.each(ctx, f.errors, int(f.errors*(f.warmUp+f.measured).Seconds()), f.fail) })
	select {
	case <-f.leave:
	case <-ctx.Done():
	}
	stop()
	all.Wait()
}

// each does something so many times, at a steady rate, and returns when all is done.
func (f *foe) each(ctx context.Context, rate float64, count int, do func(ctx context.Context, i int)) {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range count {
		at := f.begun.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		if sleep(ctx, time.Until(at)) != nil {
			return
		}
		all.Go(func() { do(ctx, i) })
	}
}

// hold keeps a request whose body never comes in full.
func (f *foe) hold(ctx context.Context, i int) {
	// They come one after the other.
	wait := time.Duration(i) * f.warmUp / time.Duration(2*f.held)
	for ctx.Err() == nil {
		if sleep(ctx, wait) != nil {
			return
		}
		wait = dripEvery
		conn, err := f.send(ctx, i, 0, "visit="+hostileVisit, "Content-Length: 1000")
		for err == nil && sleep(ctx, dripEvery) == nil {
			_, err = conn.Write([]byte("x"))
		}
		if conn != nil {
			conn.Close()
		}
	}
}

// page asks for a page, and does not wait for it if the attack is that.
func (f *foe) page(ctx context.Context, i int) {
	conn, err := f.send(ctx, i, f.costs[i], fmt.Sprintf("cost=%d&visit=%s", f.costs[i], hostileVisit), "Connection: close")
	if err != nil {
		return
	}
	defer conn.Close()
	if f.abort {
		_ = sleep(ctx, givenUpAfter)
		_ = conn.SetLinger(0)
		return
	}
	_, _ = io.Copy(io.Discard, conn)
}

// fail asks for what any server answers with 500.
func (f *foe) fail(ctx context.Context, i int) {
	conn, err := f.send(ctx, i, 0, failingQuery, "Connection: close")
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.Copy(io.Discard, conn)
}

// send sends the head of a request from one of the addresses, bound to one of the known servers.
func (f *foe) send(ctx context.Context, i int, cost time.Duration, query, field string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: f.addrs[i%foes].AsSlice()}}
	at := f.front.enter(cost)
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.TCPConn)
	// What is waited for ends with the attack.
	context.AfterFunc(ctx, func() { conn.Close() })
	head := []string{"Host: " + at, field}
	if len(f.known) > 0 {
		b := f.known[i%len(f.known)]
		query += "&bokeh-token=" + madeUpToken(b.id)
		for _, c := range b.cookies {
			head = append(head, "Cookie: "+c.Name+"="+c.Value)
		}
	}
	_, err = fmt.Fprintf(conn, "GET /app?%s HTTP/1.1\r\n%s\r\n\r\n", query, strings.Join(head, "\r\n"))
	return conn, err
}
