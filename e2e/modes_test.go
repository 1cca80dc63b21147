// This file tests the ways in which servers make session ids, told and not told to the policy.

package e2e

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"
)

const secret = "a key that Bokeh and Caddy share"

// externalID makes an id as an application that signs ids for Bokeh does.
func externalID() string {
	base := rand.Text()
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(base))
	id := base + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	keepSecret(base, id)
	return id
}

func TestSessionIDs(t *testing.T) {
	t.Parallel()
	const visits = 7
	signs := []string{"BOKEH_SECRET_KEY=" + secret}
	for _, ids := range []string{"unsigned", "signed", "external-signed"} {
		for name, policy := range map[string]string{
			"told with the key": fmt.Sprintf("bokeh {\n\t\t\tsession_ids %s\n\t\t\tsecret_key \"%s\"\n\t\t}", ids, secret),
			"told":              fmt.Sprintf("bokeh {\n\t\t\tsession_ids %s\n\t\t}", ids),
			"not told":          "bokeh",
		} {
			t.Run(ids+", "+name, func(t *testing.T) {
				t.Parallel()
				p := plan{policy: policy, serve: []string{"--session-ids", ids}}
				if ids != "unsigned" {
					p.serveEnv = signs
				}
				f := start(t, p)
				refused := 0
				for range visits {
					if !f.visitWith(ids) {
						refused++
					}
				}
				f.wantRuns(visits - refused)
				// Each of three servers refuses one page, and no more.
				most := 0
				if ids == "signed" && name == "not told" {
					most = len(f.servers)
				}
				if refused > most {
					t.Errorf("%d visits were refused, want at most %d", refused, most)
				}
			})
		}
	}
}

// visitWith visits in the way that the servers want, reconnects once, and says whether it was let in.
func (f *fleet) visitWith(ids string) bool {
	f.t.Helper()
	url := f.url(f.plan.page)
	if ids == "external-signed" {
		url += "?bokeh-session-id=" + externalID()
	}
	b := newTab(f.t)
	defer b.close()
	if b.goTo(url) == http.StatusForbidden {
		return false
	}
	b.ready()
	b.click(1)
	b.mark()
	f.front.cut()
	b.reconnected()
	b.click(2)
	return true
}

// Bokeh can be told which headers of the page request to pack into the token. Where servers make ids of their own, both of
// those that carry a stamp must be among them.
func TestPackedHeaders(t *testing.T) {
	t.Parallel()
	signs := []string{"BOKEH_SECRET_KEY=" + secret}
	told := "bokeh {\n\t\t\tsession_ids signed\n\t\t}"
	both := []string{"--include-headers", "Bokeh-Session-Id", "Caddy-Bokeh-Stamp"}
	for name, p := range map[string]plan{
		"unsigned, exclude all we use":   {serve: []string{"--exclude-headers", "Bokeh-Session-Id", "Caddy-Bokeh-Stamp"}},
		"unsigned, include another":      {serve: []string{"--include-headers", "User-Agent"}},
		"signed, exclude another":        {policy: told, serveEnv: signs, serve: []string{"--session-ids", "signed", "--exclude-headers", "User-Agent"}},
		"signed, include ours":           {policy: told, serveEnv: signs, serve: []string{"--session-ids", "signed", "--include-headers", "Caddy-Bokeh-Stamp"}},
		"external-signed, include other": {policy: "bokeh {\n\t\t\tsession_ids external-signed\n\t\t}", serveEnv: signs, serve: []string{"--session-ids", "external-signed", "--include-headers", "User-Agent"}},
		"reused sessions, include both":  panelServe("", "panel_counter", append([]string{"--reuse-sessions"}, both...)...).withTestFiles(),
		"bokeh-fastapi, include both":    underUvicorn("", "bokeh_fastapi_app", "INCLUDE_HEADERS=Bokeh-Session-Id Caddy-Bokeh-Stamp").withTestFiles(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p.quick = p.needs != ""
			f := start(t, p)
			ids := "unsigned"
			if len(p.serve) > 1 && p.serve[0] == "--session-ids" {
				ids = p.serve[1]
			}
			for range 6 {
				f.visitWith(ids)
			}
			f.wantRuns(6)
			if p.needs != "" {
				f.visit().click(1)
				f.awaitSessions(1)
			}
		})
	}
}

// The control: with neither the websocket goes to any server, which runs the app again.
func TestStampIsNotPacked(t *testing.T) {
	t.Parallel()
	f := start(t, underUvicorn("", "bokeh_fastapi_app", "INCLUDE_HEADERS=User-Agent").withTestFiles())
	for range 6 {
		f.visitWith("unsigned")
	}
	if n, by := f.appRuns(); n < 8 {
		t.Errorf("6 visits ran the app %d times: %v", n, by)
	}
}

// A new key comes first, the old one stays until its tokens have expired.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	f := start(t, plan{policy: "bokeh {\n\t\t\tsecret_key old\n\t\t}"})
	tabs := f.atWork(3)
	f.plan.policy = "bokeh {\n\t\t\tsecret_key new old\n\t\t}"
	f.restartCaddy()
	for _, b := range tabs {
		b.reconnected()
		b.click(3)
	}
	f.visit().click(1)
	f.wantRuns(4)
}
