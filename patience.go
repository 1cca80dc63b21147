// This file holds the patience with a storage: every call ends in time, whether the storage heeds its context or not.

package caddybokeh

import (
	"context"
	"sync"
	"time"
)

const (
	// callWait is how long one call of a storage may take.
	callWait = 5 * time.Second

	// longestSilence bounds for how long a storage that does not answer is not asked again.
	longestSilence = 5 * time.Minute
)

// promptStorage is a storage that always answers. Not every storage heeds a context, so a call that takes too long is left
// behind in its goroutine. While that is there, the same is asked again only after a pause, which doubles, and so is all else
// once several calls in a row were left behind: what hangs for a day leaves a few dozen goroutines, and what is well again is
// found.
//
// A call that was left behind may do what it was asked for at any later time. So a record may be written after a younger one:
// the node that has written the younger one finds that, and writes it again.
type promptStorage struct {
	recordStorage
	silent *silences
}

func newPromptStorage(st recordStorage) promptStorage {
	return promptStorage{st, newSilences()}
}

// silences are those of one storage.
type silences struct {
	mu  sync.Mutex // guards all below
	all silence
	of  map[string]*silence // by what was asked, of what is still there
}

func newSilences() *silences { return &silences{of: make(map[string]*silence)} }

// silence is that of what does not answer.
type silence struct {
	row   int           // calls in a row that were left behind
	there int           // calls that were left behind and have not ended
	pause time.Duration // how long nothing more was asked after the last of them
	until time.Time     // when that is over
}

// allowance is what may be left behind: in a row until there is a pause, and in all.
type allowance struct{ row, there int }

var (
	allowedOfOne = allowance{row: 1, there: 16}
	allowedOfAll = allowance{row: loadsAtOnce, there: 8 * loadsAtOnce}
)

// lasts says whether nothing is to be asked now.
func (s *silence) lasts(a allowance) bool {
	return s.there >= a.there || s.row >= a.row && time.Now().Before(s.until)
}

// asked takes note of a call that begins. After a silence it goes first, and alone.
func (s *silence) asked(a allowance) {
	if s.row >= a.row {
		s.until = time.Now().Add(callWait)
	}
}

// left takes note of a call that was left behind. Those that have begun together count as one.
func (s *silence) left(a allowance) {
	s.row++
	s.there++
	if now := time.Now(); s.row >= a.row && !now.Before(s.until) {
		s.pause = min(max(2*s.pause, callWait), longestSilence)
		s.until = now.Add(s.pause)
	}
}

// over ends a silence.
func (s *silence) over() { s.row, s.pause = 0, 0 }

// begin says whether something may be asked now.
func (s *silences) begin(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[what]
	if s.all.lasts(allowedOfAll) || one != nil && one.lasts(allowedOfOne) {
		return false
	}
	s.all.asked(allowedOfAll)
	if one != nil {
		one.asked(allowedOfOne)
	}
	return true
}

// answered takes note of an answer.
func (s *silences) answered(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all.over()
	if one := s.of[what]; one != nil {
		one.over()
	}
}

// leave takes note of a call that is left behind.
func (s *silences) leave(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[what]
	if one == nil {
		one = new(silence)
		s.of[what] = one
	}
	one.left(allowedOfOne)
	s.all.left(allowedOfAll)
}

// ended takes note of the end of a call that was left behind.
func (s *silences) ended(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of[what]
	one.there--
	s.all.there--
	one.over()
	s.all.over()
	if one.there == 0 {
		delete(s.of, what)
	}
}

// ask lets f ask a storage for something, and waits for the answer no longer than callWait, or until the deadline of ctx.
func ask[T any](ctx context.Context, s *silences, what string, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	if !s.begin(what) {
		return none, errUnanswered
	}
	// A storage that heeds the context answers when that is cancelled. Others are waited for, so that what comes next comes after it.
	ctx, cancel := context.WithTimeout(ctx, callWait)
	deadline, _ := ctx.Deadline()
	over := time.NewTimer(time.Until(deadline))
	defer over.Stop()
	taken, late := make(chan answer), make(chan struct{})
	go func() {
		defer cancel()
		value, err := f(ctx)
		select {
		case taken <- answer{value, err}:
		case <-late:
			s.ended(what)
		}
	}()
	select {
	case a := <-taken:
		s.answered(what)
		return a.value, a.err
	case <-over.C:
		s.leave(what)
		close(late)
		return none, errUnanswered
	}
}

// act is ask for what has no answer but an error.
func act(ctx context.Context, s *silences, what string, f func(context.Context) error) error {
	_, err := ask(ctx, s, what, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// Store implements recordStorage.
func (p promptStorage) Store(ctx context.Context, key string, value []byte) error {
	return act(ctx, p.silent, "write "+key, func(ctx context.Context) error { return p.recordStorage.Store(ctx, key, value) })
}

// Delete implements recordStorage.
func (p promptStorage) Delete(ctx context.Context, key string) error {
	return act(ctx, p.silent, "write "+key, func(ctx context.Context) error { return p.recordStorage.Delete(ctx, key) })
}

// Load implements recordStorage.
func (p promptStorage) Load(ctx context.Context, key string) ([]byte, error) {
	return ask(ctx, p.silent, "load "+key, func(ctx context.Context) ([]byte, error) { return p.recordStorage.Load(ctx, key) })
}

// List implements recordStorage.
func (p promptStorage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	return ask(ctx, p.silent, "list "+prefix, func(ctx context.Context) ([]string, error) { return p.recordStorage.List(ctx, prefix, recursive) })
}
