// This file holds content and its compressed forms.

package contentcache

import (
	"bytes"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// The encodings that content is compressed to, as HTTP names them.
const (
	Zstd = "zstd"
	Gzip = "gzip"
)

// Encodings are all of them, the best one first.
var Encodings = []string{Zstd, Gzip}

// worthwhile is how small compressed content has to be, in parts of what it was.
const worthwhile = 0.9

// content is data and what has been made of it.
type content struct {
	cache *Cache
	data  []byte
	forms map[string]*form // by encoding

	refs int   // how many entries have it; guarded by cache.mu
	size int64 // of data and forms; guarded by cache.mu
}

// form is content in an encoding.
type form struct {
	once sync.Once
	data []byte // nil if compressing is of no use
}

func newContent(c *Cache, data []byte) *content {
	return &content{cache: c, data: data, size: int64(len(data)), forms: map[string]*form{Zstd: {}, Gzip: {}}}
}

// Bytes returns the content as it is. It must not be changed.
func (b *content) Bytes() []byte { return b.data }

// Encoded returns the content in one of the Encodings, or nil where that is hardly smaller. It is compressed when it
// is first asked for, while others that ask wait.
func (b *content) Encoded(encoding string) []byte {
	f := b.forms[encoding]
	f.once.Do(func() {
		data := compress(encoding, b.data)
		if float64(len(data)) > worthwhile*float64(len(b.data)) {
			return
		}
		f.data = bytes.Clone(data) // what it has grown into is larger
		b.grow(int64(len(data)))
	})
	return f.data
}

// grow counts what has been made of the content, as long as that is kept.
func (b *content) grow(n int64) {
	b.cache.mu.Lock()
	defer b.cache.mu.Unlock()
	b.size += n
	if b.refs > 0 {
		b.cache.used += n
		b.cache.evict()
	}
}

func compress(encoding string, data []byte) []byte {
	if encoding == Zstd {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow))
		if err != nil {
			panic(err) // the options are right
		}
		defer w.Close()
		return w.EncodeAll(data, nil)
	}
	var to bytes.Buffer
	w := gzip.NewWriter(&to)
	_, _ = w.Write(data) // memory takes it all
	_ = w.Close()
	return to.Bytes()
}

// maxWindow is the largest that browsers must accept (RFC 9659).
const maxWindow = 8 << 20
