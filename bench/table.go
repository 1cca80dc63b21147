// This file holds the tables.

package main

import (
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
)

// read returns what the raw results of works say.
func read(folder string, chosen []*work) (all []*summary, err error) {
	for _, w := range chosen {
		records, err := load(folder, w)
		if err != nil {
			return nil, err
		}
		if len(records) > 0 {
			all = append(all, summarize(w, records))
		}
	}
	return all, nil
}

// print prints the table of a work.
func (s *summary) print() {
	fmt.Printf("\n%s (%s)\n%s\n", s.work.title, s.work.name, s.table().Render())
	if n := s.disturbed(); n > 0 {
		fmt.Printf("The machine was busy with other things in %d of %d runs: these numbers are not worth much.\n", n, len(s.records))
	}
}

// printVerdict prints what is reached and what is not.
func printVerdict(all []*summary) {
	fmt.Println()
	for _, s := range all {
		for _, f := range verdict(s, ours) {
			fmt.Println(f)
		}
	}
}

// table has a row for each peer.
func (s *summary) table() table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	if s.work.idle {
		t.AppendHeader(table.Row{"", "memory a session, KB"})
		for _, p := range s.peers {
			m := s.get(p, memory)
			t.AppendRow(table.Row{p, fmt.Sprintf("%.1f (%.1f–%.1f)", m.median/1e3, m.least/1e3, m.most/1e3)})
		}
		return t
	}
	if !s.work.attack.empty() {
		return s.attackTable()
	}
	head := table.Row{"", "app runs a visit", "ready: p50", "p90", "p99 (spread)", "to the best other", "to the central queue", "failed", "sessions, most/mean", "CPU s, 1000 visits"}
	if s.work.late {
		head = append(head, "pages building, most/mean")
	}
	t.AppendHeader(head)
	for _, p := range s.peers {
		t.AppendRow(s.row(p))
	}
	return t
}

func (s *summary) row(p string) table.Row {
	best, _ := againstBest(s, p)
	central, _ := againstIdeal(s, p)
	row := table.Row{
		p,
		fmt.Sprintf("%.3f", s.get(p, appRuns).median),
		seconds(s.get(p, ready50).median),
		seconds(s.get(p, ready90).median),
		spreadOf(s.get(p, ready99)),
		ratio(best.median),
		ratio(central.median),
		fmt.Sprintf("%.1f %%", 100*s.get(p, failed).median),
		ratio(s.get(p, sessions).median),
		ratio(s.get(p, cpu).median),
	}
	if s.work.late {
		row = append(row, ratio(s.get(p, building).median))
	}
	return row
}

// overview has a row for each work: this policy, and the best other peer.
func overview(all []*summary) table.Writer {
	t := table.NewWriter()
	t.AppendHeader(table.Row{"", "99 of 100 ready within", "the best other, within", "ratio (spread)", "to the central queue", "app runs a visit: ours, theirs", "failed: ours, theirs"})
	for _, s := range all {
		if !s.work.comparesPeers() {
			continue
		}
		against, best := againstBest(s, ours)
		central, _ := againstIdeal(s, ours)
		compared := ""
		if against.n > 0 {
			compared = fmt.Sprintf("%.2f (%.2f–%.2f)", against.median, against.least, against.most)
		}
		t.AppendRow(table.Row{
			fmt.Sprintf("`%s`: %s", s.work.name, s.work.title),
			seconds(s.get(ours, ready99).median),
			fmt.Sprintf("%s, %s", seconds(s.get(best, ready99).median), best),
			compared,
			ratio(central.median),
			fmt.Sprintf("%.3f, %.3f", s.get(ours, appRuns).median, s.get(best, appRuns).median),
			fmt.Sprintf("%.1f %%, %.1f %%", 100*s.get(ours, failed).median, 100*s.get(best, failed).median),
		})
	}
	return t
}

func spreadOf(s statistic) string {
	return fmt.Sprintf("%s (%s–%s)", seconds(s.median), seconds(s.least), seconds(s.most))
}

func seconds(s float64) string {
	switch {
	case s >= visitLimit.Seconds():
		return "—" // more than one in a hundred failed
	case s >= 1:
		return fmt.Sprintf("%.1f s", s)
	}
	return fmt.Sprint(time.Duration(s * float64(time.Second)).Round(time.Millisecond))
}

func ratio(r float64) string {
	if r == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", r)
}
