// This file holds logs.

package printable

import (
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Log returns a logger whose lines a terminal may show. The console format writes messages as they are; in the fields
// both that and JSON leave all that is beyond ASCII.
func Log(l *zap.Logger) *zap.Logger {
	return l.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return core{c} }))
}

// core makes entries printable before another core gets them.
type core struct{ zapcore.Core }

// With implements zapcore.Core.
func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.Core.With(fieldsOf(fields))}
}

// Check implements zapcore.Core.
func (c core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write implements zapcore.Core. Here the other core is asked whether it wants the entry, for else it would get it from the
// logger as it was.
func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	e.Message = Text(e.Message)
	if checked := c.Core.Check(e, nil); checked != nil {
		checked.Write(fieldsOf(fields)...)
	}
	return nil
}

// fieldsOf returns fields that an encoder makes printable.
func fieldsOf(fields []zapcore.Field) []zapcore.Field {
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
