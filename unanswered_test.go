// This file tests what is known of an upstream that does not answer, and that shared requests go where answers come.

package caddybokeh

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
)

// unansweredModel does what unanswered does, the long way: by looking at all that has been asked.
type unansweredModel struct {
	asked        []*question // in order
	since, until time.Duration
}

func (m *unansweredModel) ask(q *question, now time.Duration) {
	m.asked = append(m.asked, q)
	if m.since == 0 {
		m.since = now
	}
}

func (m *unansweredModel) answered(q *question, now time.Duration) {
	m.asked = m.asked[slices.Index(m.asked, q)+1:]
	m.since = 0
	if len(m.asked) > 0 {
		m.since = now
	}
}

func (m *unansweredModel) givenUp(q *question, now time.Duration) {
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
		var u unanswered
		var m unansweredModel
		var open []*question
		now := time.Duration(1)
		for step := range 300 {
			now += time.Duration(rnd.ExpFloat64() * float64(100*time.Millisecond))
			what := rnd.IntN(5)
			switch {
			case what < 2 || len(open) == 0:
				q := new(question)
				open = append(open, q)
				u.ask(q, now)
				m.ask(q, now)
			default:
				i := rnd.IntN(len(open))
				q := open[i]
				open = slices.Delete(open, i, i+1)
				if what == 2 {
					u.answered(q, now)
					m.answered(q, now)
				} else {
					u.givenUp(q, now)
					m.givenUp(q, now)
				}
			}
			later := now + time.Duration(rnd.IntN(int(time.Second)))
			if n := int(u.n.Load()); n != len(m.asked) {
				t.Fatalf("seed %d, step %d: %d are unanswered, want %d", seed, step, n, len(m.asked))
			}
			if got, want := u.stall(later), m.stall(later); got != want {
				t.Fatalf("seed %d, step %d: stalled for %v, want %v", seed, step, got, want)
			}
		}
	}
}

// file asks for a file, as a page does, and says where it goes.
func file(s *Selection) (f *request, at string) {
	f = newRequest(s, "/static/js/bokeh.min.js")
	at, _ = f.choose(s.static)
	return f, at
}

// fileAt0 asks u0 for a file.
func fileAt0(s *Selection) *request {
	f := newRequest(s, "/static/js/bokeh.min.js")
	f.choose(s.static[:1])
	return f
}

func TestFilesGoWhereAnswersCome(t *testing.T) {
	for name, test := range map[string]struct {
		to0  func(t *testing.T, s *Selection) // what u0 of two upstreams has
		want bool                             // whether files go there
	}{
		"nothing": {func(*testing.T, *Selection) {}, true},
		"a file that has no answer": {func(_ *testing.T, s *Selection) {
			fileAt0(s)
			time.Sleep(time.Second)
		}, false},
		"a file that nobody waits for any more": {func(_ *testing.T, s *Selection) {
			f := fileAt0(s)
			time.Sleep(5 * time.Second)
			f.end()
			time.Sleep(4 * time.Second)
		}, false},
		"a file that nobody has waited for since long": {func(_ *testing.T, s *Selection) {
			f := fileAt0(s)
			time.Sleep(5 * time.Second)
			f.end()
			time.Sleep(6 * time.Second)
		}, true},
		"a visitor who leaves at once": {func(_ *testing.T, s *Selection) { fileAt0(s).end() }, true},
		"a slow answer, and a quick one after it": {func(_ *testing.T, s *Selection) {
			fileAt0(s)
			fileAt0(s).answer(http.StatusOK)
			synctest.Wait()
			time.Sleep(time.Minute)
		}, true},
		"an answer whose end does not come": {func(_ *testing.T, s *Selection) {
			f := fileAt0(s).run()
			f.firstByteCame(f.attempt)
			time.Sleep(time.Minute)
		}, true},
		"a body that does not end": {func(_ *testing.T, s *Selection) {
			s.Select(s.static[:1], httptest.NewRequest(http.MethodPost, "/upload", strings.NewReader("x")), nil)
			time.Sleep(time.Minute)
		}, true},
		"a websocket with a body that does not come": {func(_ *testing.T, s *Selection) {
			r := httptest.NewRequest(http.MethodGet, "/any", strings.NewReader("x"))
			r.Header.Set("Upgrade", "websocket")
			s.Select(s.static[:1], r, nil)
			time.Sleep(time.Minute)
		}, true},
		"a websocket over HTTP/2 that has no answer": {func(t *testing.T, s *Selection) {
			socket := newSocket(s, bokehtest.Token(t, bokehtest.Stamp("u0:80"), nil))
			socket.ProtoMajor, socket.ContentLength = 2, -1 // of the CONNECT that it was
			socket.choose(s.static)
			time.Sleep(time.Second)
		}, false},
		"a websocket that has no answer": {func(t *testing.T, s *Selection) {
			socket := newSocket(s, bokehtest.Token(t, bokehtest.Stamp("u0:80"), nil))
			socket.choose(s.static)
			time.Sleep(time.Second)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestSelection(testPool(2))
				test.to0(t, s)
				u1 := s.members.get("u1:80")
				for range 20 {
					u1.unanswered.ask(new(question), s.table.now())
				}
				if _, at := file(s); (at == "u0:80") != test.want {
					t.Errorf("the file goes to %s", at)
				}
				time.Sleep(time.Minute) // until the sessions have ended
			})
		})
	}
}

// A server that has just answered gets the files of a page, until it has as many as a browser asks for at a time.
func TestFilesGoWhereOneHasJustAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(3))
		time.Sleep(time.Minute)
		home, _ := landed(t, s, s.static)
		for i := range 6 {
			if _, at := file(s); at != home {
				t.Errorf("file %d goes to %s, and the page came from %s", i, at, home)
			}
		}
		if _, at := file(s); at == home {
			f, at := file(s)
			f.end()
			if at == home {
				t.Error("all files go to one server")
			}
		}
		time.Sleep(time.Minute) // until the session has ended
	})
}

// Where all upstreams are stalled, the one that has been for the shortest time gets it.
func TestAllStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(3))
		for i := range 3 {
			m := s.members.get(fmt.Sprintf("u%d:80", i))
			m.unanswered.ask(new(question), s.table.now())
			time.Sleep(time.Second)
		}
		if _, at := file(s); at != "u2:80" {
			t.Errorf("the file goes to %s", at)
		}
	})
}

// A stalled upstream that nobody waits for any more is tried with one file, not with all of a page.
func TestOneFileTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(2))
		f := fileAt0(s)
		time.Sleep(time.Second)
		f.end()
		time.Sleep(2 * time.Second)
		fileAt0(s)
		if _, at := file(s); at != "u1:80" {
			t.Errorf("while one tries, the next goes to %s", at)
		}
	})
}
