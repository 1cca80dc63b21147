// This file tests that a file is fetched once for all that ask at the same time, and that nobody waits for long.

package contentcache

import (
	"context"
	"crypto/sha512"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// asker asks for /f.js in a goroutine of its own.
type asker struct {
	site    *Site
	sum     Sum
	fetches *atomic.Int64
	fetch   func(turn *Turn) // nil keeps data
	data    []byte
}

// ask returns how long it took to have the file; it is nil if that was not to be had together.
func (a asker) ask(ctx context.Context) (f *File, took time.Duration) {
	begun := time.Now()
	f, turn := a.site.Join(ctx, "/f.js", a.sum)
	if turn == nil {
		return f, time.Since(begun)
	}
	defer turn.End()
	a.fetches.Add(1)
	if a.fetch != nil {
		a.fetch(turn)
		return a.site.Get("/f.js", a.sum), time.Since(begun)
	}
	return turn.Keep(a.data, nil), time.Since(begun)
}

func newAsker() asker {
	data := []byte("alert(1)")
	return asker{site: new(Cache).Open(1 << 20), data: data, sum: sha512.Sum512(data), fetches: new(atomic.Int64)}
}

func (a asker) wantNothingLeft(t *testing.T) {
	t.Helper()
	c := a.site.cache
	c.check(t)
	if len(c.flights) > 0 || c.fetching != 0 {
		t.Error("a flight is left behind")
	}
}

func TestFetchedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		a.fetch = func(turn *Turn) {
			time.Sleep(patience / 2)
			turn.Keep(a.data, nil)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if f, _ := a.ask(t.Context()); f == nil {
					t.Error("somebody has no file")
				}
			})
		}
		wg.Wait()
		if n := a.fetches.Load(); n != 1 {
			t.Errorf("100 ask at a time, and it is fetched %d times", n)
		}
		a.wantNothingLeft(t)
	})
}

// One that fails, or goes away, is followed by the next.
func TestFetcherLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		first := a
		first.fetch = func(*Turn) { time.Sleep(patience / 2) }
		ctx := t.Context()
		go first.ask(ctx)
		synctest.Wait()
		f, took := a.ask(ctx)
		if f == nil || took != patience/2 || a.fetches.Load() != 2 {
			t.Errorf("the next one has %v after %v and %d fetches", f, took, a.fetches.Load())
		}
		synctest.Wait()
		a.wantNothingLeft(t)
	})
}

// One whose server does not answer holds up the others for a second, and has what they get.
func TestFetcherHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		first := a
		first.fetch = func(turn *Turn) { <-turn.Context().Done() }
		done := make(chan *File)
		go func() {
			f, _ := first.ask(t.Context())
			done <- f
		}()
		synctest.Wait()
		f, took := a.ask(t.Context())
		if f == nil || took != patience {
			t.Errorf("the next one has %v after %v", f, took)
		}
		if f := <-done; f == nil {
			t.Error("the one whose server hangs does not get what another has fetched")
		}
		synctest.Wait()
		a.wantNothingLeft(t)
	})
}

// Where the file cannot be kept nobody waits in line for it.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		a.fetch = func(turn *Turn) {
			time.Sleep(patience / 2)
			turn.GiveUp()
			time.Sleep(10 * patience)
		}
		begun := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { a.ask(t.Context()) })
		}
		wg.Wait()
		if took := time.Since(begun); took > 12*patience || a.fetches.Load() != 10 {
			t.Errorf("10 take %v and %d fetches", took, a.fetches.Load())
		}
		a.wantNothingLeft(t)
	})
}

// What one hands on as it comes is not cut when another one has the file.
func TestGivenUpAndKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		_, slow := a.site.Join(t.Context(), "/f.js", a.sum)
		go func() {
			_, quick := a.site.Join(t.Context(), "/f.js", a.sum) // after a second
			time.Sleep(patience)
			quick.Keep(a.data, nil)
			quick.End()
		}()
		time.Sleep(patience + patience/2)
		if !slow.GiveUp() {
			t.Error("it is too late while nobody has the file")
		}
		time.Sleep(patience)
		if err := slow.Context().Err(); err != nil {
			t.Error("it is cut:", err)
		}
		slow.End()
		a.wantNothingLeft(t)

		b := newAsker()
		_, late := b.site.Join(t.Context(), "/f.js", b.sum)
		b.ask(t.Context())
		synctest.Wait()
		if late.GiveUp() || late.Context().Err() == nil {
			t.Error("it goes on although another one has the file")
		}
		late.End()
		b.wantNothingLeft(t)
	})
}

func TestAskerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		hanging := a
		hanging.fetch = func(turn *Turn) { <-turn.Context().Done() }
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		defer cancel()
		go hanging.ask(ctx)
		synctest.Wait()
		if _, took := hanging.ask(ctx); took != patience/2 {
			t.Errorf("one that goes waits for %v", took)
		}
		synctest.Wait()
		a.wantNothingLeft(t)
	})
}

// A site that is closed meanwhile keeps nothing, and those who wait are not forgotten.
func TestClosedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		a.fetch = func(turn *Turn) {
			time.Sleep(patience / 2)
			a.site.Close()
			turn.Keep(a.data, nil)
		}
		go a.ask(t.Context())
		synctest.Wait()
		if _, took := a.ask(t.Context()); took > 2*patience {
			t.Errorf("one waits for %v", took)
		}
		synctest.Wait()
		a.wantNothingLeft(t)
	})
}

// What somebody has fetched is there for those who have asked meanwhile, also where it is kept for nobody else.
func TestFetchedThoughNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		_, slow := a.site.Join(t.Context(), "/f.js", a.sum)
		go func() {
			_, quick := a.site.Join(t.Context(), "/f.js", a.sum) // after a second
			time.Sleep(patience / 2)
			a.site.Close()
			quick.Keep(a.data, nil)
			quick.End()
		}()
		time.Sleep(patience + patience/4)
		waiting := make(chan *File)
		go func() {
			f, _ := a.site.Join(t.Context(), "/f.js", a.sum)
			waiting <- f
		}()
		<-slow.Context().Done()
		if slow.File() == nil || <-waiting == nil {
			t.Error("somebody is cut off and gets nothing")
		}
		slow.End()
		synctest.Wait()
		a.wantNothingLeft(t)
	})
}

// Where one that was told to fetch for itself has kept the file, those who have begun to wait again have it too, though the one they
// wait for hangs.
func TestKeptByOneThatGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		_, first := a.site.Join(t.Context(), "/f.js", a.sum)
		first.GiveUp()
		_, hangs := a.site.Join(t.Context(), "/f.js", a.sum)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				begun := time.Now()
				if f, _ := a.site.Join(t.Context(), "/f.js", a.sum); f == nil || time.Since(begun) > patience {
					t.Errorf("one gets %v after %v", f, time.Since(begun))
				}
			})
		}
		synctest.Wait()
		first.Keep(a.data, nil)
		first.End()
		time.Sleep(2 * patience)
		hangs.End()
		all.Wait()
		a.wantNothingLeft(t)
	})
}
