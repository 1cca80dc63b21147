// This file holds what must be reached, and says whether it is.

package main

import (
	"fmt"
	"math"
)

const (
	ours           = "bokeh"
	withoutRetries = "-no-retries"
)

// limit is one thing that must be reached by a peer at a work.
type limit struct {
	work    string
	what    string
	most    float64
	get     func(s *summary, peer string) (got statistic, of string) // of is what it was compared with
	bounded bool                                                     // whether the central queue shows how far one can get
	worst   bool                                                     // every repetition must reach it, not the median
}

// limits are what must be reached.
var limits = []limit{
	{work: "steady-80", what: "app runs a visit", most: 1, get: runsOf, worst: true},
	{work: "steady-80", what: "p99 until ready", most: 0.55, get: againstBest, bounded: true},
	{work: "steady-80", what: "p99 until ready", most: 1.4, get: againstIdeal},
	{work: "heavy", what: "app runs a visit", most: 1, get: runsOf, worst: true},
	{work: "heavy", what: "p99 until ready", most: 0.55, get: againstBest, bounded: true},
	{work: "tabs", what: "app runs a visit", most: 1, get: runsOf, worst: true},
	{work: "tabs", what: "p99 until ready", most: 0.3, get: againstBest, bounded: true},
	{work: "cookies-blocked", what: "app runs a visit", most: 1, get: runsOf, worst: true},
	{work: "cookies-blocked", what: "p99 until ready", most: 0.15, get: againstBest, bounded: true},
	{work: "join", what: "app runs a visit", most: 1, get: runsOf, worst: true},
	{work: "join", what: "p99 until ready", most: 0.3, get: againstBest, bounded: true},
	{work: "join", what: "most pages building", most: 2, get: buildingOf, worst: true},
	{work: "black-hole", what: "app runs a visit", most: 1.02, get: runsOf, worst: true},
	{work: "black-hole", what: "failed visits", most: 0.01, get: failedOf},
	{work: "black-hole", what: "failed visits without retries", most: 0.99, get: failedWithoutRetries},
	{work: "idle-requests", what: "p99 until ready", most: 1.2, get: againstCalm},
	{work: "idle-requests", what: "failed visits", most: 0.01, get: failedOf},
	{work: "aborted-requests", what: "p99 until ready", most: 1.2, get: againstCalm},
	{work: "aborted-requests", what: "failed visits", most: 0.01, get: failedOf},
	{work: "errors", what: "p99 until ready", most: 1.2, get: againstCalm},
	{work: "errors", what: "failed visits", most: 0.01, get: failedOf},
	{work: "cost", what: "CPU a visit", most: 1.05, get: cpuAgainstCookie},
	{work: "memory", what: "memory a session", most: 0.8, get: memoryAgainstCookie},
}

const (
	cookiePeer = "caddy-cookie"
	theMean    = "the mean server"
)

func runsOf(s *summary, peer string) (got statistic, of string) {
	got = s.get(peer, appRuns)
	for _, v := range []*float64{&got.median, &got.least, &got.most} {
		*v = math.Round(*v*1000) / 1000
	}
	return got, ""
}

func failedOf(s *summary, peer string) (got statistic, of string) { return s.get(peer, failed), "" }

func buildingOf(s *summary, peer string) (got statistic, of string) {
	return s.get(peer, building), theMean
}

func cpuAgainstCookie(s *summary, peer string) (got statistic, of string) {
	return s.against(peer, cookiePeer, cpu), cookiePeer
}

func memoryAgainstCookie(s *summary, peer string) (got statistic, of string) {
	return s.against(peer, cookiePeer, memory), cookiePeer
}

// againstCalm compares a peer with itself where nobody attacks.
func againstCalm(s *summary, peer string) (got statistic, of string) {
	return s.get(peer, harm), "the same peer without the attack"
}

// againstBest compares with the best other peer. If more than one in a hundred of its visits fail, too, there is no p99.
func againstBest(s *summary, peer string) (got statistic, of string) {
	of = s.best(peer)
	if s.get(of, ready99).median >= visitLimit.Seconds() {
		return statistic{}, of
	}
	return s.against(peer, of, ready99), of
}

func againstIdeal(s *summary, peer string) (got statistic, of string) {
	return s.against(peer, ideal, ready99), ideal
}

// failedWithoutRetries compares what a peer loses without retries with what the one loses that loses least.
func failedWithoutRetries(s *summary, peer string) (got statistic, of string) {
	least := 0.0
	for _, p := range unretried() {
		lost := s.get(p, failed)
		if lost.n > 0 && p != peer+withoutRetries && (of == "" || s.mean(p, failed) < least) {
			of, least = p, s.mean(p, failed)
		}
	}
	got = s.get(peer+withoutRetries, failed)
	if of == "" || got.n == 0 || least == 0 {
		return statistic{}, of
	}
	// In most repetitions there may be none.
	got.median = s.mean(peer+withoutRetries, failed) / least
	got.least, got.most = got.least/least, got.most/least
	return got, of
}

// finding says whether a limit is reached.
type finding struct {
	limit
	got     statistic
	of      string
	bound   statistic // of the central queue
	reached bool
}

func (f finding) value() float64 {
	if f.worst {
		return f.got.most
	}
	return f.got.median
}

func (f finding) String() string {
	if f.got.n == 0 {
		return fmt.Sprintf("NOT MEASURED  %s: %s", f.work, f.what)
	}
	word := "reached"
	if !f.reached {
		word = "MISSED"
	}
	text := fmt.Sprintf("%-7s  %s: %s is %.3g", word, f.work, f.what, f.value())
	if f.of != "" {
		text += " of " + f.of + "'s"
	}
	text += fmt.Sprintf(" (%.3g to %.3g in %d runs), at most %.3g", f.got.least, f.got.most, f.got.n, f.most)
	if f.bound.n > 0 {
		text += fmt.Sprintf("; the central queue's is %.3g", f.bound.median)
	}
	return text
}

// verdict says which limits of a work a peer reaches.
func verdict(s *summary, peer string) (all []finding) {
	for _, l := range limits {
		if l.work != s.work.name {
			continue
		}
		f := finding{limit: l}
		f.got, f.of = l.get(s, peer)
		if l.bounded {
			f.bound = s.against(ideal, f.of, ready99)
		}
		f.reached = f.got.n > 0 && f.value() <= l.most
		all = append(all, f)
	}
	return all
}
