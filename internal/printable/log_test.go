// This file tests that logs steer no terminal either.

package printable_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable/printabletest"
)

// A message is written by the console format as it is, and a field with all that is beyond ASCII.
func TestLogsArePrintable(t *testing.T) {
	for name, encoder := range map[string]zapcore.Encoder{
		"console": zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg"}),
		"json":    zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}),
	} {
		var out bytes.Buffer
		quiet := zapcore.NewCore(encoder.Clone(), zapcore.AddSync(io.Discard), zap.ErrorLevel)
		loud := zapcore.NewCore(encoder, zapcore.AddSync(&out), zap.InfoLevel)
		l := printable.Log(zap.New(zapcore.NewTee(quiet, loud))).With(zap.String("reason", printabletest.Hostile))
		l.Debug("nobody wants this")
		l.Info("upstream is marked "+printabletest.Hostile, zap.String("by", printabletest.Hostile), zap.Error(errors.New(printabletest.Hostile)), zap.Int("n", 1), zap.Error(nil))
		printabletest.Check(t, name, strings.Replace(out.String(), "\t{", "{", 1))
		if n := strings.Count(out.String(), "\n"); n != 1 || strings.Count(out.String(), "drained") != 4 {
			t.Errorf("%s writes %d lines: %s", name, n, out.String())
		}
	}
}
