// This file holds a crowd: people who visit and click all along while something happens to the fleet.

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// crowd is people who visit, each for some clicks, and then visit again.
type crowd struct {
	f    *fleet
	quit chan struct{}
	wg   sync.WaitGroup

	busy sync.RWMutex // read-locked by whoever loads or clicks: connections are cut between clicks
	cuts atomic.Int64 // how often they were

	mu     sync.Mutex // guards all below
	visits int
	failed int // pages
	lost   int // counters
	closed int // sockets, by others than us
}

// What can go wrong in a visit. Anything else is a counter that is lost.
var (
	errPage   = errors.New("the page failed")
	errClosed = errors.New("the websocket was closed")
)

// gather lets n people visit until they are dispersed.
func (f *fleet) gather(n int) *crowd {
	c := &crowd{f: f, quit: make(chan struct{})}
	for i := range n {
		c.wg.Go(func() {
			b := newTab(f.t)
			defer b.close()
			for {
				select {
				case <-c.quit:
					return
				default:
					c.visit(b, 4+2*i)
				}
			}
		})
	}
	return c
}

// disperse lets everybody end the visit at hand.
func (c *crowd) disperse() {
	close(c.quit)
	c.wg.Wait()
}

// awaitVisits waits until so many more visits have ended.
func (c *crowd) awaitVisits(n int) {
	ended := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.visits
	}
	want := ended() + n
	c.f.await(func() error {
		if got := ended(); got < want {
			return fmt.Errorf("%d visits have ended, want %d", got, want)
		}
		return nil
	})
}

// cut cuts everybody's connections, between clicks. BokehJS reconnects at once.
func (c *crowd) cut() {
	time.Sleep(time.Second) // so that everybody is at work
	c.busy.Lock()
	defer c.busy.Unlock()
	c.cuts.Add(1)
	c.f.front.cut()
}

func (c *crowd) String() string {
	return fmt.Sprintf("%d visits, %d failed pages, %d lost counters, %d sockets closed", c.visits, c.failed, c.lost, c.closed)
}

// visit is one visit in somebody's tab: a page, its websocket, and some clicks, each of which must be counted.
func (c *crowd) visit(b *tab, clicks int) {
	err := c.use(b, clicks)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.visits++
	switch {
	case err == nil:
		return
	case errors.Is(err, errPage):
		c.failed++
	case errors.Is(err, errClosed):
		c.closed++
	default:
		c.lost++
	}
	c.f.t.Log("a visitor's trouble: ", err, b.story())
}

// pause is how long people look at what they see before they do more. Nobody is cut off before: what a
// page says while its websocket is lost may reach the server after the next one is open, which Bokeh
// then answers before its ACK, and BokehJS gives up ("First message was not an ACK").
const pause = 400 * time.Millisecond

// use opens the app and clicks, and says what went wrong first.
func (c *crowd) use(b *tab, clicks int) error {
	seen, err := c.open(b)
	if err != nil {
		return err
	}
	for i := range clicks {
		if seen, err = c.click(b, i, seen); err != nil {
			return err
		}
	}
	return nil
}

// open opens the app and says how many cuts there had been.
func (c *crowd) open(b *tab) (seen int64, err error) {
	c.busy.RLock()
	defer c.busy.RUnlock()
	seen = c.cuts.Load()
	ctx, cancel := stack.Patience(b.ctx, patience)
	defer cancel()
	res, err := chromedp.RunResponse(ctx, chromedp.Navigate(c.f.url(c.f.plan.page)))
	if err != nil || res.Status != http.StatusOK {
		return seen, fmt.Errorf("%w: %v", errPage, err)
	}
	if !b.holds(library) || !b.becomes(`model("count") != null && clickable() != null`) {
		return seen, fmt.Errorf("%w: its document does not come", errPage)
	}
	b.keepSecrets()
	if !b.holds(`model("count").marked = true`) {
		return seen, errPage
	}
	time.Sleep(pause)
	return seen, nil
}

// click clicks when the counter must show so many clicks already. After a cut the document is first
// brought again.
func (c *crowd) click(b *tab, before int, seen int64) (int64, error) {
	c.busy.RLock()
	defer c.busy.RUnlock()
	if cuts := c.cuts.Load(); cuts != seen {
		seen = cuts
		if !b.becomes(broughtAgain) {
			return seen, errors.New("the document is not brought again")
		}
		if !b.holds(`model("count").marked = true`) || !b.holds(fmt.Sprintf(`model("count").text == "%d"`, before)) {
			return seen, fmt.Errorf("after a cut the counter does not show %d any more", before)
		}
	}
	if !b.holds(`model("count")?.marked === true`) {
		return seen, errClosed
	}
	if !b.holds(`clickable().click() == null`) || !b.becomes(fmt.Sprintf(`model("count")?.text == "%d"`, before+1)) {
		return seen, fmt.Errorf("the counter does not show %d", before+1)
	}
	time.Sleep(pause)
	return seen, nil
}

// story returns what the page has said, one line after the other.
func (b *tab) story() string {
	ctx, cancel := stack.Patience(b.ctx, patience)
	defer cancel()
	var lines []string
	result, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](`[...(window.said ?? []), JSON.stringify(window.model && {count: model("count")?.text, marked: model("count")?.marked, clickable: clickable() != null}) ?? ""]`))
	if err == nil {
		err = json.Unmarshal(result, &lines)
	}
	return fmt.Sprint(err, "\n", strings.Join(lines, "\n"))
}

// holds says whether a JavaScript expression is true.
func (b *tab) holds(js string) bool {
	ctx, cancel := stack.Patience(b.ctx, patience)
	defer cancel()
	var yes bool
	result, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](js))
	return err == nil && json.Unmarshal(result, &yes) == nil && yes
}

// becomes says whether a JavaScript expression becomes true.
func (b *tab) becomes(js string) bool { return b.poll(js, patience/3) == nil }
