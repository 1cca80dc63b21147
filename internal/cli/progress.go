// This file holds how --wait shows what it waits for.

package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// plainPause is how often --wait says at least that it is still waiting, where there is no terminal.
const plainPause = 30 * time.Second

// progress shows how a drain goes on.
type progress interface {
	show(left []api.Upstream)
	trouble(err error) // that may pass
	done(text string)
	end()         // before an error is written
	last() string // what was shown last
}

// newProgress returns a bar for a terminal, and lines for all else.
func newProgress(f *os.File) progress {
	if term.IsTerminal(int(f.Fd())) {
		return &bar{w: f, fd: int(f.Fd())}
	}
	return &lines{w: f}
}

// describe says in words what is left.
func describe(left []api.Upstream) string {
	parts := make([]string, 0, len(left))
	for _, st := range left {
		part := fmt.Sprintf("%s at %s", api.InWords(st.Total), st.Address)
		switch {
		case st.Total > 0:
			part += fmt.Sprintf(", the oldest of %s", age(&st))
		case len(st.WaitingFor) > 0:
			w := st.WaitingFor[0]
			part += fmt.Sprintf(", waiting for node %s on %s: %s", w.Node, w.Host, w.Reason)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

func totalOf(left []api.Upstream) (sum int64) {
	for _, st := range left {
		sum += st.Total
	}
	return sum
}

// bar is a progress bar: of the sessions at the start, how many are left.
type bar struct {
	w     io.Writer
	fd    int
	bar   *progressbar.ProgressBar
	first int64
	text  string
}

func (b *bar) show(left []api.Upstream) {
	now := totalOf(left)
	if b.bar == nil {
		b.first = now
		b.bar = progressbar.NewOptions64(max(b.first, 1),
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionSetWidth(20),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(true),
			progressbar.OptionShowCount(),
		)
	}
	b.text = describe(left)
	b.describe(b.text)
	_ = b.bar.Set64(max(b.first-now, 0))
}

func (b *bar) trouble(err error) {
	if b.bar != nil {
		b.describe("still waiting: " + err.Error())
	} else {
		printable.Fprintf(b.w, "still waiting: %v\n", err)
	}
}

// barRest is what the bar itself takes of a line.
const barRest = 48

// describe writes a text before the bar, as far as both fit in one line.
func (b *bar) describe(text string) {
	text = printable.Text(text)
	if width, _, err := term.GetSize(b.fd); err == nil && utf8.RuneCountInString(text) > width-barRest {
		text = string([]rune(text)[:max(width-barRest-1, 10)]) + "…"
	}
	b.bar.Describe(text)
}

func (b *bar) done(text string) {
	b.end()
	printable.Fprintf(b.w, "%s\n", text)
}

func (b *bar) end() {
	if b.bar != nil {
		_ = b.bar.Exit()
		fmt.Fprintln(b.w)
	}
}

func (b *bar) last() string { return b.text }

// lines says what is left whenever that changes, and from time to time.
type lines struct {
	w    io.Writer
	text string
	sum  int64
	at   time.Time
}

func (l *lines) show(left []api.Upstream) {
	l.text = describe(left)
	if sum := totalOf(left); sum != l.sum || time.Since(l.at) >= plainPause {
		l.sum = sum
		l.write(l.text)
	}
}

func (l *lines) write(text string) {
	l.at = time.Now()
	printable.Fprintf(l.w, "%s\n", text)
}

func (l *lines) trouble(err error) {
	if time.Since(l.at) >= plainPause || l.at.IsZero() {
		l.write("still waiting: " + err.Error())
	}
}

func (l *lines) done(text string) { l.write(text) }
func (l *lines) end()             {}
func (l *lines) last() string     { return l.text }
