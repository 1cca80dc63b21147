// This file holds one run: a peer before fresh servers, with a work of which every visit is known beforehand.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// soon is when a server that joins must have found its share, a second at the pace of real pages.
const soon = time.Second / scale

// starting is held by the run that starts: a process that begins holds all sockets of this one for a moment, and the
// ports that another run looks at seem in use.
var starting sync.Mutex

// bench is what all runs share.
type bench struct {
	root     string // the project's folder
	caddy    string // the program
	warmUp   time.Duration
	measured time.Duration
}

// run is a run that is under way.
type run struct {
	bench   // with the times of this work
	work    *work
	seed    uint64
	dir     string // for configs and the like
	front   front
	servers []*server
	runs    *runs
	begun   time.Time
	leave   chan struct{} // closed when all leave
}

// run runs a peer once.
func (b *bench) run(ctx context.Context, w *work, p peer, seed uint64) (numbers, error) {
	r := &run{bench: *b, work: w, seed: seed, runs: &runs{of: map[string]int{}}, leave: make(chan struct{})}
	r.warmUp, r.measured = w.span(b.warmUp), w.span(b.measured)
	starting.Lock()
	end, err := r.start(ctx, p)
	starting.Unlock()
	defer end()
	if err != nil {
		return numbers{}, err
	}
	foe, err := r.newFoe(ctx)
	if err != nil {
		return numbers{}, err
	}
	arrivals := w.arrivals(seed, r.warmUp+r.measured)
	outcomes := make([]outcome, len(arrivals))
	before := r.used()
	r.begun = time.Now().Add(50 * time.Millisecond)
	var all sync.WaitGroup
	all.Go(func() { r.receive(ctx, arrivals, outcomes) })
	all.Go(func() { foe.fight(ctx) })
	n, err := r.measure(ctx)
	close(r.leave)
	all.Wait()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return numbers{}, err
	}
	// Of the whole run: a peer that lets visits wait would have less to do while it is measured.
	n.CPU = (r.used().cpu - before.cpu) / float64(len(arrivals)) * 1000
	if w.real {
		if n.Sessions, err = r.readRuns(); err != nil {
			return numbers{}, err
		}
	}
	for i, a := range arrivals {
		if a.at >= r.warmUp {
			n.add(outcomes[i], r.runs.of[strconv.Itoa(i)])
		}
	}
	n.Hostile = r.runs.of[hostileVisit]
	n.finish()
	return n, nil
}

// start starts servers and the peer.
func (r *run) start(ctx context.Context, p peer) (end func(), err error) {
	var ends []func()
	end = func() {
		for _, f := range ends {
			f()
		}
	}
	paces := r.work.speeds()
	addrs, err := freeAddrs(len(paces))
	if err != nil {
		return end, err
	}
	if r.dir, err = os.MkdirTemp("", "bench-peers-"); err != nil {
		return end, err
	}
	ends = append(ends, func() { _ = os.RemoveAll(r.dir) })
	startServers := r.startSimulated
	if r.work.real {
		startServers = r.startReal
	}
	endServers, err := startServers(ctx, addrs)
	ends = append([]func(){endServers}, ends...)
	if err != nil {
		return end, err
	}
	there := len(addrs)
	if r.work.late {
		there--
	}
	r.front, err = p.start(r, site{dir: r.dir, servers: addrs[:there], late: addrs[there:]})
	if err != nil {
		return end, fmt.Errorf("%s: %w", p.name, err)
	}
	ends = append([]func(){r.front.stop}, ends...)
	return end, nil
}

// startSimulated starts simulated servers.
func (r *run) startSimulated(_ context.Context, addrs []string) (end func(), err error) {
	end = func() {
		for _, s := range r.servers {
			s.kill()
		}
	}
	for i, addr := range addrs {
		s := &server{addr: addr, pace: r.work.speeds()[i], runs: r.runs}
		if err := s.start(); err != nil {
			return end, err
		}
		r.servers = append(r.servers, s)
	}
	return end, nil
}

// receive lets all visitors in, each at its time, and returns when the last one has left.
func (r *run) receive(ctx context.Context, arrivals []arrival, outcomes []outcome) {
	visitors := r.work.visitors(arrivals, r.seed)
	var all sync.WaitGroup
	defer all.Wait()
	for i, a := range arrivals {
		at := r.begun.Add(a.at)
		if sleep(ctx, time.Until(at)) != nil {
			return
		}
		v := visit{
			visitor: visitors[a.who],
			to:      r.front,
			app:     a.app,
			cost:    a.cost,
			query:   a.query(strconv.Itoa(i)),
			again:   a.query("again"),
			stay:    a.stay,
			leave:   r.leave,
		}
		all.Go(func() { outcomes[i] = v.begin(ctx, at) })
	}
}

// measure follows the clock of the run: warm-up, events, end.
func (r *run) measure(ctx context.Context) (n numbers, err error) {
	from := r.begun.Add(r.warmUp)
	if err := sleep(ctx, time.Until(from)); err != nil {
		return n, err
	}
	n.before = r.look()
	var all sync.WaitGroup
	defer all.Wait()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	all.Go(func() { n.Lag = lag(watching).Seconds() })
	var happened error
	all.Go(func() { happened = r.happen(ctx, from) })
	for l, after := range map[*look]time.Duration{&n.early: soon, &n.late: soon + time.Second} {
		all.Go(func() {
			if sleep(ctx, time.Until(from.Add(after))) == nil {
				*l = r.look()
			}
		})
	}
	if err := sleep(ctx, time.Until(r.begun.Add(r.warmUp+r.measured))); err != nil {
		return n, err
	}
	n.after = r.look()
	for _, s := range r.servers {
		n.up = append(n.up, r.work.real || s.up())
	}
	stop()
	all.Wait()
	return n, happened
}

// happen does to the servers what the work says.
func (r *run) happen(ctx context.Context, from time.Time) error {
	if r.work.late {
		if err := r.front.join(r.servers[len(r.servers)-1].addr); err != nil {
			return err
		}
	}
	first := r.servers[0]
	for _, e := range r.work.end {
		if err := sleep(ctx, time.Until(from.Add(e.after))); err != nil {
			return err
		}
		switch e.what {
		case dies:
			r.front.tell(first.addr, false)
			first.kill()
		case comesBack:
			if err := first.start(); err != nil {
				return err
			}
			r.front.tell(first.addr, true)
		case beginsToFail:
			r.front.tell(first.addr, false)
			first.fails.Store(true)
		}
	}
	return nil
}

// look is what is seen at one moment.
type look struct {
	building []float64 // sums of each server
	sessions []float64
}

func (r *run) look() (l look) {
	for _, s := range r.servers {
		l.building = append(l.building, s.building.sum())
		l.sessions = append(l.sessions, s.sessions.sum())
	}
	return l
}

// used is what the peer has used until now, if it is a process of its own.
func (r *run) used() (u usage) {
	if pid := r.front.pid(); pid != 0 {
		u, _ = used(pid)
	}
	return u
}
