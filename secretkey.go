// This file holds the keys that stamps are signed with: the config's, or one kept in Caddy's storage.

package caddybokeh

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

const (
	// storedKey is where Caddy's storage keeps the key. Caddys with a common storage share it.
	storedKey = folder + "secret_key"

	// storageWait is how long a config load waits for the stored key.
	storageWait = 5 * time.Second

	// storageRetry is how long after a failure it is asked for again.
	storageRetry = 5 * time.Second
)

// storage is the part of Caddy's storage that the key needs.
type storage interface {
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
}

// maxHeldKeys bounds the keys that a process holds. Each but the first is another storage's.
const maxHeldKeys = 4

// heldKeys are the keys by which a process has stamped, other than those of configs. They all
// verify: no session is lost because the storage fails when a config is loaded.
type heldKeys struct {
	mu   sync.Mutex // guards ring
	ring *keyring   // the newest first
}

// held is the keys of this process. It begins with a random one, which signs until a stored one is
// read.
var held = sync.OnceValue(newHeldKeys)

func newHeldKeys() *heldKeys { return &heldKeys{ring: &keyring{newKey(randomSecret())}} }

// keys returns all keys, of which the first one signs.
func (h *heldKeys) keys() *keyring {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ring
}

// add makes a stored key the one that signs, and returns all.
func (h *heldKeys) add(secret []byte) *keyring {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := newKey(secret)
	if (*h.ring)[0].print == k.print {
		return h.ring
	}
	ring := append(keyring{k}, slices.DeleteFunc(slices.Clone(*h.ring), func(old *key) bool { return old.print == k.print })...)
	ring = ring[:min(len(ring), maxHeldKeys)]
	h.ring = &ring
	return h.ring
}

// keys returns the keys of s. The ring in it is replaced when the stored key comes late.
func (s *Selection) keys(ctx caddy.Context) (*atomic.Pointer[keyring], error) {
	p := new(atomic.Pointer[keyring])
	if len(s.SecretKey) > 0 {
		ring, err := configured(s.SecretKey)
		p.Store(&ring)
		return p, err
	}
	p.Store(held().keys())
	loaded := make(chan struct{})
	go s.keepLoading(ctx, ctx.Storage(), p, sync.OnceFunc(func() { close(loaded) }))
	select {
	case <-loaded:
	case <-time.After(storageWait):
		s.warnOfStorage(p, fmt.Errorf("no answer for %v", storageWait))
	}
	return p, nil
}

// warnOfStorage says by which key sessions are stamped while the stored one cannot be had.
func (s *Selection) warnOfStorage(p *atomic.Pointer[keyring], err error) {
	if len(*p.Load()) > 1 {
		s.logger.Warn("cannot have the stored key; sessions are stamped with the one that this process has read before",
			zap.String("key", storedKey), zap.Error(err))
		return
	}
	s.logger.Error("cannot have the stored key; sessions are stamped with a key of this process, which neither another Caddy nor"+
		" this one after a restart can read (mend the storage, or set secret_key)", zap.String("key", storedKey), zap.Error(err))
}

// keyPlaceholder matches what is no key itself, and so may be shown.
var keyPlaceholder = regexp.MustCompile(`^\{(env|file)\.[A-Za-z0-9_./-]+\}$`)

// configured makes a ring of the keys in the config.
func configured(secrets []string) (keyring, error) {
	repl := caddy.NewReplacer()
	var ring keyring
	for i, s := range secrets {
		secret, err := repl.ReplaceOrErr(s, true, true)
		if err != nil {
			if keyPlaceholder.MatchString(s) {
				return nil, fmt.Errorf("secret_key %d is %s, which is unknown or empty: Caddy's own environment, or the file, must have it", i+1, s)
			}
			// What the replacer says may show a part of the key.
			return nil, fmt.Errorf("secret_key %d has a placeholder that is unknown or empty; a brace of the key itself is written as \\{", i+1)
		}
		if secret == "" {
			return nil, fmt.Errorf("secret_key %d is empty", i+1)
		}
		ring = append(ring, newKey([]byte(secret)))
	}
	return ring, nil
}

// keepLoading asks for the stored key until it has it or the config is over. It calls answered
// after the first try.
func (s *Selection) keepLoading(ctx context.Context, st storage, p *atomic.Pointer[keyring], answered func()) {
	defer answered()
	for try := 0; ; try++ {
		secret, err := loadOrCreate(ctx, st)
		if err == nil {
			p.Store(held().add(secret))
			if try > 0 {
				s.logger.Info("storage answers again; sessions are stamped with the stored key from now on")
			}
			return
		}
		if try == 0 {
			s.warnOfStorage(p, err)
		}
		answered()
		select {
		case <-ctx.Done():
			return
		case <-time.After(storageRetry):
		}
	}
}

// loadOrCreate returns the stored key. The first Caddy of all makes it, under the storage's lock
// so that two that start together agree.
func loadOrCreate(ctx context.Context, st storage) ([]byte, error) {
	secret, err := loadKey(ctx, st)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err := st.Lock(ctx, storedKey); err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	// A lock that cannot be given back expires by itself; the key counts.
	defer func() { _ = st.Unlock(context.WithoutCancel(ctx), storedKey) }()
	if secret, err := loadKey(ctx, st); !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err := st.Store(ctx, storedKey, randomSecret()); err != nil {
		return nil, fmt.Errorf("storing: %w", err)
	}
	return loadKey(ctx, st)
}

func loadKey(ctx context.Context, st storage) ([]byte, error) {
	secret, err := st.Load(ctx, storedKey)
	if err != nil {
		return nil, fmt.Errorf("loading: %w", err)
	}
	if len(secret) == 0 {
		return nil, errors.New("the stored key is empty")
	}
	return secret, nil
}

func randomSecret() []byte {
	var raw [32]byte
	rand.Read(raw[:])
	return []byte(base64.StdEncoding.EncodeToString(raw[:]))
}
