// This file tests that Bokeh's own files are asked of the servers once, and come from a server that has them.

package e2e

import (
	"crypto/sha512"
	"encoding/hex"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// aFile finds the files of a page whose address names their content.
var aFile = regexp.MustCompile(`src="([^"]*static/[^"]*\?v=([0-9a-f]{128}))"`)

// get gets a page or a file as a browser that has no cache.
func (f *fleet) get(url string) (text string, header http.Header) {
	f.t.Helper()
	if !strings.HasPrefix(url, "http") {
		url = f.url("/" + strings.TrimPrefix(url, "/"))
	}
	res, err := http.Get(url)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(body), res.Header
}

// filesOf returns how many files a visitor without a cache gets with the page, and how many of them have another hash than
// their address says.
func (f *fleet) filesOf(page string) (n, wrong int) {
	f.t.Helper()
	html, _ := f.get(page)
	for _, file := range aFile.FindAllStringSubmatch(html, -1) {
		n++
		body, _ := f.get(file[1])
		if sum := sha512.Sum512([]byte(body)); hex.EncodeToString(sum[:]) != file[2] {
			wrong++
		}
	}
	return n, wrong
}

// metric returns the sum of the metrics of Caddy whose line begins and ends so, before the number.
func (f *fleet) metric(begin, end string) (sum int) {
	f.t.Helper()
	_, text, err := f.ask("/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, begin) && strings.HasSuffix(name, end) {
			n, err := strconv.Atoi(value)
			if err != nil {
				f.t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

func TestFilesAreAskedForOnce(t *testing.T) {
	t.Parallel()
	f := start(t, plan{directive: true})
	want := 0
	for range 5 {
		n, wrong := f.filesOf("/counter")
		if n < 2 || wrong > 0 {
			t.Fatalf("a page has %d files, %d of them wrong", n, wrong)
		}
		want = n
	}
	// All else that these visits asked for is pages. What a busy server has not answered in a second is asked of another one, too.
	if got := f.metric(`caddy_bokeh_selections_total{decision="shared"`, "}") - f.metric("caddy_bokeh_hedged_requests_total", "}"); got != want {
		t.Errorf("5 cold visits ask the servers for %d files, want %d", got, want)
	}
	for range 3 {
		b := f.visitIn(newVisitor(t))
		b.click(1)
		b.close()
	}
	if got := f.metric("caddy_bokeh_files_total", "}"); got < 5*want+3*want {
		t.Errorf("browsers asked for too few files: %d", got)
	}
	if got := f.metric(`caddy_bokeh_files_total{result="miss"}`, ""); got != want {
		t.Errorf("8 cold visits ask the servers for %d files, want %d", got, want)
	}
}

// While a fleet is deployed its servers have two versions of Bokeh, and files of each.
func TestFilesOfTwoVersions(t *testing.T) {
	t.Parallel()
	f := start(t, plan{directive: true, mixed: oldStacks, serveEnv: []string{"PYTHONPATH=" + testFile("old")}})
	wrongOf10 := func() (all int) {
		for range 10 {
			n, wrong := f.filesOf("/counter")
			if n < 2 {
				t.Fatalf("a page has %d files", n)
			}
			all += wrong
		}
		return all
	}
	if n := wrongOf10(); n > 0 {
		t.Errorf("%d files are wrong", n)
	}
	for range 4 {
		b := f.visitIn(newVisitor(t))
		b.click(1)
		b.close()
	}
	f.plan.proxy = "\t\tfiles off"
	f.reload()
	if wrongOf10() == 0 {
		t.Error("no file is wrong without, so the test above shows nothing")
	}
}
