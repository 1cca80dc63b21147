// This file holds what is measured in a run.

package main

import (
	"slices"
	"time"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/stat"
)

// numbers are what a run gives.
type numbers struct {
	Visits     int            `json:"visits"`
	Runs       float64        `json:"app_runs_per_visit"`
	Ready50    float64        `json:"ready_p50"` // seconds
	Ready90    float64        `json:"ready_p90"`
	Ready99    float64        `json:"ready_p99"` // visitLimit where one in a hundred failed
	Failed     float64        `json:"failed"`    // of all visits
	Why        map[string]int `json:"failed_why,omitempty"`
	Reconnects int            `json:"reconnects"`
	Sessions   float64        `json:"sessions_max_over_mean"`
	Building   float64        `json:"building_max_over_mean"`                // on average over a second, from soon on
	CPU        float64        `json:"cpu_seconds_per_1000_visits,omitempty"` // of the whole run
	Lag        float64        `json:"lag_p99"`                               // of this program
	Memory     float64        `json:"bytes_per_session,omitempty"`
	Hostile    int            `json:"hostile_app_runs,omitempty"` // in the whole run
	Without    *calmNumbers   `json:"without_attack,omitempty"`

	before, early, late, after look
	up                         []bool // which servers are there in the end
	waits                      []float64
	runs                       int
}

// calmNumbers are what is kept of the run without an attack.
type calmNumbers struct {
	Ready99 float64 `json:"ready_p99"`
	Failed  float64 `json:"failed"`
	Hostile int     `json:"hostile_app_runs,omitempty"`
}

// add counts a visit. One that failed was never ready, which counts as the longest wait there is.
func (n *numbers) add(o outcome, runs int) {
	n.runs += runs
	n.Reconnects += o.reconnects
	wait := o.ready
	if o.failed != "" {
		if n.Why == nil {
			n.Why = map[string]int{}
		}
		n.Why[o.failed]++
	}
	if o.ready == 0 {
		wait = visitLimit
	}
	n.waits = append(n.waits, min(wait, visitLimit).Seconds())
}

// finish does the sums.
func (n *numbers) finish() {
	n.Visits = len(n.waits)
	visits := float64(n.Visits)
	for _, count := range n.Why {
		n.Failed += float64(count) / visits
	}
	n.Runs = float64(n.runs) / visits
	slices.Sort(n.waits)
	n.Ready50, n.Ready90, n.Ready99 = quantile(n.waits, 0.5), quantile(n.waits, 0.9), quantile(n.waits, 0.99)
	if n.Sessions == 0 {
		n.Sessions = unevenness(n.before.sessions, n.after.sessions, n.up)
	}
	n.Building = unevenness(n.early.building, n.late.building, n.up)
}

func quantile(sorted []float64, p float64) float64 {
	return stat.Quantile(p, stat.Empirical, sorted, nil)
}

// unevenness is the most over the mean of what the servers that are up had between two looks.
func unevenness(before, after []float64, up []bool) float64 {
	var held []float64
	for i := range after {
		if up[i] {
			held = append(held, after[i]-before[i])
		}
	}
	if len(held) == 0 || floats.Sum(held) == 0 {
		return 0
	}
	return floats.Max(held) / stat.Mean(held, nil)
}

// record is a line of the raw results.
type record struct {
	Work       string    `json:"work"`
	Peer       string    `json:"peer"`
	Version    string    `json:"version,omitempty"`
	Repetition int       `json:"repetition"`
	Seed       uint64    `json:"seed"`
	Revision   string    `json:"revision"` // of this policy
	Date       time.Time `json:"date"`
	CPUs       int       `json:"cpus"`
	numbers
}
