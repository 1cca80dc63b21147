// This file tests that Bokeh answers for itself: what it refuses is passed on untouched.

package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

func TestBokehAnswersForItself(t *testing.T) {
	t.Parallel()
	f := start(t, plan{size: 1})
	token := func(payload string) string { return base64.RawURLEncoding.EncodeToString([]byte(payload)) }
	expired := token(`{"session_id": "x", "session_expiry": 1}`)
	big := token(fmt.Sprintf(`{"session_id": %q}`, strings.Repeat("x", 20<<10)))
	for name, r := range map[string]struct {
		path   string
		header map[string]string
	}{
		"id in header and query":  {"/counter?bokeh-session-id=a", map[string]string{"Bokeh-Session-Id": "b"}},
		"id and token":            {"/counter?bokeh-session-id=a&bokeh-token=" + expired, nil},
		"empty id":                {"/counter", map[string]string{"Bokeh-Session-Id": ""}},
		"empty id in the query":   {"/counter?bokeh-session-id=", nil},
		"repeated ids":            {"/counter?bokeh-session-id=a&bokeh-session-id=b", nil},
		"token that is none":      {"/counter?bokeh-token=%25", nil},
		"no such app":             {"/nothing", nil},
		"index":                   {"/", nil},
		"metadata":                {"/counter/metadata", nil},
		"autoload without id":     {"/counter/autoload.js", nil},
		"socket without protocol": {"/counter/ws", socketHeader("")},
		"socket without token":    {"/counter/ws", socketHeader("bokeh")},
		"three protocols":         {"/counter/ws", socketHeader("bokeh, a, b")},
		"token is not base64":     {"/counter/ws", socketHeader("bokeh, %%%")},
		"token is not JSON":       {"/counter/ws", socketHeader("bokeh, " + token("x"))},
		"token without id":        {"/counter/ws", socketHeader("bokeh, " + token("{}"))},
		"token with a number":     {"/counter/ws", socketHeader("bokeh, " + token(`{"session_id": 1}`))},
		"token has expired":       {"/counter/ws", socketHeader("bokeh, " + expired)},
		"big token":               {"/counter/ws", socketHeader("bokeh, " + big)},
		"another site's origin":   {"/counter/ws", with(socketHeader("bokeh, "+expired), "Origin", "http://elsewhere.example")},
	} {
		direct := status(t, "http://"+f.servers[0].Addr()+r.path, r.header)
		through := status(t, f.url(r.path), r.header)
		if direct != through {
			t.Errorf("%s: Bokeh answers %s, through Caddy %s", name, direct, through)
		}
	}
}

func socketHeader(protocol string) map[string]string {
	h := map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	}
	if protocol != "" {
		h["Sec-WebSocket-Protocol"] = protocol
	}
	return h
}

func with(h map[string]string, name, value string) map[string]string {
	h[name] = value
	return h
}

// status requests a URL and returns how that ended.
func status(t *testing.T, url string, header map[string]string) string {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       stack.Stretch(10 * time.Second),
	}
	res, err := client.Do(r)
	if err != nil {
		return err.Error()
	}
	res.Body.Close()
	return fmt.Sprint(res.StatusCode)
}
