// This file holds a browser's tab that shows the counter app.

package e2e

import (
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// patience is how long what has to happen may take on a quiet machine. BokehJS gives up reconnecting after about 30 s.
const patience = 40 * time.Second

// library finds the app's models, and the button and other elements through the shadow trees that Bokeh renders into.
const library = `
window.model = name => {
	for (const d of (window.Bokeh?.documents ?? [])) {
		const m = d.get_model_by_name(name)
		if (m != null) return m
	}
	return null
}
window.find = (selector, root = document) => {
	for (const e of root.querySelectorAll("*")) {
		if (e.matches(selector)) return e
		const found = e.shadowRoot && find(selector, e.shadowRoot)
		if (found) return found
	}
	return null
}
window.clickable = () => find("button")
true`

// watch keeps the Bokeh token of every websocket that a page opens, for that of an embedded app is not
// in the page's own text, and what the page says meanwhile, for whoever looks into a failure.
const watch = `
window.tokens = []
window.WebSocket = class extends window.WebSocket {
	constructor(url, protocols) {
		super(url, protocols)
		window.tokens.push(...[protocols].flat().slice(1))
		const say = what => window.said.push(Date.now() + " " + what)
		say("asks for a websocket")
		for (const what of ["open", "close", "error"]) this.addEventListener(what, e => say(what + " " + (e.code ?? "")))
	}
}
window.said = []
for (const level of ["log", "info", "warn", "error"]) {
	const {[level]: before} = console
	console[level] = (...args) => {
		window.said.push(Date.now() + " " + args.join(" "))
		before(...args)
	}
}`

// tab is one page in the browser.
type tab struct {
	t     *testing.T
	ctx   context.Context
	close context.CancelFunc
}

// profiles are the browsers of the tests that run: each has cookies and connections of its own.
var profiles sync.Map // *testing.T to func() (context.Context, error)

// profile returns the browser of a test.
func profile(t *testing.T) context.Context {
	t.Helper()
	made, known := profiles.LoadOrStore(t, sync.OnceValues(func() (context.Context, error) {
		ctx, cancel := chromedp.NewContext(kit.browser, chromedp.WithNewBrowserContext())
		t.Cleanup(cancel)
		return ctx, chromedp.Do(ctx)
	}))
	if !known {
		t.Cleanup(func() { profiles.Delete(t) })
	}
	ctx, err := made.(func() (context.Context, error))()
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

// newTab opens a tab in the test's browser, which has one cookie jar.
func newTab(t *testing.T) *tab {
	t.Helper()
	return openTab(t, profile(t))
}

// newVisitor opens a tab as another visitor's browser would: with cookies and connections of its own.
func newVisitor(t *testing.T) *tab {
	t.Helper()
	return openTab(t, kit.browser, chromedp.WithNewBrowserContext())
}

func openTab(t *testing.T, browser context.Context, options ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser, options...)
	t.Cleanup(cancel)
	b := &tab{t, ctx, cancel}
	// The context of the first call is that of the tab's whole life.
	send(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watch})
	return b
}

// send sends the tab's browser a command of its own protocol.
func send[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.t.Helper()
	err := chromedp.Do(b.ctx, func(ctx context.Context, target *chromedp.Target) (v chromedp.Void, err error) {
		_, err = cdp.Call(ctx, target, command, params)
		return v, err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// visit opens the app in a new tab and waits until it can be used. Where people have to enter first, each does.
func (f *fleet) visit() *tab {
	if f.plan.enter != nil {
		return f.visitIn(newVisitor(f.t))
	}
	return f.visitIn(newTab(f.t))
}

// visits opens the app n times, one after the other, and clicks each time. Where everybody has to enter first, each is another
// visitor; else it is somebody who comes again in the same tab, which costs a third of a tab for each.
func (f *fleet) visits(n int) {
	f.t.Helper()
	if f.plan.enter != nil {
		for range n {
			b := f.visit()
			b.click(1)
			b.close()
		}
		return
	}
	b := newTab(f.t)
	defer b.close()
	for range n {
		f.visitIn(b)
		b.click(1)
	}
}

// atWork opens the app in n tabs, clicks twice in each, and marks the documents.
func (f *fleet) atWork(n int) (tabs []*tab) {
	f.t.Helper()
	for range n {
		b := f.visit()
		b.clicks(2)
		b.mark()
		tabs = append(tabs, b)
	}
	return tabs
}

func (f *fleet) visitIn(b *tab) *tab {
	f.t.Helper()
	if status := b.goTo(f.url(f.plan.page)); status != http.StatusOK {
		f.t.Fatalf("the page is answered with %d", status)
	}
	if f.plan.enter != nil {
		f.plan.enter(b)
	}
	b.ready()
	return b
}

// goTo requests a page and returns the status, or one that stands for all errors without a body.
func (b *tab) goTo(url string) int {
	b.t.Helper()
	ctx, cancel := stack.Patience(b.ctx, patience)
	defer cancel()
	res, err := chromedp.RunResponse(ctx, chromedp.Navigate(url))
	switch {
	case err == nil:
		b.keepSecrets()
		return int(res.Status)
	case strings.Contains(err.Error(), "ERR_HTTP_RESPONSE_CODE_FAILURE"): // an error of Caddy's, which has no body
		return http.StatusBadGateway
	}
	b.t.Fatal(err)
	return 0
}

// ready waits until the app can be used: it is drawn when its websocket has brought the document.
func (b *tab) ready() {
	b.t.Helper()
	b.eval(library, nil)
	b.await("the app is there", `model("count") != null && clickable() != null`)
	b.keepSecrets()
}

// eval evaluates a JavaScript expression.
func (b *tab) eval(js string, to any) {
	b.t.Helper()
	ctx, cancel := stack.Patience(b.ctx, patience)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](js))
	if err == nil && to != nil {
		err = json.Unmarshal(result, to)
	}
	if err != nil {
		b.t.Fatalf("%.60s: %v", js, err)
	}
}

// await waits for a JavaScript expression to become true.
func (b *tab) await(what, js string) {
	b.t.Helper()
	if err := b.poll(js, patience); err != nil {
		b.t.Fatalf("not so: %s: %v\n%s", what, err, b.story())
	}
}

// poll waits for a JavaScript expression to become true, for so much time of a quiet machine.
func (b *tab) poll(js string, limit time.Duration) error {
	ctx, cancel := stack.Patience(b.ctx, limit)
	defer cancel()
	err := chromedp.Do(ctx, chromedp.Poll[chromedp.Void](js, chromedp.WithPollingTimeout(0), chromedp.WithPollingInterval(20*time.Millisecond)))
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// click clicks the counter and waits for what it then shows.
func (b *tab) click(want int) {
	b.t.Helper()
	b.eval(`clickable().click()`, nil)
	b.await(fmt.Sprint("the counter shows ", want), fmt.Sprintf(`model("count").text == "%d"`, want))
}

func (b *tab) clicks(n int) {
	b.t.Helper()
	for i := range n {
		b.click(i + 1)
	}
}

// place returns the name of the server that the document lives on.
func (b *tab) place() (name string) {
	b.t.Helper()
	b.eval(`model("place").text.match(/<b>(.*)<\/b>/)[1]`, &name)
	return name
}

// mark marks the document, to tell it from the one that a reconnect brings.
func (b *tab) mark() { b.eval(`model("count").marked = true`, nil) }

// broughtAgain is true when a reconnect has brought the document again after it was marked.
const broughtAgain = `model("count") != null && !model("count").marked && clickable() != null`

// reconnected waits until a reconnect has brought the document again.
func (b *tab) reconnected() {
	b.t.Helper()
	b.await("the document is brought again", broughtAgain)
}

// kept says whether the page still shows the marked document.
func (b *tab) kept() (kept bool) {
	b.eval(`model("count").marked === true`, &kept)
	return kept
}

// blockCookies makes the tab refuse cookies of other sites.
func (b *tab) blockCookies() {
	b.t.Helper()
	send(b, network.SetCookieControls, network.SetCookieControlsParams{EnableThirdPartyCookieRestriction: true})
}

// keepSecrets remembers the ids and tokens in the page, which no log may show.
func (b *tab) keepSecrets() {
	b.t.Helper()
	var tokens []string
	b.eval(`[...document.documentElement.outerHTML.matchAll(/"token":"([^"]+)"/g)].map(m => m[1]).concat(window.tokens ?? [])`, &tokens)
	for _, token := range tokens {
		keepToken(token)
	}
}

// keepToken remembers a token, the id in it, and the stamps that Bokeh packed into it.
func keepToken(token string) {
	payload, _, _ := strings.Cut(token, ".")
	var claims struct {
		ID     string `json:"session_id"`
		Packed string `json:"__bk__zlib_"`
	}
	if raw, err := base64.RawURLEncoding.DecodeString(payload); err == nil {
		_ = json.Unmarshal(raw, &claims)
	}
	ids := []string{claims.ID}
	for name, value := range unpack(claims.Packed) {
		if strings.EqualFold(name, "Bokeh-Session-Id") || strings.EqualFold(name, "Caddy-Bokeh-Stamp") {
			ids = append(ids, value)
		}
	}
	keepSecret(token, payload)
	for _, id := range ids {
		half, _, _ := strings.Cut(id, ".")
		keepSecret(id, half)
	}
}

func unpack(packed string) map[string]string {
	z, err := zlib.NewReader(base64.NewDecoder(base64.RawURLEncoding, strings.NewReader(packed)))
	if err != nil {
		return nil
	}
	raw, _ := io.ReadAll(z)
	var payload struct {
		Headers map[string]string `json:"headers"`
	}
	_ = json.Unmarshal(raw, &payload)
	return payload.Headers
}
