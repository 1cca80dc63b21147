// This file holds the drains that a config asks for, and whether nobody is left who takes new sessions.

package caddybokeh

// drain drains the upstreams at the given addresses for as long as the config lasts.
func (ms *members) drain(addrs []string) {
	for _, addr := range addrs {
		u := ms.l.Hold(upstreamName(addr))
		u.Drain.AddConfigs(1)
		ms.drained = append(ms.drained, u)
	}
}

// allDrain says whether the upstreams that are healthy are all draining.
func (cs *candidates) allDrain() bool {
	found := false
	for i := range cs.all {
		switch c := &cs.all[i]; {
		case !cs.isHealthy(c):
		case !c.Drain.On():
			return false
		default:
			found = true
		}
	}
	return found
}
