// This file holds the keys that stamps are signed with: the config's, or one kept in Caddy's storage.

package caddybokeh

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

const (
	// storedKey is where Caddy's storage keeps the key. Caddys with a common storage share it.
	storedKey = "caddy-bokeh/secret_key"

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

// processKey signs while the stored key cannot be had. It goes on verifying when it can, so
// that no session is lost by that.
var processKey = sync.OnceValue(func() *key { return newKey(randomSecret()) })

// keys returns the keys of s. The ring in it is replaced when the stored key comes late.
func (s *Selection) keys(ctx caddy.Context) (*atomic.Pointer[keyring], error) {
	p := new(atomic.Pointer[keyring])
	if len(s.SecretKey) > 0 {
		ring, err := configured(s.SecretKey)
		p.Store(&ring)
		return p, err
	}
	p.Store(&keyring{processKey()})
	loaded := make(chan struct{})
	go s.keepLoading(ctx, ctx.Storage(), p, sync.OnceFunc(func() { close(loaded) }))
	select {
	case <-loaded:
	case <-time.After(storageWait):
		s.logger.Error("storage does not answer; sessions are stamped with a key of this process, which neither another Caddy nor this one"+
			" after a restart can read (mend the storage, or set secret_key)", zap.Duration("waited", storageWait))
	}
	return p, nil
}

// configured makes a ring of the keys in the config.
func configured(secrets []string) (keyring, error) {
	repl := caddy.NewReplacer()
	var ring keyring
	for i, s := range secrets {
		secret, err := repl.ReplaceOrErr(s, true, true)
		if err != nil {
			return nil, fmt.Errorf("secret_key %d: %w", i+1, err)
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
			p.Store(&keyring{newKey(secret), processKey()})
			if try > 0 {
				s.logger.Info("storage answers again; sessions are stamped with the stored key from now on")
			}
			return
		}
		if try == 0 {
			s.logger.Error("cannot have the stored key; sessions are stamped with a key of this process, which neither another Caddy nor"+
				" this one after a restart can read (mend the storage, or set secret_key)", zap.String("key", storedKey), zap.Error(err))
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
