// This file tests what is kept, and that it stays below the limit.

package contentcache

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// check compares the counts of the cache with what it holds.
func (c *Cache) check(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var used int64
	refs := map[*content]int{}
	for k, at := range c.entries {
		e := at.Value.(*entry)
		used += e.cost
		refs[e.file.content]++
		if e.key != k || c.contents[k.sum] != e.file.content || !c.sites[k.site] {
			t.Fatal("an entry is not where it belongs")
		}
	}
	for _, body := range c.contents {
		used += body.size
		if body.refs == 0 || refs[body] != body.refs {
			t.Fatalf("content is counted %d times, and there %d times", body.refs, refs[body])
		}
	}
	if used != c.used || c.used > c.limit || c.recent.Len() != len(c.entries) {
		t.Fatalf("%d bytes are kept, %d counted, %d allowed", used, c.used, c.limit)
	}
}

// file is content of a size, and its sum.
func file(n int, seed string) ([]byte, Sum) {
	data := []byte(strings.Repeat(seed, n/len(seed)))
	return data, sha512.Sum512(data)
}

func (s *Site) keep(t *testing.T, url string, data []byte) *File {
	t.Helper()
	f, turn := s.Join(t.Context(), url, sha512.Sum512(data))
	if f != nil {
		return f
	}
	defer turn.End()
	if !turn.Reserve(0, int64(len(data))) {
		turn.GiveUp()
		return nil
	}
	return turn.Keep(data, nil)
}

func TestSitesShareBytesAndNotAddresses(t *testing.T) {
	var c Cache
	one, two := c.Open(1<<20), c.Open(1<<20)
	data, sum := file(10_000, "alert(1)")
	a := one.keep(t, "/a.js", data)
	if two.Get("/a.js", sum) != nil || one.Get("/b.js", sum) != nil {
		t.Error("a file is found where nobody has served it")
	}
	used := c.Used()
	b := two.keep(t, "/a.js", bytes.Clone(data))
	if a.content != b.content || c.Used() > used+2*entryCost {
		t.Error("the same bytes are kept twice")
	}
	one.Close()
	if one.Get("/a.js", sum) != nil || two.Get("/a.js", sum) == nil {
		t.Error("a site that is closed has taken a file along, or left one")
	}
	c.check(t)
	two.Close()
	if c.Used() != 0 {
		t.Error("something is left of no site:", c.Used())
	}
}

func TestLargestSizeCounts(t *testing.T) {
	var c Cache
	small, large := c.Open(1<<20), c.Open(2<<20)
	for i := range 30 {
		data, _ := file(100_000, fmt.Sprintf("%05d", i))
		small.keep(t, "/f.js", data)
	}
	if c.Used() <= 1<<20 {
		t.Error("the smaller size counts:", c.Used())
	}
	large.Close()
	c.check(t)
	if c.Used() > 1<<20 {
		t.Error("a site that is closed still counts:", c.Used())
	}
}

func TestEncodings(t *testing.T) {
	var c Cache
	s := c.Open(1 << 20)
	data, _ := file(100_000, "let x = 1;")
	f := s.keep(t, "/f.js", data)
	before := c.Used()
	var wg sync.WaitGroup
	for range 10 {
		for _, e := range Encodings {
			wg.Go(func() {
				if got := decode(t, e, f.Encoded(e)); !bytes.Equal(got, data) {
					t.Error(e, "is not what was kept")
				}
			})
		}
	}
	wg.Wait()
	if got, want := c.Used()-before, int64(len(f.Encoded(Zstd))+len(f.Encoded(Gzip))); got != want {
		t.Errorf("compressed forms count %d, want %d", got, want)
	}
	noise := make([]byte, 10_000)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	if s.keep(t, "/f.png", noise).Encoded(Gzip) != nil {
		t.Error("what does not get smaller is kept compressed")
	}
	c.check(t)
}

func decode(t *testing.T, encoding string, data []byte) []byte {
	var r io.Reader
	var err error
	if encoding == Gzip {
		r, err = gzip.NewReader(bytes.NewReader(data))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(data))
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return got
}

// Whatever sites do, in whatever order, the counts are right and the limit holds.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var c Cache
		open := []*Site{c.Open(1 << 17)}
		for range 300 {
			s := open[rnd.IntN(len(open))]
			data, sum := file(1+rnd.IntN(20_000), fmt.Sprint(rnd.IntN(20)))
			url := fmt.Sprint("/", rnd.IntN(10))
			switch rnd.IntN(10) {
			case 0:
				open = append(open, c.Open(int64(rnd.IntN(1<<18))))
			case 1:
				if len(open) > 1 {
					open[0].Close()
					open = open[1:]
				}
			case 2:
				if f := s.Get(url, sum); f != nil {
					f.Encoded(Encodings[rnd.IntN(2)])
				}
			default:
				if f := s.keep(t, url, data); f != nil && rnd.IntN(4) == 0 {
					f.Encoded(Gzip)
				}
			}
			c.check(t)
		}
		c.mu.Lock()
		if c.fetching != 0 || len(c.flights) != 0 {
			t.Fatalf("%d bytes are held and %d files fetched by nobody", c.fetching, len(c.flights))
		}
		c.mu.Unlock()
	}
}

func TestRoomForFetching(t *testing.T) {
	var c Cache
	s := c.Open(8 << 20)
	turn := func(url string) *Turn {
		_, turn := s.Join(t.Context(), url, Sum{})
		return turn
	}
	a, b, d := turn("/a"), turn("/b"), turn("/d")
	if a.Reserve(0, 1<<20+1) || !a.Reserve(0, 1<<20) || a.Reserve(1<<20, 1) {
		t.Error("a file may take other than an eighth")
	}
	if !b.Reserve(0, 1<<20) || d.Reserve(0, 1) {
		t.Error("what is fetched may take other than a quarter")
	}
	a.End()
	if !d.Reserve(0, 1<<20) {
		t.Error("room is not given back")
	}
	d.Release(1 << 20)
	if !d.Reserve(0, 1<<20) {
		t.Error("what is not needed is not given back")
	}
	b.End()
	d.End()
	c.check(t)
}

// Who reads slowly what is not the file takes no room from what is being fetched, and has not all the memory there is.
func TestRoomForHandingOn(t *testing.T) {
	var c Cache
	s := c.Open(8 << 20)
	turn := func(url string) *Turn {
		_, turn := s.Join(t.Context(), url, Sum{})
		return turn
	}
	slow, second, third := turn("/a"), turn("/b"), turn("/c")
	if !slow.Reserve(0, 1<<20) || !second.Reserve(0, 1<<20) || third.Reserve(0, 1) {
		t.Error("what is fetched may take other than a quarter")
	}
	if !slow.HandOn() || second.HandOn() {
		t.Error("what is handed on may take other than an eighth")
	}
	if !third.Reserve(0, 1<<20) {
		t.Error("a slow reader holds the room for fetching")
	}
	slow.End()
	if !second.HandOn() {
		t.Error("room is not given back")
	}
	second.End()
	third.End()
	if c.fetching != 0 || c.handedOn != 0 {
		t.Errorf("%d and %d bytes are held by nobody", c.fetching, c.handedOn)
	}
}

func TestHeaderCounts(t *testing.T) {
	var c Cache
	s := c.Open(1 << 20)
	data, sum := file(1000, "x")
	_, turn := s.Join(context.Background(), "/f", sum)
	turn.Keep(data, http.Header{"X-Long": {strings.Repeat("x", 5000)}})
	turn.End()
	if c.Used() < 6000 {
		t.Error("a header takes no memory:", c.Used())
	}
}
