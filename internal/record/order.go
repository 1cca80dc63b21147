// This file holds which of two drain records of an upstream is the newer one, on which all nodes agree.

package record

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// Newer says whether d was said after another record of the upstream, so that every node finds the same
// one to be the last, in whatever order and storage it meets them. (A hybrid logical clock: Kulkarni et
// al., "Logical Physical Clocks", 2014.)
func (d *Drain) Newer(than *Drain) bool {
	return cmp.Or(
		cmp.Compare(d.Said, than.Said),
		cmp.Compare(strings.TrimSuffix(d.ID, closedSuffix), strings.TrimSuffix(than.ID, closedSuffix)),
		cmp.Compare(len(d.ID), len(than.ID)), // closed comes after what it was before
	) > 0
}

// comeAfter makes d newer than a drain record of the same upstream, by whatever clock that was said.
//
// No time is too late to be taken for one. What is plausible depends on a clock, so two nodes, or one at two times, would not agree
// on which record is the newer one, and versions before this one ask no clock. What comes after the last time of all is told by its id.
func (d *Drain) comeAfter(before *Drain) {
	switch {
	case before.Said < d.Said:
	case before.Said < math.MaxInt64:
		d.Said = before.Said + 1
	default:
		d.Said, d.ID = before.Said, laterID(before.ID)
	}
}

// closedSuffix is what the id of a drain record gets when its time is up.
const closedSuffix = "-closed"

// withdrawnSuffix is what the id of a drain record gets when it is taken back because it cannot stand. It comes right after that record, so
// whatever else is said of the upstream comes later.
const withdrawnSuffix = "-withdrawn"

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
