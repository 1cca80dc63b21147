// This file tests what is remembered of an upstream that drains, and how its requests are ended.

package sessions

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What clients make up must not make the process grow.
func TestEndedIsBounded(t *testing.T) {
	var d Drain
	d.AddConfigs(1)
	for i := range maxEnded + 100 {
		d.Remember(Key{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	if n := len(d.ended); n != maxEnded {
		t.Errorf("%d ended sessions are remembered, want %d", n, maxEnded)
	}
	d.AddConfigs(-1)
	if d.ended != nil {
		t.Error("what has ended is remembered after the drain")
	}
	var off Drain
	off.Remember(Key{})
	if len(off.ended) > 0 {
		t.Error("sessions are remembered though nothing drains")
	}
}

// A websocket that has just been opened when its turn to end comes is let be for a moment.
func TestSocketIsLetBeForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs OpenRequests
		var mu sync.Mutex
		ended := make(map[string]time.Duration)
		begun := time.Now()
		add := func(name string) *OpenRequest {
			r := &OpenRequest{Of: whenCut(func() {
				mu.Lock()
				defer mu.Unlock()
				ended[name] = time.Since(begun)
			})}
			rs.Add(r)
			return r
		}
		rs.Opened(add("long open"))
		pause(time.Minute)
		rs.Opened(add("just open"))
		add("page")
		rs.Remove(add("page that is over"))
		rs.EndAll(time.Nanosecond)
		rs.Opened(add("late"))
		pause(time.Hour)
		want := map[string]time.Duration{"long open": time.Minute, "just open": time.Minute + TunnelRest, "page": time.Minute, "late": time.Minute + TunnelRest}
		if !maps.Equal(ended, want) {
			t.Errorf("they ended after %v, want %v", ended, want)
		}
	})
}

// whenCut is called when a request is cut off.
type whenCut func()

func (f whenCut) CutOff() { f() }

// pause lets time pass, and all that happens by then.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// An upstream drains as long as a config or an operator says so, and is closed as long as the operator says that.
func TestDrainingFollowsConfigsAndOperators(t *testing.T) {
	var d Drain
	want := func(when string, on, closed bool) {
		t.Helper()
		if d.On() != on || d.IsClosed() != closed {
			t.Errorf("%s: drains %v, closed %v; want %v, %v", when, d.On(), d.IsClosed(), on, closed)
		}
	}
	want("new", false, false)
	d.AddConfigs(1)
	want("a config", true, false)
	d.AddConfigs(1)
	d.AddConfigs(-1)
	want("one of two configs", true, false)
	d.Set(&DrainOrder{Closed: true})
	want("a config, and closed", true, true)
	d.AddConfigs(-1)
	want("closed", true, true)
	d.Set(&DrainOrder{})
	want("an operator", true, false)
	d.AddConfigs(1)
	d.Set(nil)
	want("taken back, and a config", true, false)
	d.AddConfigs(-1)
	want("nobody any more", false, false)
}

// An upstream drains since the operator says so, else since the first config did; one that came later changes nothing about that.
func TestDrainsSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var d Drain
		want := func(when string, want time.Time) {
			t.Helper()
			if got := d.Since(); !got.Equal(want) {
				t.Errorf("%s: it drains since %v, want %v", when, got, want)
			}
		}
		want("new", time.Time{})
		d.AddConfigs(1)
		time.Sleep(time.Minute)
		d.AddConfigs(1)
		want("two configs", start)
		d.AddConfigs(-1)
		want("one of them", start)
		operator := start.Add(30 * time.Second)
		d.Set(&DrainOrder{Since: operator})
		want("an operator", operator)
		d.Set(nil)
		want("taken back", start)
		d.AddConfigs(-1)
		want("not any more", time.Time{})
		time.Sleep(time.Minute)
		d.AddConfigs(1)
		want("again", start.Add(2*time.Minute))
	})
}

// That an upstream is empty holds for a time, and for the drain of which it was found.
func TestDrainingIsEmpty(t *testing.T) {
	const now = 10 * time.Second
	for name, tc := range map[string]struct {
		then func(d *Drain)
		at   time.Duration
		want bool
	}{
		"found":                   {func(*Drain) {}, now, true},
		"a moment too late":       {func(*Drain) {}, now + 1, false},
		"doubted":                 {(*Drain).Doubt, now, false},
		"another drain":           {func(d *Drain) { d.Set(&DrainOrder{}) }, now, false},
		"closed":                  {func(d *Drain) { d.Set(&DrainOrder{Closed: true}) }, now, false},
		"ready":                   {func(d *Drain) { d.AddConfigs(-1) }, now, false},
		"ready, and drained anew": {func(d *Drain) { d.AddConfigs(-1); d.AddConfigs(1) }, now, false},
		"by one more config":      {func(d *Drain) { d.AddConfigs(1) }, now, true},
	} {
		var d Drain
		d.AddConfigs(1)
		d.empty.Store(int64(now))
		tc.then(&d)
		if got := d.IsEmpty(tc.at); got != tc.want {
			t.Errorf("%s: empty is %v", name, got)
		}
	}
	var ready Drain
	ready.empty.Store(int64(now))
	if ready.IsEmpty(now) {
		t.Error("an upstream that does not drain is called empty")
	}
}

// Sessions that end while it drains are remembered, which tells something only where no other node may have them; where it is empty all have ended.
func TestEndedSessionsAreRemembered(t *testing.T) {
	const now = 10 * time.Second
	before, ended, other := Key{1}, Key{2}, Key{3}
	var d Drain
	want := func(when string, at time.Duration, want bool, keys ...Key) {
		t.Helper()
		if got := d.HasEnded(at, keys...); got != want {
			t.Errorf("%s: it has ended: %v, want %v", when, got, want)
		}
	}
	d.alone.Store(int64(now))
	d.Remember(before)
	want("it does not drain", now, false, before)
	d.AddConfigs(1)
	d.Remember(ended)
	want("one that ended before", now, false, before)
	want("one that has ended", now, true, ended)
	want("one of two", now, true, other, ended)
	want("none of two", now, false, other, before)
	want("no key", now, false)
	want("there may be another node", now+1, false, ended)
	d.Set(&DrainOrder{})
	want("of the same drain", now, true, ended)
	d.empty.Store(int64(now + 5))
	want("it is empty", now+5, true, other)
	want("it was", now+6, false, ended)
	d.Set(nil)
	d.AddConfigs(-1)
	d.AddConfigs(1)
	want("another drain", now, false, ended)
}

// What is remembered is bounded, and the last one is among it.
func TestEndedSessionsAreBounded(t *testing.T) {
	var d Drain
	d.AddConfigs(1)
	d.alone.Store(1)
	for i := range uint32(maxEnded + 100) {
		var k Key
		binary.BigEndian.PutUint32(k[:], i)
		d.Remember(k)
		if !d.HasEnded(1, k) {
			t.Fatalf("session %d is not remembered", i)
		}
	}
	if n := len(d.ended); n != maxEnded {
		t.Errorf("%d sessions are remembered, want %d", n, maxEnded)
	}
}

// cutOffs are when requests were cut off, since some time.
type cutOffs struct {
	start time.Time
	mu    sync.Mutex // guards at
	at    []time.Duration
}

func (c *cutOffs) CutOff() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = append(c.at, time.Since(c.start))
}

// times returns when requests were cut off up to now.
func (c *cutOffs) times() []time.Duration {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(slices.Values(c.at))
}

// Requests are ended evenly over the span, the first at once.
func TestRequestsAreEndedOverASpan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs OpenRequests
		c := cutOffs{start: time.Now()}
		for range 4 {
			rs.Add(&OpenRequest{Of: &c})
		}
		tunnel, over := &OpenRequest{Of: &c}, &OpenRequest{Of: &c}
		rs.Add(tunnel)
		rs.Add(over)
		rs.Opened(tunnel)
		rs.Remove(over)
		time.Sleep(10 * time.Second)
		if all, tunnels := rs.EndAll(10 * time.Second); all != 5 || tunnels != 1 {
			t.Errorf("%d are ended, %d of them websockets; want 5, 1", all, tunnels)
		}
		time.Sleep(time.Minute)
		want := []time.Duration{10 * time.Second, 12 * time.Second, 14 * time.Second, 16 * time.Second, 18 * time.Second}
		if !slices.Equal(c.times(), want) {
			t.Errorf("they end at %v, want %v", c.times(), want)
		}
	})
}

// A websocket that has just opened has a second, and ends then.
func TestNewTunnelsAreLetBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs OpenRequests
		c := cutOffs{start: time.Now()}
		r := &OpenRequest{Of: &c}
		rs.Add(r)
		time.Sleep(10 * time.Second)
		rs.Opened(r)
		time.Sleep(300 * time.Millisecond)
		rs.EndAll(time.Millisecond)
		time.Sleep(time.Minute)
		if want := []time.Duration{10*time.Second + TunnelRest}; !slices.Equal(c.times(), want) {
			t.Errorf("it ends at %v, want %v", c.times(), want)
		}
	})
}

// What is over is not ended, nor what is open when the upstream is no more closed. A span that was given before counts no more.
func TestRequestsThatAreNotEnded(t *testing.T) {
	for name, tc := range map[string]struct {
		then func(rs *OpenRequests, two []*OpenRequest)
		want []time.Duration
	}{
		"nothing happens": {func(*OpenRequests, []*OpenRequest) {}, []time.Duration{0, 5 * time.Second}},
		"over":            {func(rs *OpenRequests, two []*OpenRequest) { rs.Remove(two[0]); rs.Remove(two[1]) }, []time.Duration{0}},
		"reopened":        {func(rs *OpenRequests, _ []*OpenRequest) { rs.reopen() }, []time.Duration{0}},
		"closed anew": {func(rs *OpenRequests, two []*OpenRequest) {
			rs.reopen()
			rs.Remove(two[0])
			rs.Remove(two[1])
			rs.Add(two[1])
			time.Sleep(time.Second)
			rs.EndAll(time.Hour)
		}, []time.Duration{0, 2 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var rs OpenRequests
				c := cutOffs{start: time.Now()}
				two := []*OpenRequest{{Of: &c}, {Of: &c}}
				rs.Add(two[0])
				rs.Add(two[1])
				rs.EndAll(10 * time.Second) // one of them at once, the other in 5 s
				time.Sleep(time.Second)
				tc.then(&rs, two)
				time.Sleep(3 * time.Hour)
				if !slices.Equal(c.times(), tc.want) {
					t.Errorf("they end at %v, want %v", c.times(), tc.want)
				}
			})
		})
	}
}

// A request that was on its way when the others were told to end is ended with them; none is that comes when the upstream is open again.
func TestLateRequestsAreEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rs OpenRequests
		rs.EndAll(10 * time.Second)
		time.Sleep(2 * time.Second)
		c := cutOffs{start: time.Now()}
		for range 100 {
			rs.Add(&OpenRequest{Of: &c})
		}
		time.Sleep(time.Hour)
		if len(c.times()) != 100 || slices.Max(c.times()) >= 8*time.Second || slices.Max(c.times()) < 4*time.Second {
			t.Errorf("%d of 100 have ended, the last after %v; want all within the 8 s that are left", len(c.times()), slices.Max(c.times()))
		}
		after := cutOffs{start: time.Now()}
		rs.Add(&OpenRequest{Of: &after})
		time.Sleep(time.Second)
		if !slices.Equal(after.times(), []time.Duration{0}) {
			t.Errorf("one that comes after the span ends at %v, want at once", after.times())
		}
		rs.reopen()
		ready := cutOffs{start: time.Now()}
		rs.Add(&OpenRequest{Of: &ready})
		time.Sleep(time.Hour)
		if len(ready.times()) != 0 {
			t.Errorf("a request to an open upstream ends at %v", ready.times())
		}
	})
}

// Closing an upstream again, or saying anything else of it but that it is closed, decides about the requests that are open.
func TestOpenAgainLetsRequestsBe(t *testing.T) {
	for name, tc := range map[string]struct {
		said *DrainOrder
		want int
	}{
		"taken back":           {nil, 0},
		"draining, not closed": {&DrainOrder{}, 0},
		"still closed":         {&DrainOrder{Closed: true}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d Drain
				c := cutOffs{start: time.Now()}
				d.Set(&DrainOrder{Closed: true})
				d.Requests.EndAll(time.Minute)
				d.Requests.Add(&OpenRequest{Of: &c})
				d.Set(tc.said)
				time.Sleep(time.Hour)
				if len(c.times()) != tc.want {
					t.Errorf("%d requests are ended, want %d", len(c.times()), tc.want)
				}
			})
		})
	}
}
