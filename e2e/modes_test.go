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
	for _, ids := range []string{"unsigned", "signed", "external-signed"} {
		t.Run(ids, func(t *testing.T) {
			t.Parallel()
			p := plan{serve: []string{"--session-ids", ids}, origins: []string{"*"}}
			if ids != "unsigned" {
				p.serveEnv = []string{"BOKEH_SECRET_KEY=" + secret}
			}
			f := start(t, p)
			f.takesVisits("not told", ids)
			for told, policy := range map[string]string{
				"told with the key": fmt.Sprintf("bokeh {\n\t\t\tsession_ids %s\n\t\t\tsecret_key \"%s\"\n\t\t}", ids, secret),
				"told":              fmt.Sprintf("bokeh {\n\t\t\tsession_ids %s\n\t\t}", ids),
			} {
				f.plan.policy = policy
				f.another().takesVisits(told, ids)
			}
		})
	}
}

// takesVisits visits servers that make session ids in a way of which the fleet's Caddy was told, or not.
func (f *fleet) takesVisits(told, ids string) {
	f.t.Helper()
	const visits = 7
	before, _ := f.appRuns()
	refused := 0
	b := newTab(f.t)
	defer b.close()
	for range visits {
		if !f.visitWith(b, ids) {
			refused++
		}
	}
	if after, by := f.appRuns(); after != before+visits-refused {
		f.t.Errorf("%s: %d visits of which %d were refused ran the app %d times: %v", told, visits, refused, after-before, by)
	}
	// Each of three servers refuses one page, and no more.
	most := 0
	if ids == "signed" && told == "not told" {
		most = len(f.servers)
	}
	if refused > most {
		f.t.Errorf("%s: %d visits were refused, want at most %d", told, refused, most)
	}
}

// visitWith visits in the way that the servers want, reconnects once, and says whether it was let in.
func (f *fleet) visitWith(b *tab, ids string) bool {
	f.t.Helper()
	url := f.url(f.plan.page)
	if ids == "external-signed" {
		url += "?bokeh-session-id=" + externalID()
	}
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
			p.quick, p.size = p.needs != "", 2
			f := start(t, p)
			ids := "unsigned"
			if len(p.serve) > 1 && p.serve[0] == "--session-ids" {
				ids = p.serve[1]
			}
			b := newTab(t)
			for range 6 {
				f.visitWith(b, ids)
			}
			f.wantRuns(6)
			if p.needs != "" {
				f.visitIn(b).click(1)
				f.awaitSessions(1)
			}
		})
	}
}

// The control: with neither the websocket goes to any server, which runs the app again.
func TestStampIsNotPacked(t *testing.T) {
	t.Parallel()
	f := start(t, underUvicorn("", "bokeh_fastapi_app", "INCLUDE_HEADERS=User-Agent").withTestFiles())
	b := newTab(t)
	for range 6 {
		f.visitWith(b, "unsigned")
	}
	if n, by := f.appRuns(); n < 8 {
		t.Errorf("6 visits ran the app %d times: %v", n, by)
	}
}

// A new key comes first, the old one stays until its tokens have expired.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	f := start(t, plan{size: 2, policy: "bokeh {\n\t\t\tsecret_key old\n\t\t}"})
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
