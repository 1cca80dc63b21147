// This file holds the storages that the configs of this process name, and which of them is in use.

package cluster

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// share is a storage, and the policies of the configs that use it.
type share struct {
	raw     store.Storage
	st      store.Storage   // the same, which always answers, its errors counted
	records *store.Lister   // of it
	pools   []Policy        // the oldest first
	read    chan struct{}   // closed when it was read once, has not answered for too long, or nobody waits
	first   sync.Once       // closes read
	ctx     context.Context // of what looks at it before it is in use; ends with the last config that names it
	forget  context.CancelFunc
	stop    context.CancelFunc // ends its use; nil while it is in none

	writeMu sync.Mutex // held while a report is written: the last one is that of the end

	live      bool                     // a config with it has run: one that is only validated leaves no trace
	firstRead map[string]*record.Drain // as read before the storage was in use
	wrote     uint64                   // the last report that was written to it; 0 if none was
	missing   time.Duration            // since when it does not list that, on the table's clock; 0 if it does, or was not asked
	trusted   bool                     // all was read from it once, that among it: what was read of another storage says nothing of this one
}

// Attach makes the node tell of the upstreams of p, through the given storage: at once if a config with that runs, else as soon as one
// does. What it returns is closed when the drain records in that are read, or cannot be within 5 s.
func (n *Cluster) Attach(p Policy, st store.Storage) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastTTL = 0
	i := slices.IndexFunc(n.shares, func(sh *share) bool { return Same(sh.raw, st) })
	if i >= 0 {
		sh := n.shares[i]
		sh.pools = append(sh.pools, p)
		return sh.read
	}
	sh := n.share(st)
	sh.pools = []Policy{p}
	n.shares = append(n.shares, sh)
	time.AfterFunc(attachTimeout, func() {
		sh.first.Do(func() {
			n.warnUnread()
			close(sh.read)
		})
	})
	if n.follow(); n.used != sh {
		n.loops.start(func() { n.look(sh) })
		n.loops.start(func() { n.watch(sh) })
	}
	return sh.read
}

// warnUnread logs that a config begins without the drain records in its storage.
func (n *Cluster) warnUnread() {
	n.mu.Lock()
	knows := n.knows
	n.mu.Unlock()
	if knows {
		n.conf.Logger.Warn("the storage does not answer; the drains that this Caddy knew before the reload go on, but others may not be seen (mend the storage)")
		return
	}
	n.conf.Logger.Error("the storage does not answer; upstreams that are marked as draining in what could not be read get new sessions until it does (mend the storage)")
}

// share returns a storage as the node uses it. n.mu is locked.
func (n *Cluster) share(st store.Storage) *share {
	counting := store.Counting(store.Patient(st, n.isStrange), n.storageErrors.Add)
	records := store.NewLister(counting, record.NodeKey(n.name))
	if n.used != nil && reflect.TypeOf(n.used.raw) == reflect.TypeOf(st) {
		records.GoesLike(n.used.records) // a reload makes another one of the kind
	}
	sh := &share{raw: st, st: counting, records: records, read: make(chan struct{})}
	sh.ctx, sh.forget = context.WithCancel(n.loops.ctx)
	return sh
}

// isStrange says whether this node can do without the record at key: with a report of another one missing, nothing is called drained,
// and a drain record of an upstream that is in no pool here changes nothing here.
func (n *Cluster) isStrange(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	needed := key == record.NodeKey(n.name)
	for m := range n.members() {
		needed = needed || m.InPool && record.DrainKey(m.Upstream.Shared) == key
	}
	return !needed
}

// Same says whether two storages are one and the same value. A storage module may be made of anything, also of what cannot be compared.
func Same(a, b any) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(a).Comparable() && a == b
}

// Detach forgets p, and says whether it was the last one. The storage stays in use while there are sessions
// to tell of. What was never attached does no harm.
func (n *Cluster) Detach(p Policy) (last bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastTTL = max(n.lastTTL, n.sessionTTL()) // its sessions live on
	for _, sh := range n.shares {
		sh.pools = slices.DeleteFunc(sh.pools, func(other Policy) bool { return other == p })
	}
	n.follow()
	return !slices.ContainsFunc(n.shares, func(sh *share) bool { return len(sh.pools) > 0 })
}

// follow uses the storage of the config that runs, also if that has no policy: the storage of the one before
// may be closed. It forgets those that no config has. The config before may last for long, and one that is
// loading may fail. When Caddy ends, none runs, and all stays as it is. n.mu is locked.
func (n *Cluster) follow() {
	next, running := n.used, n.conf.Running()
	i := slices.IndexFunc(n.shares, func(sh *share) bool { return running != nil && Same(sh.raw, running) })
	switch {
	case i >= 0:
		next = n.shares[i]
		next.live = true
	case running != nil && next != nil && (next.live || len(next.pools) == 0 && n.sessions() > 0):
		next = n.share(running)
		next.live = true
		n.shares = append(n.shares, next)
	case next == nil || len(next.pools) == 0 && !next.live:
		if i := slices.IndexFunc(n.shares, func(sh *share) bool { return len(sh.pools) > 0 }); i >= 0 {
			next = n.shares[i]
		}
	}
	if next != n.used {
		n.use(next)
	}
	n.prune()
}

// prune forgets the storages that no config has, but for the one in use. n.mu is locked.
func (n *Cluster) prune() {
	n.shares = slices.DeleteFunc(n.shares, func(sh *share) bool {
		over := len(sh.pools) == 0 && sh != n.used
		if over {
			sh.forget()
			sh.first.Do(func() { close(sh.read) }) // of a config that has failed
		}
		return over
	})
}

// use begins to read and write a storage. n.mu is locked.
func (n *Cluster) use(sh *share) {
	if n.used != nil {
		n.used.halt()
	}
	ctx, cancel := context.WithCancel(n.loops.ctx)
	n.used, sh.stop = sh, cancel
	n.reported, n.parted, n.unheard = 0, false, 0 // nothing is there of this node yet
	n.asked = 0
	n.mergeRecords(sh, sh.firstRead, false, false, nil)
	n.loops.start(func() { n.keepUp(ctx, sh) })
	n.loops.start(func() { n.keepTime(ctx, sh) })
	n.loops.start(func() { n.raise(ctx) })
}

func (sh *share) halt() {
	if sh.stop != nil {
		sh.stop()
		sh.stop = nil
	}
}

// look reads the drain records in a storage that will be in use when its config runs.
func (n *Cluster) look(sh *share) {
	for !sh.wasRead() && sh.ctx.Err() == nil {
		records, err := n.loadDrainRecords(sh.ctx, sh)
		n.mu.Lock()
		sh.firstRead = records
		n.mu.Unlock()
		if err == nil {
			sh.first.Do(func() { close(sh.read) })
			return
		}
		rest(sh.ctx, loadInterval)
	}
}

// watch uses a storage as soon as its config runs.
func (n *Cluster) watch(sh *share) {
	for rest(sh.ctx, loadInterval) {
		n.mu.Lock()
		over := len(sh.pools) == 0
		if !over {
			n.follow()
			over = n.used == sh
		}
		n.mu.Unlock()
		if over {
			return
		}
	}
}

// wasRead says whether the drain records were read once, or cannot be.
func (sh *share) wasRead() bool {
	select {
	case <-sh.read:
		return true
	default:
		return false
	}
}

// activeShare returns the storage in use.
func (n *Cluster) activeShare() (*share, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.follow(); n.used == nil {
		return nil, api.ErrNoPolicy
	}
	return n.used, nil
}
