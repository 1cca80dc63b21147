// Package clustertest has a storage for tests that several nodes share, and ways to it that fail, hang and play tricks. Its keys and
// records are written down here once more, so that tests see what other versions see.
//
// This file holds the storage.
package clustertest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"
)

// Vault is a storage that several nodes share.
type Vault struct {
	sync.Mutex // guards Values
	Values     map[string][]byte
}

// NewVault returns an empty vault.
func NewVault() *Vault { return &Vault{Values: map[string][]byte{}} }

// Value returns what is stored at a key, or nil.
func (v *Vault) Value(key string) []byte {
	v.Lock()
	defer v.Unlock()
	return v.Values[key]
}

// Holds says whether something is stored at a key.
func (v *Vault) Holds(key string) bool { return v.Value(key) != nil }

// Door returns a way to the vault.
func (v *Vault) Door() *Door { return &Door{Vault: v} }

// DrainKey returns the key at which a storage has the drain record of an upstream, by its name between nodes.
func DrainKey(shared string) string {
	sum := sha256.Sum256([]byte(shared))
	return "caddy-bokeh/marks/" + hex.EncodeToString(sum[:16]) + ".json"
}

// NodeKey returns the key at which a storage has the report of a node.
func NodeKey(node string) string { return "caddy-bokeh/nodes/" + node + ".json" }

// Door is one node's way to the vault.
type Door struct {
	*Vault
	mu     sync.Mutex // guards all below
	broken error
	shut   chan struct{} // what uses the door waits until this is closed
}

// Fail makes every call through the door fail, or none.
func (d *Door) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = err
}

// Hang makes every call through the door wait until what it returns is called.
func (d *Door) Hang() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	shut := make(chan struct{})
	d.shut = shut
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.shut = nil
		close(shut)
	}
}

// Open waits while the door hangs, and returns an error if it fails.
func (d *Door) Open() error {
	d.mu.Lock()
	shut, err := d.shut, d.broken
	d.mu.Unlock()
	if shut != nil {
		<-shut
	}
	return err
}

// Store implements store.Storage.
func (d *Door) Store(_ context.Context, key string, value []byte) error {
	if err := d.Open(); err != nil {
		return err
	}
	d.Vault.Lock()
	defer d.Vault.Unlock()
	d.Values[key] = value
	return nil
}

// Load implements store.Storage.
func (d *Door) Load(_ context.Context, key string) ([]byte, error) {
	if err := d.Open(); err != nil {
		return nil, err
	}
	d.Vault.Lock()
	defer d.Vault.Unlock()
	value, ok := d.Values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

// Delete implements store.Storage.
func (d *Door) Delete(_ context.Context, key string) error {
	if err := d.Open(); err != nil {
		return err
	}
	d.Vault.Lock()
	defer d.Vault.Unlock()
	delete(d.Values, key)
	return nil
}

// List also shows what a file storage does: the temporary file of a writer.
func (d *Door) List(_ context.Context, prefix string, _ bool) ([]string, error) {
	if err := d.Open(); err != nil {
		return nil, err
	}
	d.Vault.Lock()
	defer d.Vault.Unlock()
	keys := []string{prefix + "/3991498540"}
	for key := range maps.Keys(d.Values) {
		if strings.HasPrefix(key, prefix+"/") {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// Stat knows no sizes.
func (d *Door) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, errors.ErrUnsupported
}

// Lock gives a lock that nobody needs.
func (d *Door) Lock(context.Context, string) error { return nil }

// Unlock takes it back.
func (d *Door) Unlock(context.Context, string) error { return nil }
