// Package printable makes text that others wrote fit for a terminal: what would steer that, or forge a line, is shown and not
// obeyed. Both the admin API and the command line do that, each for the other may be of another version.
//
// This file holds text and JSON.
package printable

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// isPrintable says whether a terminal just shows r. Escape sequences begin with control characters, of which U+009B and some more are
// beyond ASCII; others, as line ends and those that turn the direction of text, make it look like what it is not. The two joiners
// that some scripts are not written without do neither.
func isPrintable(r rune) bool { return unicode.IsGraphic(r) || r == '\u200c' || r == '\u200d' }

// isLoggable says so for what an encoder of logs or of JSON gets, by which all controls of ASCII but one are escaped.
func isLoggable(r rune) bool { return r < ' ' || isPrintable(r) }

// Text returns s with what is not printable written as in Go: \n, \x1b, \u202e. What Text returns it returns unchanged.
func Text(s string) string { return escape(s, isPrintable) }

func escape(s string, isHarmless func(rune) bool) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !isHarmless(r) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if valid := r != utf8.RuneError || size > 1; valid && isHarmless(r) {
			b.WriteString(s[:size])
		} else {
			quoted := fmt.Sprintf("%+q", s[:size])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[size:]
	}
	return b.String()
}

// JSON returns JSON of the same meaning in which nothing steers a terminal.
func JSON(text []byte) []byte {
	var b []byte
	for _, r := range string(text) {
		if isLoggable(r) && r != utf8.RuneError {
			b = utf8.AppendRune(b, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			b = fmt.Appendf(b, `\u%04x`, unit)
		}
	}
	return b
}

// Error returns an error that Caddy may write to a terminal: of err, which may be nil, it has the text alone.
func Error(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(Text(err.Error()))
}

// Cut returns the beginning of a text that is longer than a number of bytes.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}
