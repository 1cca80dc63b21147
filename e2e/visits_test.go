// This file tests what visitors do: visits, tabs.

package e2e

import (
	"fmt"
	"testing"
	"time"
)

func TestTwentyVisits(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]plan{
		"stock":        {},
		"with retries": {policy: "bokeh", proxy: "\t\tlb_try_duration 5s"},
		"header_up":    {policy: "bokeh", proxy: "\t\theader_up -Cookie"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stock := name == "stock"
			if !stock {
				p.keepUnused(10 * time.Minute) // so that every session is there at the last visit, however long visits take
			}
			f := start(t, p)
			f.visits(20)
			f.wantRuns(20)
			if stock {
				return
			}
			_, by := f.appRuns()
			for server, n := range by {
				if n < 6 || n > 7 {
					t.Errorf("server %s has %d of 20 sessions", server, n)
				}
			}
		})
	}
}

// The same visits through other policies run the app more often: the test above can fail.
func TestControl(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"random", "round_robin"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			f := start(t, plan{policy: policy})
			f.visits(20)
			n, by := f.appRuns()
			if n <= 20 {
				t.Errorf("20 visits ran the app %d times: %v", n, by)
			}
			t.Logf("20 visits, %d app runs", n)
		})
	}
}

func TestTabsOfOneBrowser(t *testing.T) {
	t.Parallel()
	f := start(t, plan{size: 2})
	one, two := f.visit(), f.visit()
	if one.place() == two.place() {
		t.Errorf("both tabs are on server %s", one.place())
	}
	one.clicks(2)
	two.clicks(3)
	one.click(3)
	two.click(4)
	f.wantRuns(2)
}

// Behind TLS the browser asks for pages over HTTP/2. Its websockets come over HTTP/1.1, unless Caddy is made to offer them
// over HTTP/2.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	for proto, env := range map[string][]string{"HTTP/1.1": nil, "HTTP/2.0": {"GODEBUG=http2xconnect=1"}} {
		t.Run("websockets over "+proto, func(t *testing.T) {
			t.Parallel()
			f := start(t, plan{size: 2, scheme: "https", site: "\ttls internal", env: env})
			f.visits(6)
			f.wantRuns(6)
			f.awaitLogged(6, `"uri":"/counter"`, `"proto":"HTTP/2.0"`)
			f.awaitLogged(6, `"uri":"/counter/ws"`, fmt.Sprintf(`"proto":%q`, proto))
		})
	}
}
