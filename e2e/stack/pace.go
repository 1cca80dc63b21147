// This file holds the machine's pace: by how much everything takes longer than on a machine that has nothing else to do.

package stack

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// lookEvery is how often the pace is looked at. It is told as the average of about paceOver.
const (
	lookEvery = 250 * time.Millisecond
	paceOver  = 5 * time.Second
)

// pace is how many processes that could run share a core, at least one: what takes a second of a quiet machine takes
// about so many. Where the system does not tell, it is one.
var pace struct {
	watch sync.Once
	mu    sync.Mutex // guards all below
	now   float64
	spent time.Duration // since the watch began, in time of a quiet machine
}

// watchPace begins to watch the pace, for as long as the program lives.
func watchPace() {
	pace.watch.Do(func() {
		pace.now = sharers()
		go func() {
			last := time.Now()
			for range time.Tick(lookEvery) {
				passed := time.Since(last)
				last = last.Add(passed)
				look(sharers(), passed)
			}
		}()
	})
}

// look takes note of how many processes shared a core for a while.
func look(sharing float64, passed time.Duration) {
	pace.mu.Lock()
	defer pace.mu.Unlock()
	pace.now += (sharing - pace.now) * min(1, passed.Seconds()/paceOver.Seconds())
	pace.spent += time.Duration(float64(passed) / max(sharing, pace.now))
}

// Stretch returns how long something takes now that takes d on a quiet machine.
func Stretch(d time.Duration) time.Duration {
	watchPace()
	pace.mu.Lock()
	defer pace.mu.Unlock()
	return time.Duration(float64(d) * pace.now)
}

// Patience returns a context that ends when a quiet machine would have had so much time: later, if this one is busy.
func Patience(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	watchPace()
	ctx, cancel := context.WithCancelCause(parent)
	end := spent() + d
	go func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if spent() >= end {
				cancel(fmt.Errorf("it takes longer than %v of a quiet machine", d))
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

func spent() time.Duration {
	pace.mu.Lock()
	defer pace.mu.Unlock()
	return pace.spent
}

// sharers asks Linux how many processes can run, other than this one that asks.
func sharers() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 1
	}
	return sharing(text, runtime.GOMAXPROCS(0))
}

// sharing reads it from what the system says.
func sharing(stat []byte, cores int) float64 {
	for lines := bufio.NewScanner(bytes.NewReader(stat)); lines.Scan(); {
		var running int
		if n, _ := fmt.Sscanf(lines.Text(), "procs_running %d", &running); n == 1 {
			return max(1, float64(running-1)/float64(cores))
		}
	}
	return 1
}
