// This file holds the pages that nobody waits for any more, and that a server may still be at.

package caddybokeh

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// failedPageWeight is how long a page counts as being built that a server has failed at, when upstreams are compared: one
	// that fails fast must not look idle. It bounds as well how long one counts whose visitor has gone.
	failedPageWeight = 10 * time.Second

	// unknownPage is what a page is taken to take as long as none of its app has come.
	unknownPage = time.Second
)

// pastPages are requests for pages that are over, and weigh for a while. A server goes on with what it has begun.
type pastPages struct {
	n atomic.Int64 // how many weigh

	mu  sync.Mutex               // guards all below, and the change of n
	all []*pastPage              // in the order in which they ended; some may weigh no more
	of  map[sessionKey]*pastPage // those that weigh: of a session only the last, for a server builds it once
}

// pastPage is one of them.
type pastPage struct {
	session sessionKey
	ended   time.Duration // on the table's clock
	over    bool          // weighs no more
}

// add takes note of a page of a session that has ended, and how long it weighs.
func (p *pastPages) add(k sessionKey, now, weighs time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before := p.of[k]; before != nil {
		p.end(before)
	}
	if p.of == nil {
		p.of = make(map[sessionKey]*pastPage)
	}
	page := &pastPage{session: k, ended: now}
	p.all = append(p.all, page)
	p.of[k] = page
	p.n.Add(1)
	time.AfterFunc(weighs, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.end(page)
		for len(p.all) > 0 && p.all[0].over {
			p.all = p.all[1:]
		}
	})
}

// again takes note of a page that is asked for once more: a server builds a session once.
func (p *pastPages) again(k sessionKey) {
	if p.n.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if before := p.of[k]; before != nil {
		p.end(before)
	}
}

// outlived takes note of an answer to what was asked for at a time: what had ended before that is done, for a server
// takes one after the other.
func (p *pastPages) outlived(asked time.Duration) {
	if p.n.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.all) > 0 && p.all[0].ended <= asked {
		p.end(p.all[0])
		p.all = p.all[1:]
	}
}

// end takes the weight off a page. p.mu is locked.
func (p *pastPages) end(page *pastPage) {
	if page.over {
		return
	}
	page.over = true
	delete(p.of, page.session)
	p.n.Add(-1)
}

// leftWork returns how long a page may still keep u busy whose visitor has gone, by when it was begun and how many pages were ahead of it: until all that were asked for before
// and this one have taken what they usually do; and at least for as long again as it has gone without an answer, for then
// nobody knows.
func (t *table) leftWork(u *upstream, of app, begun time.Duration, ahead int64, now time.Duration) time.Duration {
	done := begun + time.Duration(ahead+1)*t.usually(of, u)
	return min(max(done-now, now-begun), failedPageWeight)
}

// usually returns how long a page of an app takes, or one of u where none of that app has come: clients can make apps up.
func (t *table) usually(of app, u *upstream) time.Duration {
	return time.Duration(t.pageTimes[of%app(len(t.pageTimes))].or(u.past.pageTime.or(int64(unknownPage))))
}
