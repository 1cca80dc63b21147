// This file tests where the keys that stamps are signed with come from.

package caddybokeh

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// memory is a storage that can fail, and that hands out its lock to one at a time.
type memory struct {
	lock  sync.Mutex
	mu    sync.Mutex // guards all below
	value []byte
	fails error
	locks int
}

func (m *memory) Lock(context.Context, string) error {
	m.lock.Lock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.locks++
	return nil
}

func (m *memory) Unlock(context.Context, string) error {
	m.lock.Unlock()
	return nil
}

func (m *memory) Store(_ context.Context, _ string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails == nil {
		m.value = value
	}
	return m.fails
}

func (m *memory) Load(context.Context, string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.fails != nil:
		return nil, m.fails
	case m.value == nil:
		return nil, fs.ErrNotExist
	}
	return m.value, nil
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = err
}

func TestNodesAgreeOnTheStoredKey(t *testing.T) {
	st := new(memory)
	keys := make([]string, 20)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			secret, err := loadOrCreate(t.Context(), st)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(secret)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || len(k) != 44 {
			t.Fatalf("keys differ: %v", keys)
		}
	}
	locks := st.locks
	if _, err := loadOrCreate(t.Context(), st); err != nil || st.locks != locks {
		t.Errorf("reading a key that is there takes the lock, or fails: %v", err)
	}
}

// Without its storage a policy stamps with a key of the process, says so, and goes over to the
// stored key when it can; what it stamped before still counts.
func TestStorageFails(t *testing.T) {
	defer func(old func() *heldKeys) { held = old }(held)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		s := &Selection{logger: zap.New(core)}
		st := &memory{fails: errors.New("no route to storage")}
		p := new(atomic.Pointer[keyring])
		keys := newHeldKeys()
		held = func() *heldKeys { return keys }
		p.Store(keys.keys())
		answered := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go s.keepLoading(ctx, st, p, sync.OnceFunc(func() { close(answered) }))
		<-answered
		before := (*p.Load())[0].stamp(tag{1})
		if n := logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != 1 {
			t.Errorf("%d errors are logged, want 1", n)
		}
		time.Sleep(time.Minute)
		if n := logs.Len(); n != 1 {
			t.Errorf("after a minute %d lines are logged, want 1", n)
		}
		st.fail(nil)
		time.Sleep(storageRetry)
		synctest.Wait()
		ring := *p.Load()
		if len(ring) != 2 || string(ring[0].secret) != string(st.value) {
			t.Fatal("the stored key does not sign")
		}
		if _, _, ok := ring.verify(before); !ok {
			t.Error("what was stamped before does not count any more")
		}
		if n := logs.FilterLevelExact(zapcore.InfoLevel).Len(); n != 1 {
			t.Errorf("it is not said that the storage answers again")
		}
		cancel()
	})
}

// What a process has signed with it goes on verifying, whatever becomes of the storage.
func TestHeldKeys(t *testing.T) {
	h := newHeldKeys()
	own := (*h.keys())[0]
	first := h.add([]byte("first"))
	if again := h.add([]byte("first")); again != first {
		t.Error("the same key makes another ring")
	}
	h.add([]byte("second"))
	ring := *h.add([]byte("first"))
	if len(ring) != 3 || string(ring[0].secret) != "first" || string(ring[1].secret) != "second" || ring[2] != own {
		t.Errorf("the ring is %v", ring)
	}
	for i := range 10 {
		h.add(fmt.Append(nil, i))
	}
	if n := len(*h.keys()); n != maxHeldKeys {
		t.Errorf("%d keys are held", n)
	}
}

func TestLoadingEndsWithTheConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Selection{logger: zap.NewNop()}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			p := new(atomic.Pointer[keyring])
			p.Store(newHeldKeys().keys())
			s.keepLoading(ctx, &memory{fails: errors.New("no")}, p, func() {})
			close(done)
		}()
		time.Sleep(time.Minute)
		cancel()
		<-done
	})
}

func TestConfiguredKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CADDY_BOKEH_TEST_KEY", "from env")
	t.Setenv("CADDY_BOKEH_TEST_EMPTY", "")
	ring, err := configured([]string{"plain", "{env.CADDY_BOKEH_TEST_KEY}", "{file." + file + "}"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"plain", "from env", "from file"} {
		if got := string(ring[i].secret); got != want {
			t.Errorf("key %d is %q, want %q", i+1, got, want)
		}
	}
	if _, err := configured([]string{"{env.CADDY_BOKEH_TEST_NONE}"}); err == nil || !strings.Contains(err.Error(), "{env.CADDY_BOKEH_TEST_NONE}") {
		t.Errorf("the variable that is not set has no name: %v", err)
	}
	for name, secret := range map[string]string{
		"empty":          "",
		"empty variable": "{env.CADDY_BOKEH_TEST_EMPTY}",
		"no variable":    "{env.CADDY_BOKEH_TEST_NONE}",
		"no file":        "{file." + file + ".none}",
		"no placeholder": "{what.is.this}",
		"good with one":  "good{part}good",
		"a good path":    "{part.of/good}",
	} {
		_, err := configured([]string{"good", secret})
		if err == nil || !strings.Contains(err.Error(), "secret_key 2") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "good") || strings.Contains(err.Error(), "part")) {
			t.Errorf("%s: the error shows a key: %v", name, err)
		}
	}
}
