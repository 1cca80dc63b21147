// This file holds the loop of a node: it reads what the others wrote, merges that, judges, reports, and deletes what is over.

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/record"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
	"github.com/caddy-bokeh/caddy-bokeh/internal/verdict"
)

// keepUp reads what the others say and reports, until ctx ends.
func (n *Cluster) keepUp(ctx context.Context, sh *share) {
	for {
		if n.exchange(ctx, sh) {
			sh.first.Do(func() { close(sh.read) })
		}
		if n.retire(ctx, sh) {
			return
		}
		if !rest(ctx, n.pause(sh)) {
			return
		}
	}
}

// keepTime does what the clock alone brings, until ctx ends: a storage that hangs holds up nothing
// else.
func (n *Cluster) keepTime(ctx context.Context, sh *share) {
	due := n.conf.Table.Now() + n.pause(sh)
	for rest(ctx, n.untilJudged(due)) {
		n.mu.Lock()
		isDue := n.conf.Table.Now() >= due
		if isDue && ctx.Err() == nil { // what has been halted does not begin anew
			n.follow()
		}
		if ctx.Err() == nil {
			now := n.conf.Table.Now()
			if isDue {
				n.closeDue(now)
				n.noticeHang(sh, now)
			}
			n.judgeAll(now)
			n.notify()
		}
		n.mu.Unlock()
		if isDue {
			due = n.conf.Table.Now() + n.pause(sh)
		}
	}
}

// untilJudged returns how long nothing is judged now, where all else is due at a time.
func (n *Cluster) untilJudged(due time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	left := due - n.conf.Table.Now()
	for _, v := range n.verdicts {
		if !v.Drained {
			return min(left, judgeInterval)
		}
	}
	return left
}

// pause returns how long the node rests now.
func (n *Cluster) pause(sh *share) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !sh.live || !sh.wasRead():
		return loadInterval
	case n.listed == 0 && sh.wrote != 0 && sh.missing == 0:
		return loadInterval // its report is written, and was not looked for yet
	}
	return nodeInterval
}

// exchange reads the drain records and what the other nodes report, and then reports in turn: so whoever
// finds its own report heard in another one knows that the other one was made later. It says whether
// all drain records were read.
func (n *Cluster) exchange(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	if ctx.Err() == nil { // what has been halted does not begin anew
		n.follow()
	}
	f := findings{said: n.said, began: n.conf.Table.Now()}
	if ctx.Err() != nil {
		n.mu.Unlock()
		return false // another storage is in use
	}
	n.asked, n.askedTo = f.began, "load"
	n.mu.Unlock()
	f.records, f.errRecords = n.loadDrainRecords(ctx, sh)
	f.reports, f.errReports = store.LoadAll[record.Report](ctx, sh.records, store.NodesFolder)

	n.mu.Lock()
	if ctx.Err() != nil {
		n.mu.Unlock()
		return false
	}
	todo, err := n.merge(sh, f)
	n.askedTo = "store"
	n.mu.Unlock()

	n.finish(ctx, f.began, errors.Join(err, n.do(ctx, sh, todo)))
	return f.errRecords == nil
}

// findings are what a look at the storage has shown.
type findings struct {
	said  int           // what operators had said here before it
	began time.Duration // the look

	records    map[string]*record.Drain
	errRecords error
	reports    map[string]*record.Report
	errReports error
}

// duties are what is to be written after that.
type duties struct {
	report    *record.Report   // of this node; nil if none is due
	lacking   []*record.Drain  // that the storage has lost, or never had
	dead      []*record.Report // of nodes that did not say themselves that they are gone
	forgotten []string         // keys of what is over
}

// merge makes what was found hold here, judges, and returns what is to be written, and why not all could be read.
func (n *state) merge(sh *share, f findings) (todo duties, err error) {
	now := n.conf.Table.Now()
	n.closeDue(now)
	accounts := sync.OnceValue(func() map[string]record.Account { return n.accounts(now) })
	err = errors.Join(f.errRecords, f.errReports, n.crowd(f.reports))
	n.knows = n.knows || f.errRecords == nil
	if err == nil {
		n.round = f.began
	}
	// What a listing lacks is missing only if it shows what is certainly there.
	all := n.findOwn(sh, f.reports, f.errReports, f.began)
	sh.trusted = sh.trusted || all && err == nil
	n.reached = n.reached || len(f.records)+len(f.reports) > 0
	if !all && err == nil && sh.missing != 0 && now-sh.missing > verdict.StaleTimeout {
		n.storageErrors.Add("list")
		err = errUnlisted
	}
	read := f.errRecords == nil && f.said == n.said
	todo.lacking = n.mergeRecords(sh, f.records, read, read && all, accounts)
	n.updatePeers(sh, f.reports, all && f.errReports == nil, now)
	n.bound(f.records, f.reports, now, accounts)
	n.judgeAll(now)
	n.witness = n.round != 0
	accounts = sync.OnceValue(func() map[string]record.Account { return n.accounts(now) }) // once more: the drain records have changed
	todo.report = n.dueReport(sh, now, accounts)
	todo.forgotten, todo.dead = n.forget(now, all && err == nil && f.said == n.said, accounts)
	if !sh.live || f.said != n.said {
		todo.lacking, todo.forgotten, todo.dead = nil, nil, nil
	}
	return todo, err
}

// do writes and deletes what is to be.
func (n *Cluster) do(ctx context.Context, sh *share, todo duties) (err error) {
	if todo.report != nil {
		err = n.write(ctx, sh, todo.report)
	}
	return errors.Join(err,
		briefly(ctx, todo.lacking, func(ctx context.Context, m *record.Drain) error { return record.Restore(ctx, sh.st, m) }),
		briefly(ctx, todo.dead, func(ctx context.Context, last *record.Report) error {
			return store.Put(ctx, sh.st, record.NodeKey(last.Node), last)
		}),
		briefly(ctx, todo.forgotten, func(ctx context.Context, key string) error { return store.Delete(ctx, sh.st, key) }))
}

// briefly calls f, which uses the storage, with some things, and begins with none of them when that has taken as long as one call may. The
// next exchange finds what is left, in another order.
func briefly[T any](ctx context.Context, all []T, f func(context.Context, T) error) error {
	ctx, began := store.OneLook(ctx), time.Now()
	errs := make([]error, len(all))
	store.Severally(len(all), func(i int) {
		if time.Since(began) < store.CallTimeout {
			errs[i] = f(ctx, all[i])
		}
	})
	return store.Few(errs)
}

// errUnlisted is that of a storage in which nodes cannot find each other.
var errUnlisted = errors.New("what this Caddy has reported is not among what the storage lists, so others may be missing there too" +
	" (caddy bokeh storage-check says what it can do)")

// findOwn says whether this node's own report is among those that were read since a time, as it was written last. If it
// is not, it is written once more, and the storage is asked in other ways. One that was written before a reload does not count: it
// may be old, for nothing may be writable since.
func (n *state) findOwn(sh *share, reports map[string]*record.Report, err error, began time.Duration) bool {
	own := reports[record.NodeKey(n.name)]
	switch {
	case own != nil && sh.wrote == 0:
		return false
	case own != nil && own.Seq >= sh.wrote:
		n.listed, sh.missing = began, 0
		return true
	case errors.Is(err, store.ErrUnanswered):
		return false // that may be why
	case sh.wrote != 0 && sh.missing == 0:
		sh.missing, n.reported = began, 0
	}
	sh.records.Forget()
	return false
}

// write writes a report, unless ctx has ended: then the process may have said already that it is gone.
func (n *Cluster) write(ctx context.Context, sh *share, r *record.Report) error {
	sh.writeMu.Lock()
	defer sh.writeMu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	r.Fit()
	began := n.conf.Table.Now()
	err := store.Put(ctx, sh.st, record.NodeKey(n.name), r)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parted = r.Left && err == nil
	if err == nil {
		sh.wrote = r.Seq
	}
	switch {
	case n.used != sh: // another storage is in use since
	case err != nil:
		n.unheard = cmp.Or(n.unheard, began)
		n.reported = 0 // it is due, until others can read of this node
	default:
		n.unheard, n.reached = 0, true
	}
	return err
}

// finish takes note of how an exchange has ended that was begun at a time, and wakes who waits.
func (n *Cluster) finish(ctx context.Context, began time.Duration, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	n.asked = 0
	if err == nil && n.conf.Table.Now()-began > verdict.StaleTimeout {
		err = errHangs // what was read is too old to be of use
	}
	n.noteFailure(err)
	n.notify()
}

// noticeHang takes note of a storage that has not answered for long.
func (n *state) noticeHang(sh *share, now time.Duration) {
	if !sh.live || n.asked == 0 || now-n.asked <= verdict.StaleTimeout {
		return
	}
	n.storageErrors.Add(n.askedTo)
	n.noteFailure(errHangs)
}

// errHangs is that of a storage that does not answer.
var errHangs = fmt.Errorf("the storage has not answered for more than %v", verdict.StaleTimeout)

// noteFailure logs when the storage begins to fail and when it is well again.
func (n *state) noteFailure(err error) {
	switch {
	case err != nil && n.failure != nil && !n.failing:
		// Once may be a file that was replaced while we listed.
		n.failing = true
		n.conf.Logger.Error("the storage fails; traffic goes on as before, but marks made elsewhere may not be seen and no upstream is called drained (mend the storage)",
			zap.Error(err))
	case err == nil && n.failing:
		n.failing = false
		n.conf.Logger.Info("the storage is well again")
	}
	n.failure = err
}

// retire ends the exchange when there is nothing left to tell of, and says whether it did.
func (n *Cluster) retire(ctx context.Context, sh *share) bool {
	n.mu.Lock()
	idle := ctx.Err() == nil && len(sh.pools) == 0 && n.sessions() == 0
	if idle {
		sh.halt()
		// All is read again when there is something to tell of.
		n.used, n.knows, n.round, n.listed, n.witness, n.reached, n.asked = nil, false, 0, 0, false, false, 0
		n.prune()
		clear(n.peers)
		for shared := range n.drains {
			n.forgetDrain(shared)
		}
		n.follow() // a config with another storage may be loading
	}
	n.mu.Unlock()
	if idle {
		n.leave(sh)
	}
	return idle
}

// dueReport returns the report to be written now, or nil. While something drains the others wait for
// it, and while the process ends.
func (n *state) dueReport(sh *share, now time.Duration, accounts func() map[string]record.Account) *record.Report {
	if !sh.live || n.reported != 0 && now-n.reported < reportInterval && !n.somethingDrains() && !n.conf.Exiting() {
		return nil
	}
	n.seq++
	n.known, n.reported = true, now
	return n.makeReport(now, accounts())
}

// somethingDrains says whether an upstream is draining, here or elsewhere.
func (n *state) somethingDrains() bool {
	if len(n.verdicts) > 0 {
		return true
	}
	for _, p := range n.peers {
		for _, a := range p.Upstreams {
			if a.Draining && p.Gone == 0 {
				return true
			}
		}
	}
	return false
}
