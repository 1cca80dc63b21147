// This file holds how the records in a folder are found, whatever habit a storage has of listing them.

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// Lister finds records. Storages do not agree on what a listing is: object stores want a slash at the end of the
// prefix, or show the folder itself without it; some know recursive listings alone; some ignore the prefix; the
// names may be full, relative, or those in the bucket, which cannot be loaded. So the last part of a name counts,
// and the ways of asking are tried until one shows the record that is certainly there: this node's own report.
type Lister struct {
	st  Storage
	own string                       // the key of this node's report
	way atomic.Pointer[wayOfListing] // that showed it; nil until one has
}

// wayOfListing is how a storage is asked what there is in a folder.
type wayOfListing struct {
	slash     bool // whether the prefix ends in one
	recursive bool
}

// waysOfListing are tried in this order. The first one is right for most, and the cheapest.
var waysOfListing = []wayOfListing{{}, {slash: true}, {recursive: true}, {slash: true, recursive: true}}

// NewLister returns what finds records in a storage, one of which has a key and is certainly there.
func NewLister(st Storage, own string) *Lister { return &Lister{st: st, own: own} }

// GoesLike takes over the way of another one, whose storage is of the same kind.
func (l *Lister) GoesLike(other *Lister) { l.way.Store(other.way.Load()) }

// KnowsWay says whether a way has shown the record that is certainly there.
func (l *Lister) KnowsWay() bool { return l.way.Load() != nil }

// keys returns the keys of the records in a folder. Until it is known which way of asking is right for this storage,
// they are what all ways show together.
func (l *Lister) keys(ctx context.Context, folder string) ([]string, error) {
	if way := l.way.Load(); way != nil {
		return way.list(ctx, l.st, folder)
	}
	var found []string
	var failed []error
	for _, way := range waysOfListing {
		keys, err := way.list(ctx, l.st, folder)
		if slices.Contains(keys, l.own) {
			l.way.Store(&way)
			return keys, err
		}
		found = append(found, keys...)
		if errors.Is(err, ErrUnanswered) {
			return found, err // it would answer in no other way
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if len(failed) == len(waysOfListing) {
		return found, failed[0]
	}
	return found, nil // a storage may refuse what it has no use for
}

// Forget lets all ways be tried again.
func (l *Lister) Forget() { l.way.Store(nil) }

// list asks a storage in this way.
func (w wayOfListing) list(ctx context.Context, st Storage, folder string) ([]string, error) {
	prefix := strings.TrimSuffix(folder, "/")
	if w.slash {
		prefix = folder
	}
	listed, err := st.List(ctx, prefix, w.recursive)
	keys := keysIn(folder, listed)
	if err == nil || errors.Is(err, fs.ErrNotExist) && len(listed) == 0 {
		return keys, nil // or nothing was ever stored
	}
	return keys, fmt.Errorf("listing %s: %w", folder, err) // the file storage fails so if it meets a file that is gone a moment later
}

// String says how the storage is asked, for people.
func (w wayOfListing) String() string {
	s := "without a slash"
	if w.slash {
		s = "with a slash"
	}
	if w.recursive {
		s += ", recursively"
	}
	return s
}

// RecordName is that of a record. A listing may show much else: folders, locks, the temporary files of writers.
var RecordName = regexp.MustCompile(`^[0-9a-f]{1,64}\.json$`)

// keysIn returns the keys of the records in a folder, among what a storage has listed.
func keysIn(folder string, listed []string) (keys []string) {
	for _, name := range listed {
		dir, base := path.Split(name)
		if RecordName.MatchString(base) && (dir == "" || path.Base(dir) == path.Base(folder)) {
			keys = append(keys, folder+base)
		}
	}
	return keys
}
