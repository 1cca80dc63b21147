// This file tests that nothing which others wrote steers the terminal that the commands write to.

package cli

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable/printabletest"
)

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
		var all []api.Upstream
		var nodes []api.Node
		var check api.StorageCheck
		fill(reflect.ValueOf(&all).Elem(), text)
		fill(reflect.ValueOf(&nodes).Elem(), text)
		fill(reflect.ValueOf(&check).Elem(), text)
		nodes = append(nodes, nodes[0])
		nodes[0].State, nodes[0].Waiting = api.NodeOverdue, 1
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
	plain, evil := printed("text"), printed(printabletest.Hostile)
	for _, c := range []string{"\n", "\r"} { // the bar begins its line anew
		if want, got := strings.Count(plain, c), strings.Count(evil, c); want != got {
			t.Errorf("%d times %q instead of %d: %s", got, c, want, evil)
		}
	}
	printabletest.Check(t, "what the commands print", strings.ReplaceAll(evil, "\r", ""))
}

func TestClickInWords(t *testing.T) {
	for want, c := range map[string]*api.Click{
		"-":           nil,
		"12ms 85ms":   {P50: .0123, P95: .0849},
		"1ms 1.52s":   {P50: .0008, P95: 1.5234},
		"999ms 1m40s": {P50: .999, P95: 100},
	} {
		if got := click(&api.Upstream{Click: c}); got != want {
			t.Errorf("%+v is %q, want %q", c, got, want)
		}
	}
}
