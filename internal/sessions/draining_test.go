// This file tests what is remembered of an upstream that drains, and how its requests are ended.

package sessions

import (
	"maps"
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
