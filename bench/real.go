// This file holds the work before real servers: bokeh serve with an app that sleeps.

package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/floats"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// realPage is what a visit takes of a real server's thread: the app's sleep, and what Bokeh itself needs while it has as many
// sessions as here, 85 to 98 ms of the processor where it forgot unused ones after 3 s. The sleep is so long that three servers, the proxy and the visitors leave
// two cores idle for most of the time: with 100 ms all servers waited for the processor, and no choice among them mattered.
const realPage = 400 * time.Millisecond

// startReal starts bokeh serve where the servers of this run are to be. A server that it cannot measure has the address only.
func (r *run) startReal(ctx context.Context, addrs []string) (end func(), err error) {
	var started []*stack.Bokeh
	end = func() {
		for _, b := range started {
			b.Kill()
		}
	}
	python, err := stack.NewPython(ctx, r.root, stack.Requirements)
	if err != nil {
		return end, err
	}
	app := filepath.Join(r.root, "bench", "app.py")
	lifetime, check := r.work.lifetimes()
	for _, addr := range addrs {
		var port int
		if _, err := fmt.Sscanf(addr, "127.0.0.1:%d", &port); err != nil {
			return end, err
		}
		b, err := python.StartBokeh(r.root, stack.BokehConfig{
			Port:    port,
			Program: []string{"bokeh", "serve", app, "--address", "127.0.0.1"},
			Args: []string{
				"--unused-session-lifetime", fmt.Sprint(lifetime.Milliseconds()),
				"--check-unused-sessions", fmt.Sprint(check.Milliseconds()),
			},
			Env: []string{"RUNS=" + r.listOfRuns(), "SERVER=" + addr},
		})
		if err != nil {
			return end, err
		}
		started = append(started, b)
		r.servers = append(r.servers, &server{addr: addr})
	}
	return end, nil
}

func (r *run) listOfRuns() string { return filepath.Join(r.dir, "runs") }

// readRuns counts the runs of real servers, and returns the most of one over the mean.
func (r *run) readRuns() (uneven float64, err error) {
	text, err := os.ReadFile(r.listOfRuns())
	if err != nil {
		return 0, err
	}
	each := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		visit, server, _ := strings.Cut(strings.TrimSpace(line), " ")
		r.runs.add(visit)
		each[server]++
	}
	began := slices.Collect(maps.Values(each))
	return floats.Max(began) / floats.Sum(began) * float64(len(r.servers)), nil
}
