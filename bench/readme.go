// This file holds how the tables get into the README.

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	readmeBegin = "<!-- the comparison with other balancers, made by: make bench-peers ARGS=-readme -->\n"
	readmeEnd   = "<!-- the comparison's end -->\n"
)

// updateReadme writes the tables between the marks, with the day and the versions.
func updateReadme(file string, all []*summary) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), readmeBegin)
	_, after, ended := strings.Cut(rest, readmeEnd)
	if !found || !ended {
		return errors.New(file + " has no place for the comparison: " + strings.TrimSpace(readmeBegin))
	}
	return os.WriteFile(file, []byte(before+readmeBegin+markdown(all)+readmeEnd+after), 0o600)
}

func markdown(all []*summary) string {
	var b strings.Builder
	b.WriteString("![p99 until a page is ready, of each balancer at each work](bench/peers.svg)\n\n")
	for _, s := range all {
		fmt.Fprintf(&b, "**%s**\n\n%s\n\n", s.work.title, s.table().RenderMarkdown())
	}
	fmt.Fprintf(&b, "%s\n", origin(all))
	return b.String()
}

// origin says when, on what and of which programs the numbers are.
func origin(all []*summary) string {
	var versions []string
	var last time.Time
	cpus, runs := 0, 0
	for _, s := range all {
		for _, r := range s.records {
			if r.Version != "" && !slices.Contains(versions, r.Version) {
				versions = append(versions, r.Version)
			}
			if r.Date.After(last) {
				last = r.Date
			}
			cpus = r.CPUs
			runs = max(runs, r.Repetition+1)
		}
	}
	slices.Sort(versions)
	return fmt.Sprintf("Measured on %s on %d cores, medians of %d runs; %s.", last.Format(time.DateOnly), cpus, runs, strings.Join(versions, "; "))
}
