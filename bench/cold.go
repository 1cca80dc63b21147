// This file holds the measurement of cold visits, whose browsers have none of Bokeh's scripts: what they take of a real server's
// thread, and when their pages are ready.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// coldCrowd is how many come at once.
const coldCrowd = 5

// coldMode is a way to have a page's scripts.
type coldMode struct {
	name  string
	files string // option of bokeh_proxy
	cold  bool   // the browsers get the scripts
}

var coldModes = []coldMode{
	{"files off", "off", true},
	{"files on", "64MiB", true},
	{"scripts in the browser", "off", false},
}

// coldRecord is a line of the raw results: one crowd.
type coldRecord struct {
	Mode       string    `json:"mode"`
	Repetition int       `json:"repetition"`
	Thread     float64   `json:"thread_seconds_per_visit"` // of the server's main thread, on the processor
	Ready50    float64   `json:"ready_p50"`                // seconds
	ReadyMax   float64   `json:"ready_max"`
	Load       float64   `json:"load_average"` // of the machine, when the crowd came
	Revision   string    `json:"revision"`
	Date       time.Time `json:"date"`
}

// cold measures crowds of cold visits before one real server, by turns in each mode.
func (b *bench) cold(ctx context.Context, folder, revision string, count int) error {
	dir, err := os.MkdirTemp("", "bench-cold-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	addrs, err := freeAddrs(1 + 2*len(coldModes))
	if err != nil {
		return err
	}
	server, err := b.startCold(ctx, addrs[0])
	if err != nil {
		return err
	}
	defer server.Kill()
	fronts := make([]proxy, len(coldModes))
	for i, m := range coldModes {
		fronts[i] = proxy{addrs[1+2*i]}
		c, err := startColdCaddy(b.caddy, filepath.Join(dir, strconv.Itoa(i)), fronts[i].addr, addrs[2+2*i], server.Addr(), m.files)
		if err != nil {
			return err
		}
		defer c.Kill()
	}
	var all []coldRecord
	for n := range count + 1 {
		for i, m := range coldModes {
			r, err := coldVisits(ctx, server.Pid(), fronts[i], m.cold)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if n == 0 { // the server reads its scripts for the first time, and Caddy fetches them
				continue
			}
			r.Mode, r.Repetition, r.Revision, r.Date = m.name, n, revision, time.Now().UTC()
			all = append(all, r)
		}
	}
	if err := writeCold(filepath.Join(folder, "cold.jsonl"), all); err != nil {
		return err
	}
	printCold(all)
	return nil
}

func (b *bench) startCold(ctx context.Context, addr string) (*stack.Bokeh, error) {
	python, err := stack.NewPython(ctx, b.root, stack.Requirements)
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(addr, ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	return python.StartBokeh(b.root, stack.BokehConfig{
		Port:    n,
		Program: []string{"bokeh", "serve", filepath.Join(b.root, "bench", "widgets.py"), "--address", "127.0.0.1"},
	})
}

func startColdCaddy(program, home, addr, admin, server, files string) (*stack.Caddy, error) {
	if err := os.Mkdir(home, 0o700); err != nil {
		return nil, err
	}
	return stack.StartCaddy(stack.CaddyConfig{
		Program: program, Home: home, Admin: admin, Ready: admin + "/config/",
		Caddyfile: fmt.Sprintf(`{
	admin %s
	persist_config off
	log {
		level ERROR
	}
	servers {
		max_header_size 64KB
	}
}

http://%s {
	bokeh_proxy %s {
		files %s
	}
}
`, admin, addr, server, files),
	})
}

// coldVisits lets a crowd come, and waits until all its pages are ready.
func coldVisits(ctx context.Context, pid int, to proxy, cold bool) (r coldRecord, err error) {
	if r.Load, err = loadAverage(); err != nil {
		return r, err
	}
	before, err := threadTime(pid)
	if err != nil {
		return r, err
	}
	var all sync.WaitGroup
	waits, errs := make([]float64, coldCrowd), make([]error, coldCrowd)
	for i := range coldCrowd {
		v := visit{visitor: newVisitor(netip.AddrFrom4([4]byte{127, 0, 0, 1}), true), to: to, app: "/widgets"}
		all.Go(func() {
			begun := time.Now()
			errs[i] = v.coldly(ctx, cold)
			waits[i] = time.Since(begun).Seconds()
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	after, err := threadTime(pid)
	if err != nil {
		return r, err
	}
	slices.Sort(waits)
	r.Thread, r.Ready50, r.ReadyMax = (after-before).Seconds()/coldCrowd, quantile(waits, 0.5), waits[coldCrowd-1]
	return r, sleep(ctx, time.Second) // sockets end
}

// scriptsInPage finds what a browser gets before it opens the websocket.
var scriptsInPage = regexp.MustCompile(`src="([^"]*static/[^"]*)"`)

// coldly visits once: the page, all its scripts at a time, and the document.
func (v visit) coldly(ctx context.Context, cold bool) error {
	ctx, cancel := context.WithTimeout(ctx, 3*visitLimit)
	defer cancel()
	at := v.to.enter(0)
	c := v.client()
	defer c.CloseIdleConnections()
	html, err := download(ctx, c, "http://"+at+v.app)
	if err != nil {
		return err
	}
	token := tokenInPage.FindSubmatch(html)
	if token == nil {
		return errNoToken
	}
	scripts := scriptsInPage.FindAllSubmatch(html, -1)
	if !cold {
		scripts = nil
	}
	errs := make([]error, len(scripts))
	var all sync.WaitGroup
	for i, s := range scripts {
		all.Go(func() { _, errs[i] = download(ctx, c, "http://"+at+"/"+strings.TrimPrefix(string(s[1]), "/")) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s, err := v.socket(ctx, at, string(token[1]), "")
	if err != nil {
		return err
	}
	return s.CloseNow()
}

// download gets something as a browser does that knows gzip.
func download(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	return io.ReadAll(res.Body)
}

// threadTime is how long the main thread of a process has been on the processor: the one that runs the apps.
func threadTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", pid, pid))
	if err != nil {
		return 0, err
	}
	var ns int64
	_, err = fmt.Sscan(string(text), &ns)
	return time.Duration(ns), err
}

// loadAverage is the machine's, of the last minute.
func loadAverage() (load float64, err error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(text), &load)
	return load, err
}

func writeCold(file string, all []coldRecord) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := json.NewEncoder(f)
	for _, r := range all {
		if err := lines.Encode(r); err != nil {
			return err
		}
	}
	return f.Close()
}

// printCold prints medians, and what the first mode is to the others.
func printCold(all []coldRecord) {
	if slices.ContainsFunc(all, func(r coldRecord) bool { return r.Load > float64(runtime.NumCPU()) }) {
		fmt.Println("The machine had more to do than this, so these figures say nothing: measure again when it is quiet.")
	}
	fmt.Printf("%d cold visits at once before one real server, medians of %d crowds\n", coldCrowd, len(all)/len(coldModes))
	for _, m := range coldModes {
		of := func(value func(coldRecord) float64) float64 {
			var values []float64
			for _, r := range all {
				if r.Mode == m.name {
					values = append(values, value(r))
				}
			}
			slices.Sort(values)
			return quantile(values, 0.5)
		}
		fmt.Printf("%-24s thread %5.1f ms a visit, half ready in %.2f s, all in %.2f s, load average %.1f\n", m.name,
			of(func(r coldRecord) float64 { return r.Thread })*1e3, of(func(r coldRecord) float64 { return r.Ready50 }),
			of(func(r coldRecord) float64 { return r.ReadyMax }), of(func(r coldRecord) float64 { return r.Load }))
	}
}
