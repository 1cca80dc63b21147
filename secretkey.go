// This file holds the keys that stamps are signed with: the config's, or those that the process holds.

package caddybokeh

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cluster"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// maxHeldKeys bounds the keys that a process holds. Each but the first is another storage's.
const maxHeldKeys = 4

// heldKeys are the keys by which a process has stamped, other than those of configs. They all
// verify: no session is lost because the storage fails when a config is loaded.
type heldKeys struct {
	mu      sync.Mutex     // guards all below
	ring    *stamp.Keyring // the newest first
	stored  bool           // whether that was in a storage: the first one of all is only here
	keepers []*keeper      // of the storages of the configs that are loaded

	logger func() *zap.Logger // as it is at present: that of a config may end before these do
}

// held is the keys of this process. It begins with a random one, which signs until a stored one is
// read.
var held = sync.OnceValue(newHeldKeys)

func newHeldKeys() *heldKeys {
	return &heldKeys{ring: &stamp.Keyring{stamp.NewKey(randomSecret())}, logger: func() *zap.Logger { return printable.Log(caddy.Log().Named("bokeh")) }}
}

// add makes a stored key the one that signs, and returns all.
func (h *heldKeys) add(secret []byte) *stamp.Keyring {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stored = true
	k := stamp.NewKey(secret)
	if (*h.ring)[0].Fingerprint() == k.Fingerprint() {
		return h.ring
	}
	ring := append(stamp.Keyring{k}, slices.DeleteFunc(slices.Clone(*h.ring), func(old *stamp.Key) bool { return old.Fingerprint() == k.Fingerprint() })...)
	ring = ring[:min(len(ring), maxHeldKeys)]
	h.ring = &ring
	return h.ring
}

// wasStored says whether the newest key was in a storage.
func (h *heldKeys) wasStored() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stored
}

// keeper returns the one of a storage. It ends with the last config that has asked for it.
func (h *heldKeys) keeper(config context.Context, st store.Storage, patience time.Duration) *keeper {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.keepers, func(k *keeper) bool { return cluster.Same(k.raw, st) })
	if i < 0 {
		i = len(h.keepers)
		ctx, stop := context.WithCancel(context.Background())
		k := newKeeper(h, st)
		k.patience, k.stop = patience, stop
		k.ring.Store(h.ring)
		h.keepers = append(h.keepers, k)
		go k.follow(ctx)
	}
	k := h.keepers[i]
	k.users++
	context.AfterFunc(config, func() { h.leave(k) })
	return k
}

func newKeeper(h *heldKeys, st store.Storage) *keeper {
	needsAll := func(string) bool { return false }
	return &keeper{held: h, raw: st, st: store.Patient(st, needsAll), answered: make(chan struct{})}
}

// leave ends a keeper that no config needs any more.
func (h *heldKeys) leave(k *keeper) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k.users--; k.users == 0 {
		k.stop()
		h.keepers = slices.DeleteFunc(h.keepers, func(other *keeper) bool { return other == k })
	}
}

// provideKeys gives s its keys. Where they come from the storage, that is being looked at meanwhile, and the ring is replaced
// when the stored key comes late, or another one is stored.
func (s *Selection) provideKeys(ctx caddy.Context) error {
	if len(s.SecretKey) > 0 {
		ring, err := configured(s.SecretKey)
		s.ring = new(atomic.Pointer[stamp.Keyring])
		s.ring.Store(&ring)
		return err
	}
	patience := keyGrace
	if ctx.Storage() == caddy.DefaultStorage {
		patience = 0 // a folder of this machine, where it is most likely the first start of all
	}
	k := held().keeper(ctx, ctx.Storage(), patience)
	s.ring, s.keyed = &k.ring, k.answered
	return nil
}

// keyPlaceholder matches what is no key itself, and so may be shown.
var keyPlaceholder = regexp.MustCompile(`^\{(env|file)\.[A-Za-z0-9_./-]+\}$`)

// configured makes a ring of the keys in the config.
func configured(secrets []string) (stamp.Keyring, error) {
	repl := caddy.NewReplacer()
	var ring stamp.Keyring
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
		ring = append(ring, stamp.NewKey([]byte(secret)))
	}
	return ring, nil
}

func randomSecret() []byte {
	var raw [32]byte
	rand.Read(raw[:])
	return []byte(base64.StdEncoding.EncodeToString(raw[:]))
}
