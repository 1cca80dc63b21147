// This file tests the choice for new sessions in a simulation: one-threaded servers in synthetic time, behind the real Select.

package caddybokeh

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
)

// crowd is a stream of visitors to a fleet of one-threaded servers.
type crowd struct {
	load   float64                        // of the fleet, 1 is all that it can do
	paces  []float64                      // of the servers; 1 builds a page of a second in a second
	nodes  int                            // that each send on a share of the visits, and see only their own
	page   func(*rand.Rand) time.Duration // what a page costs, a second on average
	visits int
	seed   uint64
}

// visitor is one of them.
type visitor struct {
	at, page, stay time.Duration
	node           int
}

// A session lives for a hundred pages, on average.
const crowdStay = 100 * time.Second

// visitors returns all of them, in the order in which they come.
func (c crowd) visitors() []visitor {
	rnd := rand.New(rand.NewPCG(c.seed, 0))
	capacity := 0.0
	for _, p := range c.paces {
		capacity += p
	}
	all := make([]visitor, c.visits)
	at := 0.0
	for i := range all {
		at += rnd.ExpFloat64() / (c.load * capacity)
		all[i] = visitor{
			at:   time.Duration(at * float64(time.Second)),
			page: c.page(rnd),
			stay: time.Duration(rnd.ExpFloat64() * float64(crowdStay)),
			node: rnd.IntN(c.nodes),
		}
	}
	return all
}

// thread is what a server builds its pages on, one after the other.
type thread struct {
	pace float64

	mu   sync.Mutex // guards free
	free time.Time
}

// build takes as long as a page does that costs d, and those before it.
func (th *thread) build(d time.Duration) {
	th.mu.Lock()
	start := time.Now()
	if th.free.After(start) {
		start = th.free
	}
	th.free = start.Add(time.Duration(float64(d) / th.pace))
	until := th.free
	th.mu.Unlock()
	time.Sleep(time.Until(until))
}

// simulated is what became of a crowd.
type simulated struct {
	waits []time.Duration // until ready
	peak  float64         // the most sessions of a server over the mean, at the end
}

// p99 returns the 99th percentile of the time until ready, without those who came while the fleet filled up.
func (o simulated) p99() float64 {
	settled := slices.Clone(o.waits[len(o.waits)/5:])
	slices.Sort(settled)
	return settled[len(settled)*99/100].Seconds()
}

// behind lets the crowd visit through nodes with the given policy.
func (c crowd) behind(t *testing.T, pick func(s *Selection, pool reverseproxy.UpstreamPool, r *request) string) (o simulated) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(len(c.paces))
		threads := make(map[string]*thread)
		for i, u := range pool {
			threads[u.Dial] = &thread{pace: c.paces[i]}
		}
		nodes := make([]*Selection, c.nodes)
		for i := range nodes {
			nodes[i] = newTestSelection(pool)
		}
		all := c.visitors()
		o.waits = make([]time.Duration, len(all))
		start := time.Now()
		var gone sync.WaitGroup
		for i, v := range all {
			time.Sleep(time.Until(start.Add(v.at)))
			gone.Go(func() {
				s := nodes[v.node]
				page := newRequest(s, "/app")
				addr := pick(s, pool, page)
				threads[addr].build(v.page)
				o.waits[i] = time.Since(start) - v.at
				page.answer(http.StatusOK)
				synctest.Wait()
				socket := newSocket(s, bokehtest.Token(t, page.stamp(), nil))
				if at, _ := socket.choose(pool); at != addr {
					t.Errorf("a page of %s, and its socket at %s", addr, at)
				}
				time.Sleep(v.stay)
				socket.answer(http.StatusSwitchingProtocols)
			})
		}
		sum, most := 0.0, 0.0
		for _, u := range pool {
			n := 0.0
			for _, s := range nodes {
				n += float64(s.members.get(u.Dial).Slots.Sessions.Load())
			}
			sum += n
			most = max(most, n)
		}
		o.peak = most / sum * float64(len(pool))
		gone.Wait()
		time.Sleep(time.Minute) // until the sessions have ended
	})
	return o
}

// inOneQueue is the best that can be: the crowd waits for whichever server is idle next.
func (c crowd) inOneQueue() (o simulated) {
	free := make([]time.Duration, len(c.paces))
	for _, v := range c.visitors() {
		next := 0
		for i := range free {
			earlier := max(free[i], v.at) < max(free[next], v.at)
			if same := free[i] <= v.at && free[next] <= v.at; earlier || same && c.paces[i] > c.paces[next] {
				next = i
			}
		}
		free[next] = max(free[next], v.at) + time.Duration(v.page.Seconds()/c.paces[next]*float64(time.Second))
		o.waits = append(o.waits, free[next]-v.at)
	}
	return o
}

// usual pages vary by half; of heavy ones each tenth costs ten times as much as the others.
func usual(rnd *rand.Rand) time.Duration {
	sigma := math.Sqrt(math.Log(1.25))
	return time.Duration(math.Exp(rnd.NormFloat64()*sigma-sigma*sigma/2) * float64(time.Second))
}

func heavy(rnd *rand.Rand) time.Duration {
	if rnd.IntN(10) == 0 {
		return 10 * time.Second * 10 / 19
	}
	return time.Second * 10 / 19
}

// asIs picks as visitors get it.
func asIs(_ *Selection, pool reverseproxy.UpstreamPool, r *request) string {
	addr, _ := r.choose(pool)
	return addr
}

// byNumbers picks without having learned what a page takes.
func byNumbers(s *Selection, pool reverseproxy.UpstreamPool, r *request) string {
	for _, u := range pool {
		s.members.get(u.Dial).ForgetSlowness()
	}
	return asIs(s, pool, r)
}

// medianOf plays a crowd with several seeds.
func medianOf(c crowd, measure func(crowd) float64) float64 {
	var all []float64
	for c.seed = range uint64(3) {
		all = append(all, measure(c))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// Ready first: a new session waits hardly longer than in one queue before all servers, also where
// several nodes that do not hear of each other send visits, or pages are heavy. Sessions spread.
func TestReadyFirst(t *testing.T) {
	even, uneven := []float64{1, 1, 1, 1}, []float64{1.4, 1.4, 0.6, 0.6}
	for name, c := range map[string]struct {
		crowd
		p99, peak, worst float64 // at most: against one queue, and of sessions, in most crowds and in any
	}{
		"steady":      {crowd{load: 0.8, paces: even, nodes: 1, page: usual}, 1.4, 1.25, 1.25},
		"heavy pages": {crowd{load: 0.8, paces: even, nodes: 1, page: heavy}, 1.6, 1.25, 1.5},
		"two nodes":   {crowd{load: 0.8, paces: even, nodes: 2, page: usual}, 1.5, 1.25, 1.25},
		"eight nodes": {crowd{load: 0.8, paces: even, nodes: 8, page: usual}, 2.4, 1.25, 1.25},
		"uneven":      {crowd{load: 0.8, paces: uneven, nodes: 1, page: usual}, 1.4, 1.8, 1.8},
	} {
		c.visits = 1000
		var peaks []float64
		ratio := medianOf(c.crowd, func(c crowd) float64 {
			o := c.behind(t, asIs)
			peaks = append(peaks, o.peak)
			return o.p99() / c.inOneQueue().p99()
		})
		// Of one crowd with heavy pages it is chance: of 36 one had 1.31.
		slices.Sort(peaks)
		if peaks[len(peaks)/2] > c.peak || slices.Max(peaks) > c.worst {
			t.Errorf("%s: a server has %.2f times the sessions of the mean", name, peaks)
		}
		t.Logf("%s: p99 until ready is %.2f of one queue's", name, ratio)
		if ratio > c.p99 {
			t.Errorf("%s: p99 until ready is %.2f of one queue's", name, ratio)
		}
	}
}

// What a page takes is learned because it pays: where servers are uneven, at least a fifth of p99.
func TestLearningPays(t *testing.T) {
	c := crowd{load: 0.8, paces: []float64{1.4, 1.4, 0.6, 0.6}, nodes: 1, page: usual, visits: 1000}
	gain := medianOf(c, func(c crowd) float64 { return c.behind(t, asIs).p99() / c.behind(t, byNumbers).p99() })
	if gain > 0.8 {
		t.Errorf("p99 until ready is %.2f of what it is by numbers alone", gain)
	}
}

// Pages of unlike weight, as of an index and an app, do not make servers unlike: a monitor and a few visitors
// in the night, and in the morning everybody comes at once.
func TestUnlikePages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(4)
		s := newTestSelection(pool)
		threads := make(map[string]*thread)
		for _, u := range pool {
			threads[u.Dial] = &thread{pace: 1}
		}
		visit := func(path string, cost time.Duration) string {
			r := newRequest(s, path)
			addr, _ := r.choose(pool)
			threads[addr].build(cost)
			r.answer(http.StatusOK)
			return addr
		}
		for i := range 360 {
			visit("/", time.Millisecond)
			if i%90 == 50 {
				visit("/app", time.Second/2)
			}
			time.Sleep(10 * time.Second)
		}
		homes := make(chan string, 40)
		var all sync.WaitGroup
		for range cap(homes) {
			all.Go(func() { homes <- visit("/app", time.Second/2) })
			time.Sleep(25 * time.Millisecond)
		}
		all.Wait()
		close(homes)
		got := make(map[string]int)
		for addr := range homes {
			got[addr]++
		}
		for _, u := range pool {
			if n := got[u.Dial]; n < 8 || n > 12 {
				t.Errorf("40 visits to four servers that are alike go to %v", got)
				break
			}
		}
		time.Sleep(time.Minute)
	})
}

// One visitor alone cannot teach that a server is slow: only new sessions tell, and of each client one a second.
func TestLessons(t *testing.T) {
	for name, tc := range map[string]struct {
		client, query string
		most          int64 // of 30 slow pages in three seconds that are learned from
	}{
		"new sessions of whoever":    {most: 30},
		"new sessions of one client": {client: "192.0.2.1", most: 4},
		"reloads of a session":       {query: "?bokeh-session-id=given", most: 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			visit := func(client, query string, takes time.Duration) {
				r := newRequest(s, "/app"+query)
				if client != "" {
					vars := map[string]any{caddyhttp.ClientIPVarKey: client}
					r.Request = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
				}
				r.choose(pool)
				time.Sleep(takes)
				r.answer(http.StatusOK)
				synctest.Wait()
			}
			for i := range 40 {
				visit(fmt.Sprint("192.0.2.", 10+i), "", 10*time.Millisecond)
			}
			u := s.index.Load().all[0].member
			before := u.Slowness()
			learned := int64(0)
			for range 30 {
				visit(tc.client, tc.query, 100*time.Millisecond)
				if now := u.Slowness(); now != before {
					learned, before = learned+1, now
				}
			}
			if learned > tc.most || learned < min(tc.most, 3) {
				t.Errorf("%s: %d pages were learned from, want at most %d", name, learned, tc.most)
			}
		})
	}
}
