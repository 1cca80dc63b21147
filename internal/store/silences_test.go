// This file tests what is kept of a storage that does not answer.

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Of what did not answer in time once, and is never asked for again, not much is kept.
func TestSilencesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSilences()
		s.isStrange = func(string) bool { return true }
		for i := range 5 * MaxRecords {
			s.ended(fmt.Sprint("load ", i), s.leave(fmt.Sprint("load ", i), nil, time.Now()), false)
		}
		if len(s.of) > 2*MaxRecords {
			t.Errorf("%d are kept", len(s.of))
		}
	})
}

// Among many errors it is seen that the storage does not answer.
func TestUnansweredAmongMany(t *testing.T) {
	var errs []error
	for range 10 {
		errs = append(errs, ErrBroken)
	}
	if err := Few(append(errs, ErrUnanswered)); !errors.Is(err, ErrUnanswered) || !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "8 others") {
		t.Error(err)
	}
}

// What hangs for weeks is asked once an hour in the end.
func TestStorageHangsForWeeks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		defer synctest.Wait()
		defer close(end)
		s, asked := newSilences(), 0
		for begun := time.Now(); time.Since(begun) < 60*24*time.Hour; letPass(time.Minute) {
			_ = act(t.Context(), s, "load", func(context.Context) error {
				asked++
				<-end
				return nil
			})
		}
		if asked < ManyLeft || asked > 2500 {
			t.Errorf("in 60 days it is asked %d times", asked)
		}
	})
}

// A storage that heeds its context and does not answer is asked no more often than one that does not heed it.
func TestStorageHeedsItsContext(t *testing.T) {
	for name, f := range map[string]func(ctx context.Context, end chan struct{}) error{
		"no":                  func(_ context.Context, end chan struct{}) error { <-end; return nil },
		"yes":                 func(ctx context.Context, _ chan struct{}) error { <-ctx.Done(); return ctx.Err() },
		"in words of its own": func(ctx context.Context, _ chan struct{}) error { <-ctx.Done(); return errors.New("i/o timeout") },
		"a bit later": func(ctx context.Context, _ chan struct{}) error {
			<-ctx.Done()
			time.Sleep(time.Second)
			return ctx.Err()
		},
		"as if nothing is kept": func(ctx context.Context, _ chan struct{}) error { <-ctx.Done(); return fs.ErrNotExist },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, end, well := newSilences(), make(chan struct{}), atomic.Bool{}
				var asked atomic.Int64
				load := func(i int) error {
					return act(t.Context(), s, fmt.Sprint("load ", i), func(ctx context.Context) error {
						if well.Load() {
							return nil
						}
						asked.Add(1)
						return f(ctx, end)
					})
				}
				begun := time.Now()
				Severally(200, func(i int) {
					if err := load(i); !errors.Is(err, ErrUnanswered) {
						t.Errorf("load %d: %v", i, err)
					}
				})
				if took, n := time.Since(begun), asked.Load(); took > 3*CallTimeout || n > 3*LoadsAtOnce {
					t.Errorf("200 loads take %v, and %d were asked", took, n)
				}
				for range 3600 { // an hour
					_ = load(0)
					letPass(time.Second)
				}
				if n := asked.Load(); n > 50 {
					t.Errorf("in an hour %d were asked", n)
				}
				well.Store(true)
				letPass(MaxBackoff)
				if err := load(0); err != nil {
					t.Error("when it is well: ", err)
				}
				if err := load(1); err != nil {
					t.Error("of all that does not answer one was asked, and answered: ", err)
				}
				close(end)
				synctest.Wait()
			})
		})
	}
}

// That somebody does not wait any more tells nothing of a storage.
func TestNobodyWaitsForTheStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSilences()
		hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		_ = act(t.Context(), s, "load 1", hangs)
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if err := act(ctx, s, "load 2", hangs); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if s.all.row != 1 || len(s.of) != 1 || s.well["load 2"] {
			t.Errorf("%d calls in a row have no answer, of %d things, want that before", s.all.row, len(s.of))
		}
	})
}

// letPass lets time pass, and all that happens by then.
func letPass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
