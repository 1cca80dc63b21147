// This file holds how text that others wrote comes to a terminal: what would steer that, or forge a line, is shown and not obeyed.

package caddybokeh

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// isPrintable says whether a terminal just shows r. Escape sequences begin with control characters, of which U+009B and some more are
// beyond ASCII; others, as line ends and those that turn the direction of text, make it look like what it is not. The two joiners
// that some scripts are not written without do neither.
func isPrintable(r rune) bool { return unicode.IsGraphic(r) || r == '\u200c' || r == '\u200d' }

// isLoggable says so for what an encoder of logs or of JSON gets, by which all controls of ASCII but one are escaped.
func isLoggable(r rune) bool { return r < ' ' || isPrintable(r) }

// printable returns s with what is not printable written as in Go: \n, \x1b, \u202e.
func printable(s string) string { return escape(s, isPrintable) }

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

// printableJSON returns JSON of the same meaning in which nothing steers a terminal.
func printableJSON(text []byte) []byte {
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

// say is how the commands write: as fmt.Fprintf, but what is filled in is made printable.
func say(w io.Writer, format string, args ...any) {
	harmless := make([]any, len(args))
	for i, arg := range args {
		switch x := arg.(type) {
		case string:
			harmless[i] = printable(x)
		case error:
			harmless[i] = printable(x.Error())
		case fmt.Stringer:
			harmless[i] = printable(x.String())
		default:
			harmless[i] = arg
		}
	}
	fmt.Fprintf(w, format, harmless...)
}

// printableError returns an error that Caddy may write to a terminal.
func printableError(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(printable(err.Error()))
}

// printableLog returns a logger whose lines a terminal may show. The console format writes messages as they are; in the fields
// both that and JSON leave all that is beyond ASCII.
func printableLog(l *zap.Logger) *zap.Logger {
	return l.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return printableCore{c} }))
}

// printableCore makes entries printable before another core gets them.
type printableCore struct{ zapcore.Core }

// With implements zapcore.Core.
func (c printableCore) With(fields []zapcore.Field) zapcore.Core {
	return printableCore{c.Core.With(printableFields(fields))}
}

// Check implements zapcore.Core.
func (c printableCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core. Here the other core is asked whether it wants the entry, for else it would get it from the
// logger as it was.
func (c printableCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	e.Message = printable(e.Message)
	if checked := c.Core.Check(e, nil); checked != nil {
		checked.Write(printableFields(fields)...)
	}
	return nil
}

// printableFields returns fields that an encoder makes printable.
func printableFields(fields []zapcore.Field) []zapcore.Field {
	safe := make([]zapcore.Field, len(fields))
	for i, f := range fields {
		text, isText := textOf(f)
		if after := escape(text, isLoggable); isText && after != text {
			f = zap.String(f.Key, after)
		}
		safe[i] = f
	}
	return safe
}

// textOf returns the text of a field that has one.
func textOf(f zapcore.Field) (string, bool) {
	if f.Type == zapcore.StringType {
		return f.String, true
	}
	if err, ok := f.Interface.(error); ok && err != nil && f.Type == zapcore.ErrorType {
		return err.Error(), true
	}
	return "", false
}
