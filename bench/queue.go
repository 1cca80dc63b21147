// This file holds the central queue: no proxy, and each visitor goes straight to the server that has time for it first.

package main

import (
	"sync"
	"time"
)

// queue has no proxy, nobody waits while a server is idle, and nobody is overtaken. As it knows what each
// page costs, nobody has to stand in a line until a server is free: it is known before which one that will be.
type queue struct {
	servers map[string]*server

	mu   sync.Mutex           // guards all below
	free map[string]time.Time // when the servers that are up have done what was given to them
}

func startQueue(r *run, s site) (front, error) {
	q := &queue{servers: map[string]*server{}, free: map[string]time.Time{}}
	for _, server := range r.servers {
		q.servers[server.addr] = server
	}
	for _, addr := range s.servers {
		q.tell(addr, true)
	}
	return q, nil
}

// enter returns the server that will have built the page first.
func (q *queue) enter(cost time.Duration) (best string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var first time.Time
	for addr, free := range q.free {
		s := q.servers[addr]
		for _, t := range []time.Time{time.Now(), s.busyUntil()} {
			if free.Before(t) {
				free = t
			}
		}
		done := free.Add(s.takes(cost))
		if best == "" || done.Before(first) {
			best, first = addr, done
		}
	}
	if best != "" {
		q.free[best] = first
	}
	return best
}

func (q *queue) tell(addr string, up bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if up {
		q.free[addr] = time.Now()
	} else {
		delete(q.free, addr)
	}
}

func (q *queue) lost(addr string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, up := q.free[addr]
	return !up
}

func (q *queue) join(addr string) error {
	q.tell(addr, true)
	return nil
}

func (q *queue) pid() int { return 0 }
func (q *queue) stop()    {}
