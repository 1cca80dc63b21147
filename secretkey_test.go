// This file tests where the keys that stamps are signed with come from.

package caddybokeh

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a process has signed with it goes on verifying, whatever becomes of the storage.
func TestHeldKeys(t *testing.T) {
	h := newHeldKeys()
	own := (*h.ring)[0]
	first := h.add([]byte("first"))
	if again := h.add([]byte("first")); again != first {
		t.Error("the same key makes another ring")
	}
	h.add([]byte("second"))
	ring := *h.add([]byte("first"))
	if len(ring) != 3 || string(ring[0].Secret()) != "first" || string(ring[1].Secret()) != "second" || ring[2] != own {
		t.Errorf("the ring is %v", ring)
	}
	for i := range 10 {
		h.add(fmt.Append(nil, i))
	}
	if n := len(*h.ring); n != maxHeldKeys {
		t.Errorf("%d keys are held", n)
	}
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
		if got := string(ring[i].Secret()); got != want {
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
