// This file holds what is made of the runs of a work: medians, spreads and ratios.

package main

import (
	"slices"

	"gonum.org/v1/gonum/stat"
)

// summary is of all runs of a work.
type summary struct {
	work    *work
	records []record
	peers   []string // that ran, in the order of the tables
}

func summarize(w *work, records []record) *summary {
	s := &summary{work: w, records: records}
	for _, p := range peers {
		if slices.ContainsFunc(records, func(r record) bool { return r.Peer == p.name }) {
			s.peers = append(s.peers, p.name)
		}
	}
	return s
}

// value is one of a run's numbers.
type value func(numbers) float64

func ready50(n numbers) float64  { return n.Ready50 }
func ready90(n numbers) float64  { return n.Ready90 }
func ready99(n numbers) float64  { return n.Ready99 }
func appRuns(n numbers) float64  { return n.Runs }
func failed(n numbers) float64   { return n.Failed }
func sessions(n numbers) float64 { return n.Sessions }
func building(n numbers) float64 { return n.Building }
func cpu(n numbers) float64      { return n.CPU }
func memory(n numbers) float64   { return n.Memory }

// of returns a peer's values, one of each repetition.
func (s *summary) of(peer string, v value) (all []float64) {
	for _, r := range s.records {
		if r.Peer == peer {
			all = append(all, v(r.numbers))
		}
	}
	return all
}

// statistic is the median of repetitions, and their spread.
type statistic struct {
	median, least, most float64
	n                   int // repetitions
}

func statisticOf(values []float64) (s statistic) {
	if len(values) == 0 {
		return s
	}
	sorted := slices.Sorted(slices.Values(values))
	// Of an even number, the middle of the two in the middle.
	median := (quantile(sorted, 0.5) + sorted[len(sorted)/2]) / 2
	return statistic{median, sorted[0], sorted[len(sorted)-1], len(sorted)}
}

func (s *summary) get(peer string, v value) statistic { return statisticOf(s.of(peer, v)) }

// against returns the ratio of a peer's value and another's: of each repetition, then the median.
func (s *summary) against(peer, other string, v value) statistic {
	theirs := map[int]float64{}
	for _, r := range s.records {
		if r.Peer == other {
			theirs[r.Repetition] = v(r.numbers)
		}
	}
	var ratios []float64
	for _, r := range s.records {
		if r.Peer == peer && theirs[r.Repetition] > 0 {
			ratios = append(ratios, v(r.numbers)/theirs[r.Repetition])
		}
	}
	return statisticOf(ratios)
}

// best returns the peer, of those that users have most often, other than this one, our policy and the central queue,
// whose pages are ready soonest. One that fails more visits than one in a hundred has no p99 below the limit; among
// those it is the one that fails least.
func (s *summary) best(than string) (best string) {
	var least [2]float64
	for _, p := range peers {
		got := s.get(p.name, ready99)
		if got.n == 0 || p.extra || p.name == ideal || p.name == ours || p.name == than {
			continue
		}
		if m := [2]float64{got.median, s.get(p.name, failed).median}; best == "" || slices.Compare(m[:], least[:]) < 0 {
			best, least = p.name, m
		}
	}
	return best
}

// mean is of a value over the repetitions.
func (s *summary) mean(peer string, v value) float64 { return stat.Mean(s.of(peer, v), nil) }

// disturbed counts the runs in which this program itself was late.
func (s *summary) disturbed() (count int) {
	for _, r := range s.records {
		if r.Lag > lagLimit.Seconds() {
			count++
		}
	}
	return count
}
