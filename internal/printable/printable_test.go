// This file tests that nothing which others wrote steers the terminal that shows it.

package printable_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable/printabletest"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "",
		`new "version" \1`:      `new "version" \1`,
		"neue Fassung „ä“":      "neue Fassung „ä“",
		"नई版 x\u3000y 👨\u200d👩": "नई版 x\u3000y 👨\u200d👩",
		"a\nb\tc":               `a\nb\tc`,
		"\x1b[31m\u009b\x7f":    `\x1b[31m\u009b\x7f`,
		"\u202eevil\u2069":      `\u202eevil\u2069`,
		"\U000e0041":            `\U000e0041`,
		"\xff\ufffd":            "\\xff\ufffd",
	} {
		if got := printable.Text(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
		if again := printable.Text(want); again != want {
			t.Errorf("%q is shown as %q", want, again)
		}
	}
	printabletest.Check(t, "hostile text", printable.Text(printabletest.Hostile))
}

// JSON means what it did.
func TestPrintableJSON(t *testing.T) {
	text, err := json.Marshal(map[string]string{"reason": printabletest.Hostile, "tag": "\U000e0041 ä"})
	if err != nil {
		t.Fatal(err)
	}
	safe := printable.JSON(text)
	printabletest.Check(t, "JSON", string(safe))
	var before, after map[string]string
	if err := errors.Join(json.Unmarshal(text, &before), json.Unmarshal(safe, &after)); err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("%v: %q became %q", err, before, after)
	}
	printabletest.Check(t, "what is no JSON", string(printable.JSON([]byte("{\"a\":\"\xff\x9b\u202e\"}"))))
}

func TestCut(t *testing.T) {
	for _, tc := range [][2]string{{"", ""}, {"abc", "abc"}, {"abcd", "abc…"}, {"abé", "ab…"}, {"aéé", "aé…"}} {
		if got := printable.Cut(tc[0], 3); got != tc[1] || printable.Cut(got, 3) != got && len(tc[0]) > 3 && !strings.HasSuffix(got, "…") {
			t.Errorf("%q is cut to %q", tc[0], got)
		}
	}
}
