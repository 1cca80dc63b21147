// This file holds how large records in the storage may be, and what is made of values in them that no Caddy writes.

package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// What is read of a storage is bounded in number and in bytes: it may hold what somebody else has written, or what was
// left behind. A node that is passed over may have sessions, so nothing is called drained then.
const (
	maxReport   = 2 << 20 // bytes; an upstream takes 300 of them, so there is room for some 7,000
	maxAccounts = 8192    // upstreams in a report
	maxMark     = 512 << 10

	// maxShared is how long the name of an upstream between nodes may be, in bytes. An address has 320 at most, and its name may be
	// longer: what is no text takes more room in lower case.
	maxShared = 4 * 320

	MaxReason = 1000    // bytes of what an operator gives as a reason. Those of versions that took longer ones are cut.
	maxName   = 256     // bytes of a name or an id in a record
	maxCount  = 1 << 40 // of anything, so that no sum of counts overflows
)

// MaxLifetime bounds all times that sessions and drains last, so that no sum of two of them overflows.
const MaxLifetime = 8760 * time.Hour

// Size is how many bytes a stored record may have. Older versions took reasons of 64 KiB, of each byte of which JSON may make six.
func (*drainRecord) Size() int { return maxMark }

// Check brings what m says within what can be meant, and returns an error if nothing can.
func (m *drainRecord) Check() error {
	switch {
	case !isID(m.ID):
		return errors.New("malformed id")
	case len(m.Upstream) > maxShared:
		return fmt.Errorf("the name of its upstream has %d bytes", len(m.Upstream))
	case printable.Text(m.Upstream) != m.Upstream:
		return errors.New("the name of its upstream would steer a terminal")
	case len(m.Clock) > maxName:
		return fmt.Errorf("the name of its clock has %d bytes", len(m.Clock))
	}
	if m.State != stateReady && m.State != stateClosed {
		m.State = stateDraining
	}
	m.By, m.Reason = printable.Cut(m.By, MaxReason), printable.Cut(m.Reason, MaxReason)
	m.Left, m.Span = min(max(m.Left, 0), MaxLifetime), min(max(m.Span, 0), MaxLifetime)
	m.Since, m.Written = plausible(m.Since), plausible(m.Written)
	return nil
}

// plausible returns a time of another clock, or the zero time if nobody's shows that: some cannot be written as JSON, and the
// answers of the admin API with them.
func plausible(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return time.Time{}
	}
	return t
}

// comeAfter makes m newer than a drain record of the same upstream, by whatever clock that was said.
//
// No time is too late to be taken for one. What is plausible depends on a clock, so two nodes, or one at two times, would not agree
// on which record is the newer one, and versions before this one ask no clock. What comes after the last time of all is told by its id.
func (m *drainRecord) comeAfter(before *drainRecord) {
	switch {
	case before.Said < m.Said:
	case before.Said < math.MaxInt64:
		m.Said = before.Said + 1
	default:
		m.Said, m.ID = before.Said, laterID(before.ID)
	}
}

// isID says whether a drain record may have an id, so that another one can come after it.
func isID(id string) bool {
	id = baseID(id)
	return id != "" && max(len(id), len(laterID(id)))+len(withdrawnSuffix)+len(closedSuffix) <= maxName
}

// baseID returns an id without what says what has become of its record.
func baseID(id string) string {
	return strings.TrimSuffix(strings.TrimSuffix(id, closedSuffix), withdrawnSuffix)
}

// laterID returns a new id that is greater than another one, by the order of strings. It does not grow from one to the next, for
// it counts.
func laterID(id string) string {
	id = baseID(id)
	count := uint64(0)
	i := len(id) - len("~") - 16
	counted := i >= 0 && id[i] == '~'
	if counted {
		last, err := strconv.ParseUint(id[i+1:i+9], 16, 32)
		counted, count = err == nil && last < math.MaxUint32, last+1
	}
	if !counted {
		count = 0
		i = strings.IndexFunc(id, func(r rune) bool { return r < '~' })
		if i < 0 {
			i = len(id)
		}
	}
	return fmt.Sprintf("%s~%08x%s", id[:i], count, store.RandomName()[:8])
}

// Size is how many bytes a stored report may have.
func (*report) Size() int { return maxReport }

// Check returns an error if no Caddy writes such a report.
func (r *report) Check() error {
	switch {
	case r.Node == "" || max(len(r.Node), len(r.Host), len(r.Process.Boot), len(r.Process.Namespace), len(r.Process.Started)) > maxName:
		return errors.New("malformed name of a node, a host or a process")
	case r.Settles < 0 || r.Settles > 2*MaxLifetime:
		return fmt.Errorf("its sessions settle in %v", r.Settles)
	case len(r.Upstreams) > maxAccounts || len(r.Heard) > store.MaxRecords:
		return fmt.Errorf("it tells of %d upstreams and %d nodes", len(r.Upstreams), len(r.Heard))
	}
	for shared, a := range r.Upstreams {
		if len(shared) > maxShared { // versions before this one named what nobody can dial, too
			delete(r.Upstreams, shared)
			continue
		}
		if err := a.check(); err != nil {
			return fmt.Errorf("upstream %q: %w", printable.Cut(shared, maxName), err)
		}
		a.Oldest = min(max(a.Oldest, 0), maxCount)
		r.Upstreams[shared] = a
	}
	return nil
}

// check returns an error if no Caddy tells that of an upstream.
func (a account) check() error {
	for _, count := range []int64{a.Sessions.Building, a.Sessions.Waiting, a.Sessions.Connected, a.Sessions.Unused, a.Begun, a.Ended} {
		if count < 0 || count > maxCount {
			return fmt.Errorf("it has had %d sessions", count)
		}
	}
	if len(a.Mark) > maxName || slices.ContainsFunc(a.Keys, func(print string) bool { return len(print) > maxName }) {
		return errors.New("malformed id of a mark or a key")
	}
	return nil
}

// fit leaves out of r what makes it longer than others read, first that which matters least: where the address of an upstream depends
// on the request, visitors may have made many up. The others take r for unsure then, and call nothing drained that it does not tell of.
func (r *report) fit() {
	if r.atMost() <= maxReport && len(r.Upstreams) <= maxAccounts {
		return
	}
	value, _ := json.Marshal(r)
	size := len(value) + len(`"unsure":true,`) + len(",")
	r.Upstreams = maps.Clone(r.Upstreams)
	for _, shared := range r.leastFirst() {
		if size <= maxReport && len(r.Upstreams) <= maxAccounts {
			return
		}
		one, _ := json.Marshal(map[string]account{shared: r.Upstreams[shared]})
		size -= len(one) - len("{}") + len(",")
		delete(r.Upstreams, shared)
		r.Unsure = true
	}
}

// atMost is how many bytes r has at most as JSON, which may make six of one.
func (r *report) atMost() int {
	size := 4<<10 + 64*len(r.Heard)
	for shared, a := range r.Upstreams {
		size += 512 + 6*(len(shared)+len(a.Mark)) + 24*len(a.Keys)
	}
	return size
}

// leastFirst returns the upstreams of r, first those that it has no session at, last those that drain: of these first the ones that
// are in no pool of its, which somebody may have made up.
func (r *report) leastFirst() []string {
	matters := func(shared string) int {
		a := r.Upstreams[shared]
		return rank(a.Draining, a.Draining && a.wanted() || a.Sessions.All() > 0)
	}
	return slices.SortedFunc(maps.Keys(r.Upstreams), func(a, b string) int {
		return cmp.Or(cmp.Compare(matters(a), matters(b)), -cmp.Compare(a, b))
	})
}
