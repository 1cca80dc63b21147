// This file holds the stored key: made once, shared through Caddy's storage, followed as long as a config uses that, and
// written back where the storage has lost it.

package caddybokeh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

const (
	// storedKey is where Caddy's storage keeps the key. Caddys with a common storage share it.
	storedKey = store.Folder + "secret_key"

	maxKey = 64 << 10 // bytes of it

	// storedKeyLock is the lock under which it is written. Some storages keep a lock as the record of the lock's name, so
	// no record of ours has this name.
	storedKeyLock = storedKey + ".lock"

	// storageTimeout is how long a config load waits for the storage.
	storageTimeout = 5 * time.Second

	// keyInterval is how often the stored key is looked at.
	keyInterval = time.Second

	// keyRetryInterval is the same while it is missing.
	keyRetryInterval = 250 * time.Millisecond

	// largeKeyBackoff is how long a record is let be that was larger than a key.
	largeKeyBackoff = time.Minute

	// keyGrace is how long a process that has never seen a stored key leaves it to others to write back theirs, before
	// it stores its own: longer than they take to see that it is missing.
	keyGrace = 2 * time.Second

	// keyLockTimeout is how long the lock is tried. With keyGrace it must be shorter than storageTimeout.
	keyLockTimeout = 1500 * time.Millisecond
)

// keeper makes the key in one storage that which signs, for all policies of the configs that have this storage.
//
// Everybody signs with what is stored, and nobody overwrites that: so all agree one look after the last write. Who finds
// no key stores the one that signs here. Those who have seen a stored key do so at once, and others later, so that a
// process that has just started does not replace a key by which sessions live.
type keeper struct {
	held     *heldKeys
	raw      store.Storage
	st       store.Storage // the same, which always answers, but for locks
	patience time.Duration
	ring     atomic.Pointer[stamp.Keyring]
	first    sync.Once     // closes answered
	answered chan struct{} // closed when the storage was looked at once, or has not answered for too long
	stop     context.CancelFunc
	users    int         // guarded by held.mu
	locking  atomic.Bool // somebody waits for the lock

	read atomic.Bool // the key was there once

	large largeKey

	// What is told. Until answered is closed it is within first, then only by follow.
	failures int       // since the key was there last
	told     bool      // that was logged
	toldAt   time.Time // last
}

// largeKey is that a record was larger than a key is.
type largeKey struct {
	err error     // nil if there was none
	at  time.Time // when it was read last
}

// errNoKey says that no key is stored, or a broken one.
var errNoKey = errors.New("there is no key")

// follow looks at the stored key until ctx ends.
func (k *keeper) follow(ctx context.Context) {
	defer time.AfterFunc(storageTimeout, func() { k.answer(fmt.Errorf("no answer for %v", storageTimeout)) }).Stop()
	defer k.answer(nil)
	for ctx.Err() == nil {
		err := k.look(ctx)
		if ctx.Err() == nil && !k.answer(err) {
			k.tell(err)
		}
		rest(ctx, keyInterval)
	}
}

// answer tells how the storage was looked at for the first time, lets go who waits for that, and says whether it was it.
func (k *keeper) answer(err error) (first bool) {
	k.first.Do(func() {
		first = true
		k.tell(err)
		close(k.answered)
	})
	return first
}

// look makes the stored key the one that signs. Where none is stored, one is.
func (k *keeper) look(ctx context.Context) error {
	secret, err := k.load(ctx)
	if errors.Is(err, errNoKey) {
		secret, err = k.put(ctx, err)
	}
	if err != nil {
		return err
	}
	another := !bytes.Equal(secret, k.secret())
	if another && k.read.Load() {
		k.held.logger().Warn("the stored key is another one than before; it signs from now on, but what was signed with the old one is only known"+
			" to Caddys that have had that, until they end (unless it was replaced on purpose, look who else writes to this storage)",
			zap.String("key", storedKey))
	}
	if another || !k.read.Load() {
		k.ring.Store(k.held.add(secret))
		k.read.Store(true)
	}
	return nil
}

// secret returns the key that signs.
func (k *keeper) secret() []byte { return (*k.ring.Load())[0].Secret() }

// load returns the stored key.
func (k *keeper) load(ctx context.Context) ([]byte, error) {
	if err := k.tooLarge(ctx); err != nil {
		return nil, err
	}
	record, err := k.st.Load(ctx, storedKey)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoKey
	case err != nil:
		return nil, fmt.Errorf("loading: %w", err)
	case len(record) > maxKey:
		k.large = largeKey{keyTooLarge(int64(len(record))), time.Now()}
		return nil, k.large.err
	case isCutShort(record, k.secret()):
		return nil, fmt.Errorf("%w, but a record of %d bytes that was not written to its end", errNoKey, len(record))
	}
	return record, nil
}

// tooLarge returns an error if it is known that the record is larger than a key. Where the storage does not tell that without reading
// it, the record is let be for a while after it was.
func (k *keeper) tooLarge(ctx context.Context) error {
	if !store.KnowsSizes(k.st) {
		if k.large.err != nil && time.Since(k.large.at) < largeKeyBackoff {
			return k.large.err
		}
		return nil
	}
	info, err := k.st.Stat(ctx, storedKey)
	if err == nil && info.Size > maxKey {
		return keyTooLarge(info.Size)
	}
	return nil
}

func keyTooLarge(size int64) error {
	return fmt.Errorf("the record has %d bytes, and a key at most %d: delete it", size, maxKey)
}

// isCutShort says whether a record is what is left when a write ends early: nothing, zeros, or the beginning of the key
// that should be there. All else may be what an operator has put there, and is a key.
func isCutShort(record, key []byte) bool {
	return len(bytes.Trim(record, "\x00 \t\r\n")) == 0 || len(record) < len(key) && bytes.HasPrefix(key, record)
}

// put stores the key that signs here, and returns what is stored then: somebody else may have been first.
func (k *keeper) put(ctx context.Context, found error) ([]byte, error) {
	var patience time.Duration
	shared := k.held.wasStored()
	if !shared {
		patience = k.patience
	}
	if found != errNoKey { //nolint:errorlint // a broken record, which somebody may just be writing
		patience = max(patience, keyRetryInterval)
	}
	for until := time.Now().Add(patience); time.Now().Before(until) && ctx.Err() == nil; rest(ctx, keyRetryInterval) {
		if secret, err := k.load(ctx); !errors.Is(err, errNoKey) {
			return secret, err
		}
	}
	locked, unlock := k.lock(ctx)
	defer unlock()
	if secret, err := k.load(ctx); !errors.Is(err, errNoKey) {
		return secret, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err() // it has not waited to the end
	}
	secret := k.secret()
	if err := k.st.Store(ctx, storedKey, secret); err != nil {
		return nil, fmt.Errorf("storing: %w", err)
	}
	if !locked {
		rest(ctx, keyRetryInterval) // somebody else may be writing as well, and the last one has the say
	}
	if !shared {
		k.held.logger().Info("no key was stored; made one, by which all Caddys with this storage sign", zap.String("key", storedKey))
	} else {
		k.held.logger().Warn("the storage has lost the stored key; it is written back, and no session is lost by it", zap.String("key", storedKey), zap.NamedError("found", found))
	}
	return k.load(ctx)
}

// lock takes the lock under which the key is written, and returns what gives it back. Some storages refuse it while
// another process has it. One that gives it to nobody costs no key: without it, two that start together may sign with
// two keys for a moment.
//
// Some storages do not heed the context while they wait for a lock, and one tries again without a pause, for ever, once its
// context has ended. So the context of a lock does not end; what waits for it does, and a lock that comes late is given back.
func (k *keeper) lock(ctx context.Context) (locked bool, unlock func()) {
	over := time.NewTimer(keyLockTimeout)
	defer over.Stop()
	for ctx.Err() == nil && k.locking.CompareAndSwap(false, true) {
		taken, late := make(chan error), make(chan struct{})
		go func() {
			defer k.locking.Store(false)
			err := k.st.Lock(context.WithoutCancel(ctx), storedKeyLock)
			select {
			case taken <- err:
			case <-late:
				if err == nil {
					k.unlock(ctx)
				}
			}
		}()
		select {
		case err := <-taken:
			if err == nil {
				return true, func() { k.unlock(ctx) }
			}
		case <-over.C:
			close(late)
			return false, func() {}
		case <-ctx.Done():
			close(late)
			return false, func() {}
		}
		select {
		case <-time.After(keyRetryInterval):
		case <-over.C:
			return false, func() {}
		case <-ctx.Done():
		}
	}
	return false, func() {}
}

// unlock gives the lock back, and waits for that no longer than for the lock. One that cannot be given back expires by
// itself; the key counts.
func (k *keeper) unlock(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.st.Unlock(context.WithoutCancel(ctx), storedKeyLock)
	}()
	select {
	case <-done:
	case <-time.After(keyLockTimeout):
	}
}

// rest waits for d, or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tell logs that the key cannot be had any more, and that it can again. One failure after it was had may be that of a file
// which somebody replaced.
func (k *keeper) tell(err error) {
	if err == nil {
		if k.told {
			k.held.logger().Info("the storage answers again; sessions are stamped with the stored key from now on")
		}
		k.failures, k.told = 0, false
		return
	}
	k.failures++
	if k.told || k.read.Load() && k.failures < 2 || !k.toldAt.IsZero() && time.Since(k.toldAt) < adviceInterval {
		return
	}
	k.told, k.toldAt = true, time.Now()
	k.warn(err)
}

// warn says by which key sessions are stamped while the stored one cannot be had.
func (k *keeper) warn(err error) {
	if k.held.wasStored() {
		k.held.logger().Warn("cannot have the stored key; sessions are stamped with the one that this process has read before",
			zap.String("key", storedKey), zap.Error(err))
		return
	}
	k.held.logger().Error("cannot have the stored key; sessions are stamped with a key of this process, which neither another Caddy nor"+
		" this one after a restart can read (mend the storage, or set secret_key)", zap.String("key", storedKey), zap.Error(err))
}
