// This file holds the patience with a storage: every call ends in time, whether the storage heeds its context or not.

package store

import (
	"context"
	"errors"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

const (
	ManyLeft = 512

	// allInRow is how many calls in a row must be left behind until nothing at all is asked for a while.
	allInRow = LoadsAtOnce

	// mostStrange is how many calls for what a node does not need may be left behind until those that follow share one pause.
	mostStrange = 4 * LoadsAtOnce
)

// patient is a storage that always answers. Not every storage heeds a context, so a call that takes too long is left
// behind in its goroutine, and may never end: a FIFO in the place of a file keeps it also when it is deleted. The same is
// asked again only after a pause, which doubles, and so is all else once several calls in a row were left behind. Nothing is
// given up for good, however much was left behind: what hangs for a day leaves some hundred goroutines, and what is well again
// is found. Where many records hang, see look, they are asked one after the other once manyLeft calls were left behind.
//
// A call that heeds its context ends when its time is up, and leaves no goroutine. That it has ended tells nothing of the storage,
// so the pauses are the same. The same holds for one that ends late and with an error.
//
// A call that was left behind may do what it was asked for at any later time. So a record may be written after a younger one:
// the node that has written the younger one finds that, and writes it again.
type patient struct {
	Storage
	silent *silences
}

// Patient returns a storage of which every call ends within 5 s, but for locks, with an error if the storage has not answered. Some
// keys may be strange: a node can do without loading them.
func Patient(st Storage, isStrange func(key string) bool) Storage {
	s := newSilences()
	s.isStrange = func(what string) bool {
		asked, key, _ := strings.Cut(what, " ")
		return (asked == "load" || asked == "stat") && isStrange(key)
	}
	return patient{st, s}
}

// silences are those of one storage.
type silences struct {
	isStrange func(what string) bool // whether a node does not need it

	mu      sync.Mutex // guards all below
	all     silence    // of what is needed
	news    time.Time  // when a call was answered last, or counted in that
	strange silence    // of what is not
	many    silence    // of needed records, once much was left behind
	trial   string     // what of these two was asked last while many hang
	of      map[string]*silence
	well    map[string]bool // what has answered last; not all of it, if that is much
}

// look is one look at many records, or one row of writes, of which any may hang. It waits for no more than loadsAtOnce that are not known
// to answer, and for none that did not answer last: those are asked again while it goes on, and the next one finds what has answered.
type look struct{ doubtful map[string]bool } // what was asked in it and has not answered; guarded by the mu of the silences

type lookKey struct{}

// OneLook returns a context for what is one look.
func OneLook(ctx context.Context) context.Context {
	return context.WithValue(ctx, lookKey{}, &look{make(map[string]bool)})
}

// lookOf returns the look that a context is for, or nil.
func lookOf(ctx context.Context) *look {
	l, _ := ctx.Value(lookKey{}).(*look)
	return l
}

func newSilences() *silences {
	return &silences{isStrange: func(string) bool { return false }, of: make(map[string]*silence), well: make(map[string]bool)}
}

// silence is that of what does not answer.
type silence struct {
	row     int           // calls in a row that were left behind
	there   int           // calls that were left behind and have not ended
	pause   time.Duration // how long nothing more was asked after the last of them
	until   time.Time     // when that is over
	strange bool          // of what a node does not need
}

// lasts says whether nothing is to be asked now.
func (s *silence) lasts() bool { return time.Now().Before(s.until) }

// asked takes note of a call that begins after a silence: it goes first, and alone.
func (s *silence) asked() { s.until = time.Now().Add(CallTimeout) }

// left takes note of a call that was left behind. Those that have begun together count as one.
func (s *silence) left(inRow int, longest time.Duration) {
	s.row++
	s.there++
	if now := time.Now(); s.row >= inRow && !now.Before(s.until) {
		s.pause = min(max(2*s.pause, CallTimeout), longest)
		s.until = now.Add(s.pause)
	}
}

// longest bounds the pause.
func (s *silence) longest() time.Duration {
	if s.there >= ManyLeft {
		return MaxStrangeBackoff
	}
	return MaxBackoff
}

// over ends a silence.
func (s *silence) over() { s.row, s.pause, s.until = 0, 0, time.Time{} }

// turn is what becomes of something that is to be asked.
type turn int

const (
	notNow     turn = iota
	waitedFor       // asked
	notAwaited      // asked, and nobody waits for the answer
)

// begin says whether something may be asked now, which may be part of a look.
func (s *silences) begin(what string, l *look) turn {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[what]
	hangs := one != nil && one.row > 0
	many := s.manyWith(what, l, hangs)
	doubtful := l != nil && !hangs && !s.well[what]
	switch {
	case s.all.lasts() || hangs && one.lasts() || many != nil && many.lasts():
		return notNow
	case doubtful && len(l.doubtful) >= LoadsAtOnce:
		return notNow
	case doubtful:
		l.doubtful[what] = true
	}
	if s.all.row >= allInRow {
		s.all.asked()
	}
	if hangs {
		one.asked()
	}
	if many != nil {
		many.asked()
		s.trial = what
	}
	if hangs && l != nil {
		return notAwaited
	}
	return waitedFor
}

// manyWith returns the silence that something shares with others of its kind where many of them hang, or nil. s.mu is locked.
func (s *silences) manyWith(what string, l *look, hangs bool) *silence {
	switch {
	case s.isOneOfMany(what, hangs):
		return &s.strange
	case l != nil && hangs && s.all.there >= ManyLeft && !s.isStrange(what):
		return &s.many
	}
	return nil
}

// isOneOfMany says whether something waits for its turn with all that is strange and hangs. What was never asked does so too where
// much hangs: there may be thousands of such records. s.mu is locked.
func (s *silences) isOneOfMany(what string, hangs bool) bool {
	return s.strange.there >= mostStrange && !s.well[what] && s.isStrange(what) && (hangs || s.hanging() >= mostStrange)
}

// hanging returns how many strange things did not answer when they were asked last. s.mu is locked.
func (s *silences) hanging() (n int) {
	for _, one := range s.of {
		if one.strange && one.row > 0 {
			n++
		}
	}
	return n
}

// answered takes note of an answer.
func (s *silences) answered(what string, l *look) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l != nil {
		delete(l.doubtful, what)
	}
	s.all.over()
	s.news = time.Now()
	if one := s.of[what]; one != nil {
		s.isWell(what, one)
	}
	if !s.well[what] {
		if len(s.well) >= 2*MaxRecords {
			clear(s.well)
		}
		s.well[what] = true
	}
	if s.trial == what {
		s.trial, s.strange.until, s.many.until = "", time.Time{}, time.Time{} // it is the turn of the next
	}
}

// leave takes note of a call that is left behind, and says whether it was for something strange. Such a call tells nothing of the
// storage: in a folder anything may lie. Nor does one of a look tell more than those that were waited for at the same time, of which one
// has been answered, or was counted.
func (s *silences) leave(what string, l *look, began time.Time) (strange bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.silenceOf(what)
	delete(s.well, what)
	if one.strange = s.isStrange(what); one.strange {
		one.left(1, MaxStrangeBackoff)
		s.strange.left(mostStrange, s.strange.longest())
		return true
	}
	one.left(1, s.all.longest())
	if l != nil && began.Before(s.news) {
		s.all.there++
	} else {
		s.all.left(allInRow, s.all.longest())
		s.news = time.Now()
	}
	if l != nil && s.all.there >= ManyLeft {
		s.many.left(1, MaxBackoff)
	}
	return false
}

// silenceOf returns the silence of something. Of what has answered late, and is not asked any more, some are forgotten. s.mu is locked.
func (s *silences) silenceOf(what string) *silence {
	one := s.of[what]
	if one == nil {
		if len(s.of) >= 2*MaxRecords {
			maps.DeleteFunc(s.of, func(_ string, old *silence) bool { return old.there == 0 })
		}
		one = new(silence)
		s.of[what] = one
	}
	return one
}

// isWell ends the silence of something that has answered. s.mu is locked.
func (s *silences) isWell(what string, one *silence) {
	one.over()
	if one.there == 0 {
		delete(s.of, what)
	}
}

// ended takes note of the end of a call that was left behind, and of whether that was an answer.
func (s *silences) ended(what string, strange, answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[what]
	one.there--
	if answered {
		s.isWell(what, one)
		s.all.over()
		s.news = time.Now()
	}
	if !strange {
		s.all.there--
	} else if s.strange.there--; s.strange.there < mostStrange {
		s.strange.over()
	}
}

// ask lets f ask a storage for something, and waits for the answer no longer than CallTimeout, or until the deadline of ctx.
func ask[T any](ctx context.Context, s *silences, what string, f func(context.Context) (T, error)) (none T, _ error) {
	switch s.begin(what, lookOf(ctx)) {
	case waitedFor:
		return await(ctx, s, what, f)
	case notAwaited:
		go func() { _, _ = await(context.WithoutCancel(ctx), s, what, f) }()
	case notNow:
	}
	return none, ErrUnanswered
}

// await is ask for what may be asked now.
func await[T any](ctx context.Context, s *silences, what string, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
		late  error // why its time was up before it failed, or nil
	}
	var none T
	l, began := lookOf(ctx), time.Now()
	// A storage that heeds the context answers when that is cancelled. Others are waited for, so that what comes next comes after it.
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	deadline, _ := ctx.Deadline()
	over := time.NewTimer(time.Until(deadline))
	defer over.Stop()
	taken, late := make(chan answer), make(chan bool, 1)
	go func() {
		defer cancel()
		value, err := f(ctx)
		a := answer{value, err, nil}
		if err != nil {
			a.late = ctx.Err()
		}
		select {
		case taken <- a:
		case strange := <-late:
			s.ended(what, strange, !isSilence(a.late, a.err, l))
		}
	}()
	select {
	case a := <-taken:
		switch {
		case errors.Is(a.late, context.Canceled): // nobody waits any more, which tells nothing
		case isSilence(a.late, a.err, l):
			s.ended(what, s.leave(what, l, began), false)
			return none, ErrUnanswered
		default:
			s.answered(what, l)
		}
		return a.value, a.err
	case <-over.C:
		late <- s.leave(what, l, began)
		return none, ErrUnanswered
	}
}

// isSilence says whether a call that ended tells of no answer: its time was up, or it was one of a look and the storage's own time was.
func isSilence(late, err error, l *look) bool {
	return late != nil || l != nil && isTimeout(err)
}

// act is ask for what has no answer but an error.
func act(ctx context.Context, s *silences, what string, f func(context.Context) error) error {
	_, err := ask(ctx, s, what, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// Store implements Storage.
func (p patient) Store(ctx context.Context, key string, value []byte) error {
	return act(ctx, p.silent, "write "+key, func(ctx context.Context) error { return p.Storage.Store(ctx, key, value) })
}

// Delete implements Storage.
func (p patient) Delete(ctx context.Context, key string) error {
	return act(ctx, p.silent, "write "+key, func(ctx context.Context) error { return p.Storage.Delete(ctx, key) })
}

// Load implements Storage.
func (p patient) Load(ctx context.Context, key string) ([]byte, error) {
	return ask(ctx, p.silent, "load "+key, func(ctx context.Context) ([]byte, error) { return p.Storage.Load(ctx, key) })
}

// List implements Storage.
func (p patient) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	return ask(ctx, p.silent, "list "+prefix, func(ctx context.Context) ([]string, error) { return p.Storage.List(ctx, prefix, recursive) })
}

// Stat implements Storage.
func (p patient) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	return ask(ctx, p.silent, "stat "+key, func(ctx context.Context) (certmagic.KeyInfo, error) { return p.Storage.Stat(ctx, key) })
}

// isTimeout says whether an error is that nothing has come in time.
func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
