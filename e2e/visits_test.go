// This file tests what visitors do: visits, tabs, embedded pages.

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
)

func TestTwentyVisits(t *testing.T) {
	for name, p := range map[string]plan{
		"stock":        {},
		"with retries": {proxy: "\t\tlb_try_duration 5s"},
		"header_up":    {proxy: "\t\theader_up -Cookie"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, p)
			for range 20 {
				b := f.visit()
				b.click(1)
				b.close()
			}
			f.wantRuns(20)
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
	for _, policy := range []string{"random", "round_robin"} {
		t.Run(policy, func(t *testing.T) {
			f := start(t, plan{policy: policy})
			for range 20 {
				b := f.visit()
				b.click(1)
				b.close()
			}
			n, by := f.appRuns()
			if n <= 20 {
				t.Errorf("20 visits ran the app %d times: %v", n, by)
			}
			t.Logf("20 visits, %d app runs", n)
		})
	}
}

func TestTabsOfOneBrowser(t *testing.T) {
	f := start(t, plan{})
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

func TestEmbeddedWithCookiesBlocked(t *testing.T) {
	if n := embeddedRuns(t, "bokeh"); n != 6 {
		t.Errorf("6 visits ran the app %d times", n)
	}
	// The control: a balancer that binds by cookie cannot do it.
	if n := embeddedRuns(t, "cookie"); n <= 6 {
		t.Errorf("with lb_policy cookie 6 visits ran the app %d times", n)
	}
}

// embeddedRuns visits a page of another site with the app in it 6 times, and says how often the app ran.
func embeddedRuns(t *testing.T, policy string) int {
	t.Helper()
	var script string
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "<!DOCTYPE html><title>another site</title><body>%s</body>", script)
	}))
	defer page.Close()
	// To the browser 127.0.0.1 and localhost are two sites.
	f := start(t, plan{policy: policy, origins: []string{strings.TrimPrefix(page.URL, "http://")}})
	out, err := exec.Command(string(kit.python), "-c",
		fmt.Sprintf("from bokeh.embed import server_document; print(server_document(%q))", f.url("/counter"))).Output()
	if err != nil {
		t.Fatal(err)
	}
	script = string(out)
	for range 6 {
		b := newTab(t)
		b.blockCookies()
		if status := b.goTo(page.URL); status != http.StatusOK {
			t.Fatal(status)
		}
		b.ready()
		b.clicks(2)
		b.close()
	}
	n, _ := f.appRuns()
	return n
}

// Behind TLS the browser asks for pages over HTTP/2. Its websockets come over HTTP/1.1, unless Caddy is made to offer them
// over HTTP/2.
func TestHTTP2(t *testing.T) {
	for proto, env := range map[string][]string{"HTTP/1.1": nil, "HTTP/2.0": {"GODEBUG=http2xconnect=1"}} {
		t.Run("websockets over "+proto, func(t *testing.T) {
			f := start(t, plan{scheme: "https", site: "\ttls internal", env: env})
			for range 6 {
				b := f.visit()
				b.clicks(2)
				b.close()
			}
			f.wantRuns(6)
			f.awaitLogged(6, `"uri":"/counter"`, `"proto":"HTTP/2.0"`)
			f.awaitLogged(6, `"uri":"/counter/ws"`, fmt.Sprintf(`"proto":%q`, proto))
		})
	}
}
