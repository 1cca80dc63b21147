// This file holds what one request weighs, from its beginning to its end.

package sessions

import "time"

// Load is what one request weighs: a page being built or a socket, in a session. Without a session it weighs nothing.
type Load struct {
	t          *Table
	s          *session
	lifetime   time.Duration // of the session when this request is over
	superseded bool          // the socket took over a session that its page had begun under another id
}

// BeginPage counts a page request for the session at u.
func (t *Table) BeginPage(k Key, u *Upstream, by Terms) Load {
	return Load{t: t, lifetime: by.Lifetime, s: t.change(k, u, by, func(s *session) {
		s.pages++
	})}
}

// BeginSocket counts a socket for the session at u. If the page began the session under another key,
// page, that one is over: the two are one session.
func (t *Table) BeginSocket(k, page Key, u *Upstream, by Terms) Load {
	l := Load{t: t, lifetime: by.Lifetime, s: t.change(k, u, by, func(s *session) {
		s.sockets++
		s.superseded = false
	})}
	if page != k {
		l.superseded = t.supersede(page, l.s.at)
	}
	return l
}

// IsCounted says whether the request weighs anything.
func (l Load) IsCounted() bool { return l.s != nil }

// At returns the upstream at which it weighs.
func (l Load) At() *Upstream { return l.s.at }

// Key returns the key of its session.
func (l Load) Key() Key { return l.s.key }

// PageBuilt tells that the page has been answered.
func (l Load) PageBuilt() {
	l.update(func(s *session) {
		s.pages--
		s.served++
		if !s.hadOne && s.slotUntil == 0 { // one session holds one slot for one time, however often it is asked for
			s.slotUntil = onTick(l.t.Now() + SlotTimeout)
			l.t.arm(s)
		}
	})
}

// PageLeft tells that nobody waits for the page any more and that no answer has come, though the server had all of the request:
// it makes the session all the same, in a time that is given, and keeps it. No websocket will come, so it holds no slot. It says
// whether the server may still be at it.
func (l Load) PageLeft(work time.Duration) (busy bool) {
	l.update(func(s *session) {
		s.pages--
		busy = !s.made && s.pages == 0 && s.served == 0
		if s.superseded {
			return
		}
		l.t.keep(s, work+l.lifetime)
		if s.pages == 0 && s.slotUntil <= 0 {
			s.loseSlot(l.t.Now(), l.t.Waiting)
		}
	})
	return busy
}

// PageEnded tells that the page request is over: built says whether it had been answered, ok
// whether the browser has the page, so that its socket will come.
func (l Load) PageEnded(built, ok bool) {
	l.update(func(s *session) {
		if built {
			s.served--
		} else {
			s.pages--
		}
		s.made = s.made || ok
		if ok && !s.superseded {
			l.t.keep(s, l.lifetime)
		}
	})
}

// SocketOpened tells that the server has opened the socket.
func (l Load) SocketOpened() {
	l.update(func(s *session) {
		s.hadOne, s.made = true, true
		s.takeSlot()
	})
}

// SocketEnded tells that a socket is closed, or failed to open.
func (l Load) SocketEnded(opened bool) {
	l.update(func(s *session) {
		s.sockets--
		s.hadOne = s.hadOne || opened
		if (opened || l.superseded) && !s.superseded {
			l.t.keep(s, l.lifetime)
		}
	})
}

// update lets f change the session, if the request weighs anything.
func (l Load) update(f func(*session)) {
	if l.s != nil {
		l.t.update(l.s, f)
	}
}
