// Package stamp makes and verifies stamps: signed strings that name an upstream, and that no client can make.
//
// A stamp is a version letter, 168 random bits and the upstream's tag in base64url, a dot, and a signature. That is the form of
// a session id that Bokeh has signed (bokeh/util/token.py), so a stamp can be one where the servers have the same key.
//
// This file holds all of it. Nothing in it is changed once it is made, so all may be used by any goroutine.
package stamp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"sync"
)

const (
	// TagLen is the length of a tag in bytes.
	TagLen = 6

	// Len is the length of a stamp.
	Len = baseLen + 1 + signatureLen

	// version opens every stamp.
	version = 'c'

	// 168 random bits and 48 bits of tag make 27 bytes: 36 characters of base64 with none left over.
	randomLen    = 21
	baseLen      = 1 + (randomLen+TagLen)*4/3
	signatureLen = 43
)

// base64url is Bokeh's encoding of ids and signatures (bokeh/util/token.py).
var base64url = base64.RawURLEncoding

// Tag names an upstream in a stamp: 48 bits that only a holder of the key can tell from random.
type Tag [TagLen]byte

// Fingerprint tells keys apart without giving them away. Nodes compare those of their keys.
type Fingerprint uint64

// String returns f as reports have it.
func (f Fingerprint) String() string { return fmt.Sprintf("%016x", uint64(f)) }

// Key signs stamps and, where it is Bokeh's own BOKEH_SECRET_KEY, session ids.
type Key struct {
	secret      []byte
	macs        sync.Pool // of *mac: HMAC-SHA256 with this secret
	fingerprint Fingerprint
}

// NewKey returns the key with a secret, which must not be changed from then on.
func NewKey(secret []byte) *Key {
	k := &Key{secret: secret}
	k.macs.New = func() any { return &mac{Hash: hmac.New(sha256.New, k.secret)} }
	sum := k.mac("caddy-bokeh fingerprint\x00", "")
	k.fingerprint = Fingerprint(binary.BigEndian.Uint64(sum[:8]))
	return k
}

// Secret returns what the key was made of.
func (k *Key) Secret() []byte { return k.secret }

// Fingerprint returns what tells the key from others.
func (k *Key) Fingerprint() Fingerprint { return k.fingerprint }

// mac makes HMACs one after the other, in the same memory.
type mac struct {
	hash.Hash
	text, sum []byte
}

// mac returns HMAC-SHA256(key, domain + s).
func (k *Key) mac(domain, s string) [sha256.Size]byte {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	m.text = append(append(m.text[:0], domain...), s...)
	m.Reset()
	m.Write(m.text)
	m.sum = m.Sum(m.sum[:0])
	return [sha256.Size]byte(m.sum)
}

// Signature is Bokeh's signature of a session id (bokeh/util/token.py, _signature).
func (k *Key) Signature(base string) string {
	sum := k.mac("", base)
	return base64url.EncodeToString(sum[:])
}

// Tag returns the tag of the upstream with the given name.
func (k *Key) Tag(name string) Tag {
	sum := k.mac("caddy-bokeh upstream\x00", name)
	return Tag(sum[:TagLen])
}

// Order is what the name weighs in a rendezvous order. It goes on where the tag ends, since
// clients see the tag.
func (k *Key) Order(name string) uint64 {
	sum := k.mac("caddy-bokeh upstream\x00", name)
	return binary.BigEndian.Uint64(sum[TagLen:])
}

// Stamp makes a new stamp that names the upstream with the given tag. Each is unique and
// cannot be guessed, so it serves as a session id as well.
func (k *Key) Stamp(t Tag) string {
	var raw [randomLen + TagLen]byte
	rand.Read(raw[:randomLen])
	copy(raw[randomLen:], t[:])
	b := make([]byte, 1, Len)
	b[0] = version
	b = base64url.AppendEncode(b, raw[:])
	sum := k.mac("", string(b))
	b = append(b, '.')
	return string(base64url.AppendEncode(b, sum[:]))
}

// Keyring is the keys of a policy: the first one signs, all verify. It is never changed;
// a new key makes a new keyring.
type Keyring []*Key

// Verify says which upstream a stamp names, and by which key of the ring. It is false for
// everything that this ring did not sign. Each stamp has one spelling only.
func (ks Keyring) Verify(s string) (t Tag, k *Key, ok bool) {
	if !HasForm(s) {
		return t, nil, false
	}
	var given [sha256.Size]byte
	if n, err := base64url.Strict().Decode(given[:], []byte(s[baseLen+1:])); err != nil || n != len(given) {
		return t, nil, false
	}
	for _, k := range ks {
		sum := k.mac("", s[:baseLen])
		if !hmac.Equal(sum[:], given[:]) {
			continue
		}
		var raw [randomLen + TagLen]byte
		if _, err := base64url.Decode(raw[:], []byte(s[1:baseLen])); err != nil {
			return t, nil, false
		}
		return Tag(raw[randomLen:]), k, true
	}
	return t, nil, false
}

// HasForm says whether s has the length and the marks of a stamp, whoever signed it.
func HasForm(s string) bool { return len(s) == Len && s[0] == version && s[baseLen] == '.' }

// IsLikely says whether s looks like a stamp to its last letter: so it was most likely made as one.
func IsLikely(s string) bool {
	if !HasForm(s) {
		return false
	}
	for i := range len(s) {
		if i != baseLen && !isBase64url(s[i]) {
			return false
		}
	}
	return true
}

func isBase64url(c byte) bool {
	return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// Digest is what may be shown of a session id (its first bytes, in logs), and what orders the
// upstreams for an id of somebody else's. It is the same on all nodes that share the first key.
func (ks Keyring) Digest(id string) [sha256.Size]byte {
	return ks[0].mac("caddy-bokeh session\x00", id)
}

// Redact returns what may be shown of a session id.
func (ks Keyring) Redact(id string) Redacted { return Redacted{ks, id} }

// Redacted is the printable form of a session id: enough to follow it through a log, of no
// use for joining it.
type Redacted struct {
	ring Keyring
	id   string
}

// String makes the hash when it is asked for: most requests are logged without it. Where there is no id it is empty.
func (r Redacted) String() string {
	if r.id == "" {
		return ""
	}
	sum := r.ring.Digest(r.id)
	return hex.EncodeToString(sum[:6])
}
