// This file tests which records a listing shows.

package store

import (
	"path"
	"slices"
	"strings"
	"testing"
)

func TestKeysIn(t *testing.T) {
	const id = "0123456789abcdef"
	want := NodesFolder + id + ".json"
	for listed, is := range map[string]bool{
		want: true, "/" + want: true, "acme/" + want: true, id + ".json": true, "nodes/" + id + ".json": true,

		"": false, "/": false, "caddy-bokeh/nodes/": false, "caddy-bokeh/nodes": false, ".json": false,
		want + ".lock": false, want + "/": false, NodesFolder + "3991498540": false, NodesFolder + "x.json": false,
		NodesFolder + "ABCDEF.json": false, Folder + "marks/" + id + ".json": false, NodesFolder + "old/" + id + ".json": false,
	} {
		keys := keysIn(NodesFolder, []string{listed})
		if is != slices.Equal(keys, []string{want}) || !is && len(keys) > 0 {
			t.Errorf("%q is %v", listed, keys)
		}
	}
}

// What a storage lists comes from outside: whatever it is, only records of the folder are asked for.
func FuzzKeysIn(f *testing.F) {
	for _, seed := range []string{"", "/", "caddy-bokeh/nodes/", NodesFolder + "0123456789abcdef.json", "../nodes/0123456789abcdef.json"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, listed string) {
		for _, key := range keysIn(NodesFolder, []string{listed}) {
			if path.Dir(key)+"/" != NodesFolder || path.Clean(key) != key || !strings.HasSuffix(listed, path.Base(key)) {
				t.Errorf("%q is asked for as %q", listed, key)
			}
		}
	})
}
