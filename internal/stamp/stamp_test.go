// This file tests the making and verifying of stamps.

package stamp

import (
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
