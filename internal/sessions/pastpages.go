// This file holds the pages that nobody waits for any more, and that a server may still be at.

package sessions

import (
	"sync"
	"sync/atomic"
	"time"
)

// PastPages are requests for pages that are over, and weigh for a while. A server goes on with what it has begun.
type PastPages struct {
	n atomic.Int64 // how many weigh

	mu  sync.Mutex        // guards all below, and the change of n
	all []*pastPage       // in the order in which they ended; some may weigh no more
	of  map[Key]*pastPage // those that weigh: of a session only the last, for a server builds it once
}

// pastPage is one of them.
type pastPage struct {
	session Key
	ended   time.Duration // on the table's clock
	over    bool          // weighs no more
}

// Count returns how many weigh.
func (p *PastPages) Count() int64 { return p.n.Load() }

// Add takes note of a page of a session that has ended, and how long it weighs.
func (p *PastPages) Add(k Key, now, weighs time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before := p.of[k]; before != nil {
		p.end(before)
	}
	if p.of == nil {
		p.of = make(map[Key]*pastPage)
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

// AskedAgain takes note of a page that is asked for once more: a server builds a session once.
func (p *PastPages) AskedAgain(k Key) {
	if p.n.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if before := p.of[k]; before != nil {
		p.end(before)
	}
}

// Outlived takes note of an answer to what was asked for at a time: what had ended before that is done, for a server
// takes one after the other.
func (p *PastPages) Outlived(asked time.Duration) {
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
func (p *PastPages) end(page *pastPage) {
	if page.over {
		return
	}
	page.over = true
	delete(p.of, page.session)
	p.n.Add(-1)
}

// LeftWork returns how long a page may still keep u busy whose visitor has gone, by when it was begun and how many pages were ahead of it: until all that were asked for before
// and this one have taken what they usually do; and at least for as long again as it has gone without an answer, for then
// nobody knows.
func (t *Table) LeftWork(u *Upstream, of App, begun time.Duration, ahead int64, now time.Duration) time.Duration {
	done := begun + time.Duration(ahead+1)*t.usually(of, u)
	return min(max(done-now, now-begun), FailedPageWeight)
}

// usually returns how long a page of an app takes, or one of u where none of that app has come: clients can make apps up.
func (t *Table) usually(of App, u *Upstream) time.Duration {
	return time.Duration(t.pageTimes[of%App(len(t.pageTimes))].or(u.History.pageTime.or(int64(UnknownPage))))
}
