// This file tests what is known of an upstream that does not answer.

package sessions

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// unansweredModel does what unanswered does, the long way: by looking at all that has been asked.
type unansweredModel struct {
	asked        []*Question // in order
	since, until time.Duration
}

func (m *unansweredModel) ask(q *Question, now time.Duration) {
	m.asked = append(m.asked, q)
	if m.since == 0 {
		m.since = now
	}
}

func (m *unansweredModel) answered(q *Question, now time.Duration) {
	m.asked = m.asked[slices.Index(m.asked, q)+1:]
	m.since = 0
	if len(m.asked) > 0 {
		m.since = now
	}
}

func (m *unansweredModel) givenUp(q *Question, now time.Duration) {
	i := slices.Index(m.asked, q)
	if i < 0 {
		return
	}
	m.asked = slices.Delete(m.asked, i, i+1)
	stalled := now - m.since
	if stalled >= 250*time.Millisecond {
		m.until = now + min(stalled, 10*time.Second)
	} else if len(m.asked) == 0 {
		m.since = 0
	}
}

func (m *unansweredModel) stall(now time.Duration) time.Duration {
	if m.since == 0 || len(m.asked) == 0 && now >= m.until {
		return 0
	}
	return now - m.since
}

func TestUnansweredAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var u Unanswered
		var m unansweredModel
		var open []*Question
		now := time.Duration(1)
		for step := range 300 {
			now += time.Duration(rnd.ExpFloat64() * float64(100*time.Millisecond))
			what := rnd.IntN(5)
			switch {
			case what < 2 || len(open) == 0:
				q := new(Question)
				open = append(open, q)
				u.Ask(q, now)
				m.ask(q, now)
			default:
				i := rnd.IntN(len(open))
				q := open[i]
				open = slices.Delete(open, i, i+1)
				if what == 2 {
					u.Answered(q, now)
					m.answered(q, now)
				} else {
					u.GivenUp(q, now)
					m.givenUp(q, now)
				}
			}
			later := now + time.Duration(rnd.IntN(int(time.Second)))
			if n := int(u.n.Load()); n != len(m.asked) {
				t.Fatalf("seed %d, step %d: %d are unanswered, want %d", seed, step, n, len(m.asked))
			}
			if got, want := u.Stall(later), m.stall(later); got != want {
				t.Fatalf("seed %d, step %d: stalled for %v, want %v", seed, step, got, want)
			}
		}
	}
}

// An upstream that was stalled for a quarter of a second when the last one gave up is believed to be for as long again, and not a moment longer.
func TestStalledWhenTheLastGivesUp(t *testing.T) {
	for name, tc := range map[string]struct{ after, later, want time.Duration }{
		"not stalled yet":         {StalledAfter - 1, StalledAfter, 0},
		"just stalled":            {StalledAfter, 2*StalledAfter - 1, 2*StalledAfter - 1},
		"as long again":           {StalledAfter, 2 * StalledAfter, 0},
		"for at most ten seconds": {time.Minute, time.Minute + longestDoubt, 0},
		"and no less":             {time.Minute, time.Minute + longestDoubt - 1, time.Minute + longestDoubt - 1},
	} {
		var u Unanswered
		q := new(Question)
		u.Ask(q, time.Second)
		u.GivenUp(q, time.Second+tc.after)
		if got := u.Stall(time.Second + tc.later); got != tc.want {
			t.Errorf("%s: it has been stalled for %v, want %v", name, got, tc.want)
		}
	}
}

// An upstream that has answered a moment ago weighs what it owes, and any other one as much more as a browser asks for at a time.
func TestWeightOfUnanswered(t *testing.T) {
	var u Unanswered
	one, two := new(Question), new(Question)
	u.Ask(one, time.Minute)
	u.Ask(two, time.Minute)
	if got := u.Weight(time.Minute); got != 8 {
		t.Errorf("where no answer ever came it weighs %d, want 8", got)
	}
	u.Answered(one, time.Minute)
	for now, want := range map[time.Duration]int64{time.Minute: 1, 61 * time.Second: 1, 61*time.Second + 1: 7} {
		if got := u.Weight(now); got != want {
			t.Errorf("%v after an answer it weighs %d, want %d", now-time.Minute, got, want)
		}
	}
}
