// This file tests that shared requests go where answers come.

package caddybokeh

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

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
			f := fileAt0(s).visit()
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
					u1.Unanswered.Ask(new(sessions.Question), s.table.Now())
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
			m.Unanswered.Ask(new(sessions.Question), s.table.Now())
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
