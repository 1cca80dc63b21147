// This file tests that nothing which others wrote steers the terminal that shows it.

package caddybokeh

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// hostile moves the cursor, forges lines, turns the direction of text, and is no UTF-8.
const hostile = "x\n127.0.0.1:1\tdrained\r\x1b[2J\x1b]0;title\x07\u009b31m\x7f\u202etxet\u2066\u2028\ufeff\xff\x9b"

// bare is what a terminal must not get: hostile has one of each, and there is no such letter in what it becomes.
const bare = "\r\x1b\x07\u009b\x7f\u202e\u2066\u2028\ufeff"

// checkPrintable looks whether all of a text just shows on a terminal, beside the ends of its lines.
func checkPrintable(t *testing.T, what, text string) {
	t.Helper()
	if got := strings.ReplaceAll(text, "\n", ""); printable(got) != got || strings.ContainsAny(text, bare) {
		t.Errorf("%s is not printable: %q", what, text)
	}
}

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
		if got := printable(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
		if again := printable(want); again != want {
			t.Errorf("%q is shown as %q", want, again)
		}
	}
	checkPrintable(t, "hostile text", printable(hostile))
}

// JSON means what it did.
func TestPrintableJSON(t *testing.T) {
	text, err := json.Marshal(map[string]string{"reason": hostile, "tag": "\U000e0041 ä"})
	if err != nil {
		t.Fatal(err)
	}
	safe := printableJSON(text)
	checkPrintable(t, "JSON", string(safe))
	var before, after map[string]string
	if err := errors.Join(json.Unmarshal(text, &before), json.Unmarshal(safe, &after)); err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("%v: %q became %q", err, before, after)
	}
	checkPrintable(t, "what is no JSON", string(printableJSON([]byte("{\"a\":\"\xff\x9b\u202e\"}"))))
}

// fill puts a text wherever there can be one.
func fill(v reflect.Value, text string) {
	switch kind := v.Kind(); {
	case kind == reflect.String:
		v.SetString(text)
	case kind == reflect.Bool:
		v.SetBool(true)
	case kind == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case kind == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case kind == reflect.Map || kind == reflect.Interface:
		panic("there may be text in it")
	case kind == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		for _, f := range v.Fields() {
			if f.CanSet() {
				fill(f, text)
			}
		}
	}
}

// Whatever the admin API answers, in fields to come as well: it forges no line and steers nothing.
func TestCommandsPrintWhatOthersWrote(t *testing.T) {
	printed := func(text string) (out string) {
		var all []upstreamStatus
		var nodes []nodeStatus
		var check storageCheck
		fill(reflect.ValueOf(&all).Elem(), text)
		fill(reflect.ValueOf(&nodes).Elem(), text)
		fill(reflect.ValueOf(&check).Elem(), text)
		nodes = append(nodes, nodes[0])
		nodes[0].State, nodes[0].Waiting = nodeOverdue, 1
		check.Steps = append(check.Steps, check.Steps[0])
		check.Steps[0].OK = false
		var b bytes.Buffer
		p := &lines{w: &b}
		p.trouble(errors.New(text))
		p.show(all)
		p.done(text)
		long := &bar{w: &b, fd: -1}
		long.trouble(errors.New(text))
		long.show(all)
		long.trouble(errors.New(text))
		long.done(text)
		if err := errors.Join(printStatus(&b, all, nodes), printCheck(&b, &check, nodes)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	plain, evil := printed("text"), printed(hostile)
	for _, c := range []string{"\n", "\r"} { // the bar begins its line anew
		if want, got := strings.Count(plain, c), strings.Count(evil, c); want != got {
			t.Errorf("%d times %q instead of %d: %s", got, c, want, evil)
		}
	}
	checkPrintable(t, "what the commands print", strings.ReplaceAll(evil, "\r", ""))
}

// A message is written by the console format as it is, and a field with all that is beyond ASCII.
func TestLogsArePrintable(t *testing.T) {
	for name, encoder := range map[string]zapcore.Encoder{
		"console": zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg"}),
		"json":    zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}),
	} {
		var out bytes.Buffer
		quiet := zapcore.NewCore(encoder.Clone(), zapcore.AddSync(io.Discard), zap.ErrorLevel)
		loud := zapcore.NewCore(encoder, zapcore.AddSync(&out), zap.InfoLevel)
		l := printableLog(zap.New(zapcore.NewTee(quiet, loud))).With(zap.String("reason", hostile))
		l.Debug("nobody wants this")
		l.Info("upstream is marked "+hostile, zap.String("by", hostile), zap.Error(errors.New(hostile)), zap.Int("n", 1), zap.Error(nil))
		checkPrintable(t, name, strings.Replace(out.String(), "\t{", "{", 1))
		if n := strings.Count(out.String(), "\n"); n != 1 || strings.Count(out.String(), "drained") != 4 {
			t.Errorf("%s writes %d lines: %s", name, n, out.String())
		}
	}
}

// What a person writes is refused if it is not printable; what is in the storage all the same is shown.
func TestHostileReason(t *testing.T) {
	b1, b2 := newBokeh(t, ""), newBokeh(t, "")
	a := administer(t, "reverse_proxy "+b1.addr()+" "+b2.addr()+" {\n lb_policy bokeh\n}")
	settleNow()
	body := func(reason string) string {
		text, _ := json.Marshal(drainBody{Reason: reason})
		return string(text)
	}
	for _, c := range "\n\t\r\x1b\x7f\u009b\u202e\u2028\u200f" {
		a.want(400, "steer a terminal", "PUT", "/bokeh/draining/"+b1.addr(), body("x"+string(c)))
		a.want(400, "steer a terminal", "DELETE", "/bokeh/draining/"+b1.addr(), body("x"+string(c)))
		checkPrintable(t, "an error", a.want(400, "no address", "PUT", "/bokeh/draining/"+url.PathEscape("x"+string(c)+":1")+"?force=true", ""))
	}
	a.want(400, "the reason has 1001 bytes", "PUT", "/bokeh/draining/"+b1.addr(), body(strings.Repeat("x", maxText+1)))
	a.begin("drain", b1.addr(), "--reason", "x\x1b[2J").end(1, `malformed reason \"x\\x1b[2J\"`)
	if st := a.status(b1.addr()); st.State != stateReady {
		t.Errorf("after what was refused it is %s", st.State)
	}
	a.want(200, "neue Version", "PUT", "/bokeh/draining/"+b1.addr(), body(strings.Repeat("x", maxText-13)+" neue Version"))

	shared := sharedName(b2.addr())
	evil := &mark{ID: "1", Said: 1, Upstream: shared, State: hostile, Since: time.Now(), By: hostile, Reason: hostile, Written: time.Now()}
	if err := storeRecord(t.Context(), runningStorage(), markKey(shared), evil); err != nil {
		t.Fatal(err)
	}
	soon(t, "read what is in the storage", func() bool { return a.status(b2.addr()).Drain != nil })
	if st := a.status(b2.addr()); st.Drain.Reason != strings.ToValidUTF8(hostile, "\ufffd\ufffd") {
		t.Errorf("the reason is %q", st.Drain.Reason)
	}
	checkPrintable(t, "the answer", a.want(200, "title", "GET", "/bokeh/upstreams", ""))
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"undrain", b2.addr()}} {
		c := a.begin(args...)
		c.end(0, b2.addr())
		checkPrintable(t, args[0], c.output())
	}
}
