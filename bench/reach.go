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
	work string
	what string
	most float64
	get  func(s *summary, peer string) (got float64, of string) // of is what it was compared with
}

// limits are what must be reached.
var limits = []limit{
	{"steady-80", "app runs a visit", 1, runsOf},
	{"steady-80", "p99 until ready", 0.55, againstBest},
	{"steady-80", "p99 until ready", 1.4, againstIdeal},
	{"heavy", "app runs a visit", 1, runsOf},
	{"heavy", "p99 until ready", 0.55, againstBest},
	{"tabs", "app runs a visit", 1, runsOf},
	{"tabs", "p99 until ready", 0.3, againstBest},
	{"cookies-blocked", "app runs a visit", 1, runsOf},
	{"cookies-blocked", "p99 until ready", 0.15, againstBest},
	{"join", "app runs a visit", 1, runsOf},
	{"join", "p99 until ready", 0.3, againstBest},
	{"join", "most pages building after 1 s", 2, buildingOf},
	{"black-hole", "app runs a visit", 1.02, runsOf},
	{"black-hole", "failed visits", 0.01, failedOf},
	{"black-hole", "failed visits without retries", 1, failedWithoutRetries},
	{"steady-80", "CPU a visit", 1.05, cpuAgainstCookie},
	{"memory", "memory a session", 1.05, memoryAgainstCookie},
}

const (
	cookiePeer = "caddy-cookie"
	theMean    = "the mean server"
)

func runsOf(s *summary, peer string) (float64, string) {
	return math.Round(s.get(peer, appRuns).median*1000) / 1000, ""
}

func failedOf(s *summary, peer string) (float64, string) { return s.get(peer, failed).median, "" }

func buildingOf(s *summary, peer string) (float64, string) {
	return s.get(peer, building).median, theMean
}

func cpuAgainstCookie(s *summary, peer string) (float64, string) {
	return s.against(peer, cookiePeer, cpu).median, cookiePeer
}

func memoryAgainstCookie(s *summary, peer string) (float64, string) {
	return s.against(peer, cookiePeer, memory).median, cookiePeer
}

func againstBest(s *summary, peer string) (float64, string) {
	best := s.best(peer, ready99)
	return s.against(peer, best, ready99).median, best
}

func againstIdeal(s *summary, peer string) (float64, string) {
	return s.against(peer, ideal, ready99).median, ideal
}

// failedWithoutRetries is the share of failed visits that is left without retries, against the best other peer without.
func failedWithoutRetries(s *summary, peer string) (float64, string) {
	other := cookiePeer + withoutRetries
	mine, theirs := s.mean(peer+withoutRetries, failed), s.mean(other, failed)
	if theirs == 0 {
		return math.NaN(), other
	}
	return mine / theirs, other
}

// finding says whether a limit is reached.
type finding struct {
	limit
	peer    string
	got     float64
	of      string
	reached bool
}

func (f finding) String() string {
	word, than := "reached", "at most"
	if !f.reached {
		word, than = "MISSED", "must be at most"
	}
	text := fmt.Sprintf("%-7s  %s: %s is %.3g", word, f.work, f.what, f.got)
	if f.of != "" {
		text += " of " + f.of + "'s"
	}
	return fmt.Sprintf("%s, %s %.3g", text, than, f.most)
}

// verdict says which limits of a work a peer reaches.
func verdict(s *summary, peer string) (all []finding) {
	for _, l := range limits {
		if l.work != s.work.name || len(s.of(peer, ready99)) == 0 {
			continue
		}
		f := finding{limit: l, peer: peer}
		f.got, f.of = l.get(s, peer)
		// Where the other one did not run there is nothing to say.
		if f.of != "" && f.of != theMean && len(s.of(f.of, ready99)) == 0 {
			continue
		}
		f.reached = f.got <= l.most
		all = append(all, f)
	}
	return all
}
