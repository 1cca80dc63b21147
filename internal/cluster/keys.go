// This file holds whether all nodes can verify the stamps of each other.

package cluster

import (
	"slices"

	"go.uber.org/zap"
)

// verifiable returns the fingerprints of the keys that can be verified here, by upstream.
func (n *state) verifiable() map[string][]string {
	prints := make(map[string][]string)
	for p := range n.policies() {
		own := p.StampKeys()
		if len(own) == 0 {
			continue
		}
		for _, m := range p.Pool() {
			prints[m.Upstream.Shared] = append(prints[m.Upstream.Shared], own...)
		}
	}
	return prints
}

// compareKeys looks at the keys of all other nodes.
func (n *state) compareKeys() {
	if len(n.peers) == 0 {
		return
	}
	verifiable := n.verifiable()
	for _, p := range n.peers {
		n.compareKeysOf(p, verifiable)
	}
}

// compareKeysOf logs when another node signs with a key that cannot be verified here: its sessions
// would not be found through this one. One that is gone signs nothing more.
func (n *state) compareKeysOf(p *peer, verifiable map[string][]string) {
	stray := ""
	for shared, a := range p.Upstreams {
		prints, ok := verifiable[shared]
		for _, print := range a.Keys {
			if ok && !slices.Contains(prints, print) {
				stray = shared
			}
		}
	}
	if stray != "" && !p.strayKey && p.signs() {
		n.conf.Logger.Error("another node signs its stamps with a key that this one does not have; each takes the other's sessions for strange ones"+
			" (give all the same secret_key, or the same storage)", zap.String("node", p.Node), zap.String("host", p.Host), zap.String("upstream", stray))
	}
	p.strayKey = stray != "" && (p.strayKey || p.signs())
}

// signs says whether p may still sign stamps: it is neither gone nor about to be.
func (p *peer) signs() bool { return p.Gone == 0 && !p.Left }

// KeysAgree says whether this node can verify the stamps of all others.
func (n *Cluster) KeysAgree() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		if p.strayKey && p.signs() {
			return false
		}
	}
	return true
}
