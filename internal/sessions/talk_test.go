// This file tests what is made of what is said on one websocket.

package sessions

import (
	"testing"
	"time"
)

// talker asks and answers on one websocket, a second each.
type talker struct {
	*Talk
	t   *testing.T
	now time.Duration
}

func newTalker(t *testing.T) *talker {
	return &talker{NewTalk(&Upstream{History: new(History)}), t, time.Hour}
}

func (k *talker) ask(n int) {
	for range n {
		k.Asked(k.now)
		k.now += time.Second
	}
}

// answers gives answers, which must take so many seconds each, or 0 where that is not measured.
func (k *talker) answers(want ...float64) {
	k.t.Helper()
	for i, want := range want {
		before, sum, _ := k.at.History.Replies.Count()
		k.Answered(k.now)
		after, sumAfter, _ := k.at.History.Replies.Count()
		if took := sumAfter - sum; took != want || (after > before) != (want > 0) {
			k.t.Errorf("answer %d took %v s, want %v", i, took, want)
		}
	}
}

// wantUnder checks how much is under way.
func (k *talker) wantUnder(want int) {
	k.t.Helper()
	if got := k.at.History.Busy.under; got != want {
		k.t.Errorf("%d are under way, want %d", got, want)
	}
}

// What is asked is answered in the order in which it was asked; of much at once the first is measured, and none is taken for another one.
func TestTalk(t *testing.T) {
	k := newTalker(t)
	k.answers(0) // nothing was asked
	k.ask(2)
	k.wantUnder(2)
	k.answers(2, 1, 0)
	k.wantUnder(0)
	if got := k.at.History.Waits.Quantiles(k.now, 0, 1); got[0].Round(100*time.Millisecond) != time.Second || got[1].Round(100*time.Millisecond) != 2*time.Second {
		t.Errorf("the answers are said to have taken %v", got)
	}
	k.ask(5)
	k.answers(5)
	k.ask(1) // after one that is not kept, so it is not kept either
	k.wantUnder(5)
	k.answers(5, 4, 3, 0, 0)
	k.wantUnder(0)
	k.ask(1)
	k.answers(1, 0)
	k.wantUnder(0)
}

// What is not answered when a websocket is closed keeps its server busy no longer, and nothing does that comes then.
func TestTalkEnds(t *testing.T) {
	k := newTalker(t)
	k.ask(6)
	k.wantUnder(6)
	k.End(k.now)
	k.wantUnder(0)
	k.End(k.now)
	k.ask(2)
	k.answers(0, 0)
	k.wantUnder(0)
	var none *Talk
	none.End(k.now)
}
