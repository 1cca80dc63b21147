// This file tests the pages that weigh though nobody waits for them.

package sessions

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// pastPagesModel does what pastPages does, the long way: by looking at all that there ever were.
type pastPagesModel []modelPage

type modelPage struct {
	session      Key
	ended, until time.Duration
}

func (m *pastPagesModel) drop(over func(p modelPage) bool) { *m = slices.DeleteFunc(*m, over) }

// A page weighs for its time, and less long if it is asked for once more, or what was asked for later is answered.
func TestPastPagesAgainstModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		rnd := rand.New(rand.NewPCG(1, 1))
		var p PastPages
		var m pastPagesModel
		for step := range 20000 {
			time.Sleep(time.Duration(rnd.IntN(3)) * time.Second)
			synctest.Wait() // for those whose time is over at this very moment
			now := time.Since(start)
			m.drop(func(p modelPage) bool { return p.until <= now })
			k := Key{byte(rnd.IntN(5))}
			same := func(p modelPage) bool { return p.session == k }
			switch rnd.IntN(8) {
			case 0, 1, 2, 3:
				weighs := time.Duration(1+rnd.IntN(10)) * time.Second
				p.Add(k, now, weighs)
				m.drop(same)
				m = append(m, modelPage{k, now, now + weighs})
			case 4:
				p.AskedAgain(k)
				m.drop(same)
			case 5:
				asked := now - time.Duration(rnd.IntN(6))*time.Second
				p.Outlived(asked)
				m.drop(func(p modelPage) bool { return p.ended <= asked })
			}
			if got := p.n.Load(); got != int64(len(m)) {
				t.Fatalf("step %d: %d pages weigh, want %d", step, got, len(m))
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(p.all) != 0 || len(p.of) != 0 || p.n.Load() != 0 {
			t.Errorf("in the end %d are kept, %d by their sessions, and %d weigh", len(p.all), len(p.of), p.n.Load())
		}
	})
}

// What is kept of pages is bounded by those that ended lately, however often each is asked for.
func TestPastPagesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p PastPages
		for i := range 1000 {
			p.Add(Key{byte(i)}, time.Duration(i)*time.Second, 10*time.Second)
			p.AskedAgain(Key{byte(i)})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := len(p.all); n > 10 {
			t.Errorf("%d pages are kept of the last 10 s, want one for each second", n)
		}
		p.Outlived(time.Hour)
		if len(p.all) > 10 || p.n.Load() != 0 {
			t.Errorf("%d pages are kept, %d weigh", len(p.all), p.n.Load())
		}
	})
}

// A page whose visitor has gone weighs until those ahead and itself are done, and at least as long again as nothing has come; ten seconds at most.
func TestLeftWork(t *testing.T) {
	const s = time.Second
	tb := newTestTable()
	unknown, known := tb.Hold("a:80"), tb.Hold("b:80")
	known.History.pageTime.add(int64(2 * s))
	const of, other App = 1, 2
	tb.pageTimes[of].add(int64(3 * s))
	for name, tc := range map[string]struct {
		u     *Upstream
		of    App
		ahead int64
		now   time.Duration // it was begun at 100 s
		want  time.Duration
	}{
		"of nothing known":             {unknown, other, 0, 100 * s, s},
		"of an upstream that is":       {known, other, 0, 100 * s, 2 * s},
		"of an app that is":            {known, of, 0, 100 * s, 3 * s},
		"the same app by its place":    {known, of + 1<<10, 0, 100 * s, 3 * s},
		"behind another":               {known, of, 1, 100 * s, 6 * s},
		"a second later":               {known, of, 1, 101 * s, 5 * s},
		"as long again":                {known, of, 1, 104 * s, 4 * s},
		"at most":                      {known, of, 9, 100 * s, 10 * s},
		"long after it was to be done": {known, of, 0, 160 * s, 10 * s},
	} {
		if got := tb.LeftWork(tc.u, tc.of, 100*s, tc.ahead, tc.now); got != tc.want {
			t.Errorf("%s: it weighs for %v, want %v", name, got, tc.want)
		}
	}
}
