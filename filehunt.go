// This file holds the hunt for a file that the first server does not have, as while servers with two versions run.

package caddybokeh

import (
	"context"
	"hash/maphash"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-bokeh/caddy-bokeh/internal/contentcache"
)

const (
	// maxHunts is for how many files of a handler, at a time, further servers are asked. Each asks one server at a time.
	maxHunts = 8

	// maxNowhere is of how many files it is remembered that no server has them.
	maxNowhere = 1024
)

// hunts are those of a handler.
type hunts struct {
	slots chan struct{}
	seed  maphash.Seed

	mu      sync.Mutex           // guards all below
	nowhere map[uint64]time.Time // the files that no server has, by their hash, and until when that is believed
}

func newHunts() *hunts {
	return &hunts{slots: make(chan struct{}, maxHunts), seed: maphash.MakeSeed(), nowhere: make(map[uint64]time.Time)}
}

// begin waits for a slot, and says whether it has one; it must be given back then.
func (hs *hunts) begin(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, huntTimeout)
	defer cancel()
	select {
	case hs.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (hs *hunts) end() { <-hs.slots }

// failed takes note that no server has a file.
func (hs *hunts) failed(ask fileAsk) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if len(hs.nowhere) >= maxNowhere {
		clear(hs.nowhere) // to ask once more is no harm
	}
	hs.nowhere[maphash.Comparable(hs.seed, ask)] = time.Now().Add(nowhereTTL)
}

// isNowhere says whether it is known that no server has a file.
func (hs *hunts) isNowhere(ask fileAsk) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return time.Now().Before(hs.nowhere[maphash.Comparable(hs.seed, ask)])
}

// hunt asks the upstreams that have not been asked, one after another, and keeps the file of the first that has it.
func (f *Files) hunt(r *http.Request, next caddyhttp.Handler, ask fileAsk, turn *contentcache.Turn, asked *askedUpstreams) *contentcache.File {
	if !asked.left || f.hunts.isNowhere(ask) || !f.hunts.begin(turn.Context()) {
		return turn.File()
	}
	defer f.hunts.end()
	if f.hunts.isNowhere(ask) { // by now
		return nil
	}
	all := true // have said that they do not have it
	for asked.left && turn.Context().Err() == nil {
		rec := newFileRecorder(nil, ask, turn)
		_ = rec.record(next, fileRequest(r, turn.Context(), asked)) // it was about this server alone
		if rec.isRight() {
			if header, may := rec.kept(); may && !asked.vary {
				return turn.Keep(rec.body, header)
			}
		}
		all = all && rec.isWrong()
		rec.drop()
	}
	if all && turn.Context().Err() == nil {
		f.hunts.failed(ask)
	}
	return turn.File()
}

// askedKey is the key of askedUpstreams in the context of a request.
type askedKey struct{}

// askedUpstreams are those that were asked for a file. The policy writes them down and passes over them; the handler
// reads when that is over.
type askedUpstreams struct {
	members []*member
	left    bool // the last one asked left another one that could be
	vary    bool // others may come to other upstreams with the same address
}

// add takes note that m is asked, and whether another one could be.
func (a *askedUpstreams) add(m *member, left bool) {
	a.members = append(a.members, m)
	a.left = left
}

// has says whether m was asked.
func (a *askedUpstreams) has(m *member) bool { return a != nil && slices.Contains(a.members, m) }
