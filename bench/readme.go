// This file holds how the comparison gets into docs/benchmarks.md, and all tables into the README beside the raw results.

package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	readmeBegin = "<!-- the comparison with other balancers, made by: make bench-peers ARGS=-readme -->\n"
	readmeEnd   = "<!-- the comparison's end -->\n"
)

// allTables is the file that has a table of each work, beside the raw results.
const allTables = "README.md"

// updateReadme writes what comes of the comparison between the marks, with the day and the versions, and all tables
// beside the raw results.
func updateReadme(file, folder string, all []*summary) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), readmeBegin)
	_, after, ended := strings.Cut(rest, readmeEnd)
	if !found || !ended {
		return errors.New(file + " has no place for the comparison: " + strings.TrimSpace(readmeBegin))
	}
	err = os.WriteFile(file, []byte(before+readmeBegin+shortly(all)+readmeEnd+after), 0o600)
	return errors.Join(err, os.WriteFile(filepath.Join(folder, allTables), []byte(atLength(all)), 0o600))
}

// shortly returns the plot and one table of all works.
func shortly(all []*summary) string {
	var b strings.Builder
	fmt.Fprintf(&b, "![time within which 99 of 100 pages are ready, behind each balancer at each work](../bench/peers.svg)\n\n%s\n\n", overview(all).RenderMarkdown())
	if slices.ContainsFunc(all, func(s *summary) bool { return !s.work.attack.empty() }) {
		b.WriteString("What an attack does to honest visitors: the time within which 99 of 100 of their pages are ready, by what it is without the attack," +
			" and the time itself.\n\n" + attacks(all).RenderMarkdown() + "\n\n")
	}
	for _, s := range all {
		if against, of := cpuAgainstCookie(s, ours); against.n > 0 && s.work.pair {
			fmt.Fprintf(&b, "A visit takes %.2f ms of the processor, %.2f of what it takes with %s at the same time.\n", s.get(ours, cpu).median, against.median, of)
		}
		if against, of := memoryAgainstCookie(s, ours); against.n > 0 && s.work.idle {
			fmt.Fprintf(&b, "An open session takes %.0f KB of the proxy's memory, %.2f of what it takes with %s.\n", s.get(ours, memory).median/1e3, against.median, of)
		}
	}
	fmt.Fprintf(&b, "%s\n", origin(all))
	return b.String()
}

// atLength returns a table of each work, and what of the aims is reached.
func atLength(all []*summary) string {
	var b strings.Builder
	b.WriteString("# Beside other balancers\n\nMade by `make bench-peers ARGS=-readme` from the raw results in this folder." +
		" A dash stands where more than one visit in a hundred failed. Behind a balancer that runs apps twice the servers may have more to do than they can:" +
		" then the waits grow as long as it is measured.\n\n")
	for _, s := range all {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", s.work.title, s.table().RenderMarkdown())
		if !s.work.attack.empty() {
			fmt.Fprintf(&b, "%s\n\n", s.work.attack.explained())
		}
		if n := s.disturbed(); n > 0 {
			fmt.Fprintf(&b, "In %d of %d runs the machine was busy with other things.\n\n", n, len(s.records))
		}
	}
	b.WriteString("## What had to be reached\n\n```\n")
	for _, s := range all {
		for _, f := range verdict(s, ours) {
			fmt.Fprintln(&b, f)
		}
	}
	fmt.Fprintf(&b, "```\n\n%s\n", origin(all))
	return b.String()
}

// origin says when, on what and of which programs the numbers are.
func origin(all []*summary) string {
	var versions []string
	var first, last time.Time
	cpus, least, most := 0, math.MaxInt, 0
	revisions := map[string]bool{}
	for _, s := range all {
		runs := 0
		for _, r := range s.records {
			if r.Version != "" && !slices.Contains(versions, r.Version) {
				versions = append(versions, r.Version)
			}
			if first.IsZero() || r.Date.Before(first) {
				first = r.Date
			}
			if r.Date.After(last) {
				last = r.Date
			}
			revisions[r.Revision] = true
			cpus = r.CPUs
			runs = max(runs, r.Repetition+1)
		}
		least, most = min(least, runs), max(most, runs)
	}
	slices.Sort(versions)
	runs := fmt.Sprint(most)
	if least < most {
		runs = fmt.Sprintf("%d to %d", least, most)
	}
	days := last.Format(time.DateOnly)
	if from := first.Format(time.DateOnly); from != days {
		days = from + " to " + days
	}
	return fmt.Sprintf("Measured on %s on %d cores, medians of %s runs; this policy at %s; %s.",
		days, cpus, runs, strings.Join(slices.Sorted(maps.Keys(revisions)), ", "), strings.Join(versions, "; "))
}
