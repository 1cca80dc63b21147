// This file holds a simulated Bokeh server: one thread, and the sessions, tokens and messages of a real one.

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// All times are a fifth of what they are with a real server whose pages take 100 ms.
const (
	// scale is by how much all is faster.
	scale = 5
	// unusedLifetime and checkUnused are Bokeh's defaults, 15 s and 17 s.
	unusedLifetime = 15 * time.Second / scale
	checkUnused    = 17 * time.Second / scale
	// messageCost is what the thread needs for a handshake, and for a document that is pulled.
	messageCost = time.Millisecond / scale
)

// serverHeader is where a page says which server has built it. Who looks closely can tell by a cookie or an id.
const serverHeader = "Served-By"

// server is a place for a Bokeh server: its address, and what is measured of it. It may die and come back.
type server struct {
	addr     string
	pace     float64 // how fast its thread is
	runs     *runs
	building gauge // pages that wait for the thread or have it
	sessions gauge
	fails    atomic.Bool // answers 500 at once

	mu   sync.Mutex
	life *life // nil while it is dead
}

// runs counts how often the app ran for each visit.
type runs struct {
	mu sync.Mutex
	of map[string]int
}

func (r *runs) add(visit string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of[visit]++
}

// start makes the server listen.
func (s *server) start() error {
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(context.Background())
	l := &life{server: s, ctx: ctx, end: end, docs: map[string]*doc{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{app}", l.page)
	mux.HandleFunc("GET /{app}/ws", l.socket)
	l.http = &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	s.mu.Lock()
	s.life = l
	s.mu.Unlock()
	go func() { _ = l.http.Serve(ln) }()
	go l.check()
	return nil
}

// takes returns how long a page takes here.
func (s *server) takes(cost time.Duration) time.Duration {
	return time.Duration(float64(cost) / s.pace)
}

// up says whether the server lives.
func (s *server) up() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life != nil
}

// busyUntil returns when the thread is free.
func (s *server) busyUntil() time.Time {
	s.mu.Lock()
	l := s.life
	s.mu.Unlock()
	if l == nil {
		return time.Time{}
	}
	return l.thread.busyUntil()
}

// kill ends the server as SIGKILL would: its sessions are gone, connections are cut, others refused.
func (s *server) kill() {
	s.mu.Lock()
	l := s.life
	s.life = nil
	s.mu.Unlock()
	if l == nil {
		return
	}
	l.end()
	l.http.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	s.sessions.add(-len(l.docs))
	l.docs = nil
}

// life is a server from its start to its death.
type life struct {
	*server
	thread thread
	http   *http.Server
	ctx    context.Context
	end    context.CancelFunc

	mu   sync.Mutex
	docs map[string]*doc // by session id; nil when dead
}

// doc is a session's document.
type doc struct {
	building bool
	sockets  int
	unused   time.Time // since when there is no socket
}

func (l *life) page(w http.ResponseWriter, r *http.Request) {
	// As Tornado, which runs no handler before it has the body.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	if l.fails.Load() || r.URL.Query().Has(failingQuery) {
		http.Error(w, "out of order", http.StatusInternalServerError)
		return
	}
	id := sessionID(r)
	if l.open(id, r) != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "text/html")
	w.Header().Set(serverHeader, l.addr)
	fmt.Fprintf(w, pageHTML, newToken(id, r))
}

// open builds a session unless it is there. If its building has not ended, what is asked of the thread after
// this comes after that.
func (l *life) open(id string, r *http.Request) error {
	l.mu.Lock()
	known := l.docs[id]
	if known == nil && l.docs != nil {
		l.docs[id] = &doc{building: true}
		l.sessions.add(1)
	}
	l.mu.Unlock()
	if known != nil {
		return l.thread.work(l.ctx, 0)
	}
	q := r.URL.Query()
	cost, _ := strconv.ParseInt(q.Get("cost"), 10, 64)
	l.runs.add(q.Get("visit"))
	l.building.add(1)
	defer l.building.add(-1)
	defer l.built(id)
	return l.thread.work(l.ctx, l.takes(time.Duration(cost)))
}

// built takes note that a session's document is there.
func (l *life) built(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.docs[id]; d != nil {
		d.building, d.unused = false, time.Now()
	}
}

func (l *life) socket(w http.ResponseWriter, r *http.Request) {
	id, err := idOfToken(r)
	if err != nil || l.fails.Load() {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	if l.thread.work(l.ctx, messageCost) != nil {
		panic(http.ErrAbortHandler)
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"bokeh"}, InsecureSkipVerify: true})
	if err != nil {
		return
	}
	// At the end of a life it is cut.
	defer c.CloseNow()
	if l.open(id, r) != nil {
		return
	}
	l.connect(id, 1)
	defer l.connect(id, -1)
	l.talk(socket{c})
}

// talk answers messages until the socket is closed.
func (l *life) talk(s socket) {
	if s.send(l.ctx, header{ID: "0", Type: "ACK"}, "{}") != nil {
		return
	}
	for {
		h, _, err := s.receive(l.ctx)
		if err != nil {
			return
		}
		if h.Type != "PULL-DOC-REQ" {
			continue
		}
		if l.thread.work(l.ctx, messageCost) != nil {
			return
		}
		if s.send(l.ctx, header{ID: "1", Type: "PULL-DOC-REPLY", To: h.ID}, `{"doc":{"roots":[]}}`) != nil {
			return
		}
	}
}

// connect counts a socket of a session.
func (l *life) connect(id string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d := l.docs[id]; d != nil {
		d.sockets += n
		d.unused = time.Now()
	}
}

// check discards unused sessions, from time to time.
func (l *life) check() {
	for sleep(l.ctx, checkUnused) == nil {
		l.mu.Lock()
		for id, d := range l.docs {
			if !d.building && d.sockets == 0 && time.Since(d.unused) > unusedLifetime {
				delete(l.docs, id)
				l.sessions.add(-1)
			}
		}
		l.mu.Unlock()
	}
}
