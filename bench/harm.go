// This file holds what an attack does to honest visitors: the same crowd with it and without, compared and in tables.

package main

import (
	"fmt"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
)

// without is a value of the run without the attack.
func without(v func(calmNumbers) float64) value {
	return func(n numbers) float64 {
		if n.Without == nil {
			return 0
		}
		return v(*n.Without)
	}
}

func calm99(n calmNumbers) float64     { return n.Ready99 }
func calmFailed(n calmNumbers) float64 { return n.Failed }

// harm is by what an attack makes 99 of 100 visitors wait longer.
func harm(n numbers) float64 { return n.Ready99 / without(calm99)(n) }

// finished is which part of the pages servers built for the hostile clients though they were aborted.
func finished(n numbers) float64 {
	return float64(n.Hostile) / without(func(n calmNumbers) float64 { return float64(n.Hostile) })(n)
}

// attackTable has a row for each peer: with the attack and without.
func (s *summary) attackTable() table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	head := table.Row{"", "ready without: p99 (spread)", "with: p99 (spread)", "ratio (spread)", "failed without", "with", "app runs a visit"}
	if s.work.attack.abort {
		head = append(head, "aborted pages that were built")
	}
	t.AppendHeader(head)
	for _, p := range s.peers {
		row := table.Row{
			p,
			spreadOf(s.get(p, without(calm99))),
			spreadOf(s.get(p, ready99)),
			s.harmOf(p),
			fmt.Sprintf("%.1f %%", 100*s.get(p, without(calmFailed)).median),
			fmt.Sprintf("%.1f %%", 100*s.get(p, failed).median),
			fmt.Sprintf("%.3f", s.get(p, appRuns).median),
		}
		if s.work.attack.abort {
			row = append(row, fmt.Sprintf("%.0f %%", 100*s.get(p, finished).median))
		}
		t.AppendRow(row)
	}
	return t
}

// harmOf says what an attack does to a peer's visitors. Where more than one in a hundred failed there is nothing to compare.
func (s *summary) harmOf(p string) string {
	for _, v := range []value{ready99, without(calm99)} {
		if s.get(p, v).median >= visitLimit.Seconds() {
			return "—"
		}
	}
	h := s.get(p, harm)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", h.median, h.least, h.most)
}

// attacks has a row for each attack, and what it does to each peer's visitors.
func attacks(all []*summary) table.Writer {
	t := table.NewWriter()
	head := table.Row{""}
	var names []string
	for _, p := range peers {
		if slices.ContainsFunc(all, func(s *summary) bool { return !s.work.attack.empty() && slices.Contains(s.peers, p.name) }) {
			names = append(names, p.name)
			head = append(head, p.name)
		}
	}
	t.AppendHeader(head)
	for _, s := range all {
		if s.work.attack.empty() {
			continue
		}
		row := table.Row{fmt.Sprintf("`%s`: %s", s.work.name, s.work.title)}
		for _, p := range names {
			row = append(row, s.attackCell(p))
		}
		t.AppendRow(row)
	}
	return t
}

func (s *summary) attackCell(p string) string {
	switch lost := s.get(p, failed).median; {
	case !slices.Contains(s.peers, p):
		return ""
	case s.get(p, ready99).median >= visitLimit.Seconds():
		return fmt.Sprintf("%.0f %% failed", 100*lost)
	}
	return fmt.Sprintf("%.2f, %s", s.get(p, harm).median, seconds(s.get(p, ready99).median))
}
