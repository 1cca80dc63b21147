// This file tests the making and verifying of stamps.

package stamp

import (
	"fmt"
	"strings"
	"testing"
)

var testKeys = Keyring{NewKey([]byte("first key")), NewKey([]byte("second key"))}

// stampFor makes a stamp for the upstream of that name by the first of the test keys.
func stampFor(name string) string { return testKeys[0].Stamp(testKeys[0].Tag(name)) }

func TestStamp(t *testing.T) {
	stamp := stampFor("a:80")
	if len(stamp) != Len {
		t.Fatalf("stamp %q has length %d, want %d", stamp, len(stamp), Len)
	}
	got, by, ok := testKeys.Verify(stamp)
	if !ok || by != testKeys[0] || got != testKeys[0].Tag("a:80") {
		t.Fatalf("verify(%q) = %x, %v, %v", stamp, got, by, ok)
	}
	if stamp == stampFor("a:80") {
		t.Error("two stamps are the same")
	}
	old := testKeys[1].Stamp(testKeys[1].Tag("b:80"))
	if got, by, ok := testKeys.Verify(old); !ok || by != testKeys[1] || got != testKeys[1].Tag("b:80") {
		t.Errorf("a stamp by the second key is not verified: %x, %v, %v", got, by, ok)
	}
}

// A signed Bokeh server checks a session id by HMAC-SHA256 of what stands before the first dot,
// in base64url without padding. The value is what Bokeh 3.10.2 makes of these inputs:
// bokeh.util.token._signature("base", b"secret").
func TestSignatureIsBokehs(t *testing.T) {
	const want = "0Xj36YT4ENcZEAD5R5fEbwmL_5R4VRtbjXRWsKjEl-g"
	if got := NewKey([]byte("secret")).Signature("base"); got != want {
		t.Errorf("signature = %q, want %q", got, want)
	}
}

// signed returns a session id with the signature of the first of the test keys, as a Bokeh server that has that key makes it.
func signed(base string) string { return base + "." + testKeys[0].Signature(base) }

func TestVerifyRefuses(t *testing.T) {
	stamp := stampFor("a:80")
	base, sig, _ := strings.Cut(stamp, ".")
	flipped := []byte(stamp)
	flipped[10] ^= 1
	for name, s := range map[string]string{
		"empty":                 "",
		"a Bokeh id":            strings.Repeat("a", 44),
		"a signed Bokeh id":     strings.Repeat("a", 44) + "." + testKeys[0].Signature(strings.Repeat("a", 44)),
		"no signature":          base,
		"empty signature":       base + ".",
		"cut":                   stamp[:len(stamp)-1],
		"longer":                stamp + "A",
		"other key":             base + "." + NewKey([]byte("third")).Signature(base),
		"forged tag":            string(flipped),
		"other version":         "d" + stamp[1:],
		"signature not base64":  base + "." + strings.Repeat("!", signatureLen),
		"signature in std form": base + "." + strings.ReplaceAll(sig[:signatureLen-1], sig[:1], "+") + "A",
		"signed, not base64":    signed("c" + strings.Repeat("!", baseLen-1)),
		"space before":          " " + stamp[:len(stamp)-1],
		"line break":            stamp[:60] + "\n" + stamp[61:],
	} {
		if _, _, ok := testKeys.Verify(s); ok {
			t.Errorf("%s: %q is verified", name, s)
		}
	}
}

// Each stamp has one spelling only, or a client could make several ids of one.
func TestStampHasOneSpelling(t *testing.T) {
	stamp := stampFor("a:80")
	last := strings.IndexByte(alphabet, stamp[len(stamp)-1])
	for i := range 4 {
		s := stamp[:len(stamp)-1] + string(alphabet[last&^3|i])
		if _, _, ok := testKeys.Verify(s); ok && s != stamp {
			t.Errorf("%q is verified as well as %q", s, stamp)
		}
	}
}

// Nor does a line break give it a second one, though a base64 decoder passes that over: there is room for it where a signature ends in
// a byte of zeros, which may be left out.
func TestStampHasNoLineBreak(t *testing.T) {
	var shorter string
	for range 1 << 16 {
		s := stampFor("a:80")
		if sum, err := base64url.DecodeString(s[baseLen+1:]); err == nil && sum[len(sum)-1] == 0 {
			shorter = s[:len(s)-1]
			break
		}
	}
	if shorter == "" {
		t.Fatal("no signature ends in a byte of zeros")
	}
	for _, s := range []string{shorter + "\n", shorter[:60] + "\r" + shorter[60:]} {
		if _, _, ok := testKeys.Verify(s); ok {
			t.Errorf("%q is verified", s)
		}
	}
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// What may be shown of a session is of no use for joining it, and is the same on every node.
func TestSessionHash(t *testing.T) {
	ours := stampFor("a:80")
	got := testKeys.Redact(ours).String()
	if len(got) != 12 || strings.Contains(ours, got) {
		t.Errorf("hash of %q is %q", ours, got)
	}
	if again := (Keyring{NewKey([]byte("first key"))}).Redact(ours).String(); again != got {
		t.Errorf("another node shows %q, this one %q", again, got)
	}
}

// Where there is no session there is nothing to show, in place of something that all such requests would share.
func TestNoSessionHash(t *testing.T) {
	if got := testKeys.Redact("").String(); got != "" {
		t.Errorf("the hash of no id is %q", got)
	}
}

// What is likely a stamp has the form of one, and only letters of base64url, whoever signed it.
func TestIsLikely(t *testing.T) {
	ours := stampFor("a:80")
	for name, s := range map[string]string{"ours": ours, "another's": NewKey([]byte("third")).Stamp(Tag{})} {
		if !IsLikely(s) {
			t.Errorf("%s, %q, is not likely a stamp", name, s)
		}
	}
	for _, s := range []string{"", ours[1:], ours + "A", strings.Repeat("A", Len)} {
		if IsLikely(s) {
			t.Errorf("%q is likely a stamp", s)
		}
	}
	for i := range ours {
		allowed := alphabet
		switch i {
		case 0:
			allowed = "c"
		case baseLen:
			allowed = "."
		}
		for c := range 256 {
			s := ours[:i] + string([]byte{byte(c)}) + ours[i+1:]
			if got, want := IsLikely(s), strings.IndexByte(allowed, byte(c)) >= 0; got != want {
				t.Errorf("with %q as letter %d it is likely a stamp: %v, want %v", byte(c), i, got, want)
			}
		}
	}
}

// Nodes of another version compare these values and route by them. They are HMAC-SHA256 by "first key" of the domain and the name: the
// tag is the first 6 bytes, the order the next 8, the fingerprint the first 8 of its own domain.
func TestValuesThatNodesShare(t *testing.T) {
	k := testKeys[0]
	if got, want := k.Fingerprint().String(), "b530b3d330968588"; got != want {
		t.Errorf("fingerprint %s, want %s", got, want)
	}
	if got, want := fmt.Sprintf("%x", k.Tag("a:80")), "ba99d9a5c676"; got != want {
		t.Errorf("tag %s, want %s", got, want)
	}
	if got, want := k.Order("a:80"), uint64(0x33837f90d4f1615f); got != want {
		t.Errorf("order %#x, want %#x", got, want)
	}
}
