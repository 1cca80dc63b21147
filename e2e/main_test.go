// This file holds what all end-to-end tests share: the programs, the browser, the search of Caddy's output.

// Package e2e tests the policy with real Bokeh servers, a real Caddy and a real browser.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// kit is what the tests need and this machine may lack.
var kit struct {
	root    string
	caddy   string
	python  stack.Python
	browser context.Context
	missing error
}

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	end := prepare()
	defer end()
	code := m.Run()
	// Every test's Caddy ran at DEBUG with the shipped log filter.
	if found := leaks(); len(found) > 0 {
		fmt.Printf("Caddy's output shows session ids or tokens:\n%s\n", strings.Join(found, "\n"))
		return 1
	}
	return code
}

// prepare fills the kit as far as it can.
func prepare() (end func()) {
	end = func() {}
	kit.root, kit.missing = stack.Root()
	if kit.missing != nil {
		return end
	}
	if kit.caddy, kit.missing = stack.BuildCaddy(context.Background(), kit.root); kit.missing != nil {
		return end
	}
	if kit.python, kit.missing = stack.NewPython(context.Background(), kit.root, stack.Requirements); kit.missing != nil {
		return end
	}
	var chromium string
	if chromium, kit.missing = findChromium(); kit.missing != nil {
		return end
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium),
		chromedp.Flag("ignore-certificate-errors", true),
		chromedp.Flag("disable-quic", true),
		// Else every window makes web pages of its own for the pop-ups of its address bar, which take more of the processor
		// than what the tests look at.
		chromedp.Flag("disable-features", "Translate,BlinkGenPropertyTrees,WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup"),
		chromedp.DisableGPU,
	)
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	browser, endBrowser := chromedp.NewContext(allocator)
	kit.browser, kit.missing = browser, chromedp.Do(browser)
	return func() {
		endBrowser()
		endAllocator()
	}
}

func findChromium() (string, error) {
	if p := os.Getenv("CHROMIUM"); p != "" {
		return p, nil
	}
	// Without windows Chromium takes a third of the processor's time for the same visits.
	for _, name := range []string{"chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", errors.New("no Chromium was found; install it (Debian: chromium-headless-shell, or chromium) or set CHROMIUM")
}

// need skips a test for which something is missing.
func need(t *testing.T) {
	t.Helper()
	if kit.missing != nil {
		lacks(t, kit.missing)
	}
}

// lacks skips a test for what is missing, or fails it where nothing may be skipped.
func lacks(t *testing.T, what error) {
	t.Helper()
	if os.Getenv("E2E_REQUIRE") != "" {
		t.Fatal(what)
	}
	t.Skip("SKIP-REASON:", what)
}

// secrets are the ids, tokens and stamps that a browser has seen, and what all Caddys wrote.
var secrets struct {
	mu     sync.Mutex // guards all below
	values map[string]bool
	output []string
}

func keepSecret(values ...string) {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	if secrets.values == nil {
		secrets.values = map[string]bool{}
	}
	for _, v := range values {
		if len(v) > 8 {
			secrets.values[v] = true
		}
	}
}

func keepOutput(s string) {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	secrets.output = append(secrets.output, s)
}

// leaks returns the lines of output that show a secret.
func leaks() (found []string) {
	secrets.mu.Lock()
	defer secrets.mu.Unlock()
	searched := 0
	defer func() {
		fmt.Printf("searched %d bytes that Caddy wrote for %d ids and tokens\n", searched, len(secrets.values))
	}()
	for _, out := range secrets.output {
		searched += len(out)
		for line := range strings.Lines(out) {
			for v := range secrets.values {
				if strings.Contains(line, v) {
					found = append(found, line)
					break
				}
			}
		}
	}
	return found
}
