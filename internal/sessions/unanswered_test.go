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
