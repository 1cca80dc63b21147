// This file tests that the links of the documents lead somewhere, and that the README stays short.

package caddybokeh

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// mostOfREADME is how many bytes the README may have: two screens, for whoever sees this for the first time.
const mostOfREADME = 10 << 10

func TestREADMEIsShort(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > mostOfREADME {
		t.Errorf("README.md has %d bytes, and may have %d: what is for one kind of readers goes to docs/", len(text), mostOfREADME)
	}
}

// Every relative link in a document, and every document that another file names, is there, with the heading that is meant.
func TestLinksLeadSomewhere(t *testing.T) {
	tried := 0
	for _, file := range globs(t, "*.md", "docs/*.md", "bench/results/*.md") {
		for _, link := range links(contents(t, file)) {
			tried++
			if err := follow(file, link); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if tried < 150 {
		t.Errorf("only %d links were found in documents", tried)
	}
	tried = 0
	for _, file := range globs(t, "examples/*", "testdata/Caddyfile", "*.go", "e2e/*.go", "bench/*.go", "scripts/*", "Makefile") {
		if file == "links_test.go" {
			continue // it names documents that are not there
		}
		for _, name := range mentioned.FindAllString(contents(t, file), -1) {
			tried++
			if err := follow("README.md", name); err != nil { // as from the root
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if tried == 0 {
		t.Error("no file names a document")
	}
}

// What a document shows and says of itself is found, and what is missing is told.
func TestLinksAreFollowed(t *testing.T) {
	text := "# A title\n\n[one](a.md) and [two,\nover a line](b.md#c) `[no](code.md)` ![plot](plot.svg) [`code`](d.md)\n\n" +
		"```\n# no heading\n[no](link.md)\n```\n\n\t[in a list](e.md)\n\n[ref]: f.md\n\n## The `--flag` and *more*, [there](g.md)!\n\n## A title\n"
	if got, want := links(text), []string{"a.md", "b.md#c", "plot.svg", "d.md", "e.md", "g.md", "f.md"}; !slices.Equal(got, want) {
		t.Errorf("links: %q, want %q", got, want)
	}
	if got, want := anchors(text), []string{"a-title", "the---flag-and-more-there", "a-title-1"}; !slices.Equal(got, want) {
		t.Errorf("anchors: %q, want %q", got, want)
	}
	for _, link := range []string{"https://example.com/x", "README.md", "docs/draining.md#systemd", "testdata", "examples/bokeh@.service", "LICENSE", "#try-it"} {
		if err := follow("README.md", link); err != nil {
			t.Errorf("%s: %v", link, err)
		}
	}
	for _, link := range []string{"draining.md", "docs/nothing.md", "docs/draining.md#nothing", "#nothing", "../README.md", "examples/bokeh.service", "/docs/draining.md"} {
		if follow("README.md", link) == nil {
			t.Errorf("%s is taken for a link that leads somewhere", link)
		}
	}
}

var (
	// codeSpan is what shows text as it is.
	codeSpan = regexp.MustCompile("`[^`\n]*`")

	// inlineLink and namedLink are the two ways in which Markdown says what a link or an image leads to.
	inlineLink = regexp.MustCompile(`\]\(<?([^)>\s]+)[^)]*\)`)
	namedLink  = regexp.MustCompile(`(?m)^\[[^\]]+\]:\s*(\S+)`)

	wholeLink = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)

	// mentioned is a document that a file which is none names.
	mentioned = regexp.MustCompile(`\b(?:docs/[\w-]+|README|CONTRIBUTING|CHANGELOG)\.md(?:#[\w-]+)?`)
)

// prose returns the lines of a document that are not in a fence.
func prose(text string) (lines []string) {
	fenced := false
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		} else if !fenced {
			lines = append(lines, line)
		}
	}
	return lines
}

// links returns where the links of a document lead.
func links(text string) (found []string) {
	text = codeSpan.ReplaceAllString(strings.Join(prose(text), "\n"), "")
	for _, way := range []*regexp.Regexp{inlineLink, namedLink} {
		for _, match := range way.FindAllStringSubmatch(text, -1) {
			found = append(found, match[1])
		}
	}
	return found
}

// anchors returns the names by which GitHub lets links lead to the headings of a document.
func anchors(text string) (names []string) {
	times := make(map[string]int)
	for _, line := range prose(text) {
		level := len(line) - len(strings.TrimLeft(line, "#"))
		if level == 0 || level > 6 || !strings.HasPrefix(line[level:], " ") {
			continue
		}
		title := wholeLink.ReplaceAllString(strings.TrimSpace(line[level:]), "$1")
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Pc):
				return unicode.ToLower(r)
			}
			return -1
		}, title)
		n := times[name]
		times[name]++
		if n > 0 {
			name = fmt.Sprintf("%s-%d", name, n)
		}
		names = append(names, name)
	}
	return names
}

// follow says whether a link in a file leads to nothing. Links to other sites are not asked for.
func follow(file, link string) error {
	u, err := url.Parse(link)
	if err != nil || u.IsAbs() {
		return err
	}
	to := file
	if u.Path != "" {
		to = path.Join(path.Dir(file), u.Path)
	}
	if path.IsAbs(u.Path) || !filepath.IsLocal(to) {
		return fmt.Errorf("the link %s leads out of the repository", link)
	}
	info, err := os.Stat(to)
	if err != nil {
		return fmt.Errorf("the link %s leads to nothing: %w", link, err)
	}
	if u.Fragment == "" {
		return nil
	}
	if info.IsDir() || path.Ext(to) != ".md" {
		return fmt.Errorf("the link %s leads to a heading of what has none", link)
	}
	text, err := os.ReadFile(filepath.Clean(to))
	if err != nil {
		return err
	}
	if names := anchors(string(text)); !slices.Contains(names, u.Fragment) {
		return fmt.Errorf("the link %s leads to no heading of %s, which has #%s", link, to, strings.Join(names, " #"))
	}
	return nil
}

func contents(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func globs(t *testing.T, patterns ...string) (files []string) {
	t.Helper()
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no files are %s: %v", pattern, err)
		}
		files = append(files, found...)
	}
	return files
}
