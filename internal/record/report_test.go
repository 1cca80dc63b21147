// This file tests that reports are of a size that others read.

package record

import (
	"encoding/json"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/store"
)

// What a node writes, others read, whatever visitors make up. It leaves out what matters least, and says that it has.
func TestReportFits(t *testing.T) {
	r := &Report{Node: "a", Upstreams: make(map[string]Account)}
	for i := range 2 * 4096 { // twice what a policy remembers
		a := Account{InPool: true, Begun: int64(i), Keys: []string{strings.Repeat("f", 16)}}
		switch i % 1000 {
		case 500:
			a.Draining = true
		case 501:
			a.Sessions.Connected = 1
		}
		r.Upstreams[fmt.Sprintf("%d%s", i, strings.Repeat("<", 250))] = a
	}
	all := r.Upstreams
	r.Fit()
	value, err := json.Marshal(r)
	if err != nil || len(value) > maxReport || len(value) < maxReport-4000 || !r.Unsure {
		t.Errorf("it has %d bytes, unsure is %v: %v", len(value), r.Unsure, err)
	}
	for shared, a := range all {
		if _, there := r.Upstreams[shared]; !there && (a.Draining || a.Sessions.All() > 0) {
			t.Errorf("%.10s is left out", shared)
		}
	}
	if err := r.Check(); err != nil {
		t.Error("others refuse it: ", err)
	}
}

// A thousand upstreams with long names fit, of which all is told.
func TestThousandUpstreamsFit(t *testing.T) {
	r := &Report{Node: store.RandomName(), Host: "host", Heard: make(map[string]uint64), Upstreams: make(map[string]Account)}
	for i := range 1000 {
		r.Heard[store.RandomName()] = math.MaxUint64
		r.Upstreams[fmt.Sprintf("bokeh-%d.bokeh-headless.a-namespace-with-a-long-name.svc.cluster.local:5006", i)] = Account{
			InPool: true, Draining: true, Mark: store.RandomName() + "-closed", Sessions: api.Counts{Building: 1e6, Waiting: 1e6, Connected: 1e6, Unused: 1e6},
			Begun: 1e9, Ended: 1e6, Oldest: 1e7 / 3., Keys: []string{store.RandomName(), store.RandomName()}, Reopened: true,
		}
	}
	r.Fit()
	value, err := json.Marshal(r)
	if err != nil || r.Unsure || len(r.Upstreams) != 1000 || len(value) > maxReport/4 {
		t.Errorf("%d bytes tell of %d upstreams, unsure is %v: %v", len(value), len(r.Upstreams), r.Unsure, err)
	}
}

// A report of a version that named what nobody can dial is read without that.
func TestLongNamesOfOlderVersions(t *testing.T) {
	r := &Report{Node: "a", Upstreams: map[string]Account{strings.Repeat("x", 60_000) + ":80": {}, "u0:80": {Begun: 1}}}
	if err := r.Check(); err != nil || len(r.Upstreams) != 1 {
		t.Errorf("%d upstreams are left: %v", len(r.Upstreams), err)
	}
}

// What is taken for the memory of a record is what it takes, whatever it looks like.
func TestMemoryOfRecords(t *testing.T) {
	small, keys, heard, fleet := make(map[string]Account), make([]string, 100_000), make(map[string]uint64), make(map[string]Account)
	for i := range MaxAccounts {
		small[fmt.Sprintf("%x", i)] = Account{Begun: 1}
	}
	for i := range store.MaxRecords {
		heard[fmt.Sprintf("%x", i)] = 1
	}
	for i := range 1000 {
		fleet[fmt.Sprintf("bokeh-%d.bokeh-headless.a-namespace.svc.cluster.local:5006", i)] = Account{InPool: true, Keys: []string{store.RandomName()}, Mark: store.RandomName()}
	}
	for name, r := range map[string]*Report{
		"small accounts": {Node: "a", Upstreams: small},
		"empty keys":     {Node: "a", Upstreams: map[string]Account{"u0:80": {Keys: keys}}},
		"heard":          {Node: "a", Heard: heard},
		"a fleet":        {Node: "a", Upstreams: fleet},
	} {
		value, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		const copies = 20
		read := make([]*Report, copies)
		runtime.GC()
		runtime.GC() // pools let go of what they hold at the second one
		runtime.ReadMemStats(&before)
		for i := range read {
			read[i] = new(Report)
			if err := json.Unmarshal(value, read[i]); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		takes := int(after.HeapAlloc-before.HeapAlloc) / copies
		if told := read[0].Memory(); takes > 2*told || told > 4*takes {
			t.Errorf("%s: %d KiB of JSON take %d KiB of memory, and are taken for %d KiB", name, len(value)>>10, takes>>10, told>>10)
		}
		runtime.KeepAlive(read)
	}
}
