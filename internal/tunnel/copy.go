// This file holds how bytes are copied through a tunnel, in buffers that are small while little passes.

package tunnel

import (
	"cmp"
	"io"
	"sync"
)

const (
	// smallSize is the buffer of each direction of a tunnel through which little passes, as of most sessions most of the time.
	smallSize = 1 << 10

	// largeSize is the buffer of one that has filled the small one: what io.Copy takes.
	largeSize = 32 << 10

	// largeUse is how much has to come at once for the large buffer to be kept. After less the next read waits with the small one, as a
	// session does that has just got its document; at the latest that is so after a ping of Bokeh's, which come every 37 s.
	largeUse = largeSize / 4
)

// large are the buffers of largeSize that no tunnel uses at present.
var large = sync.Pool{New: func() any { return new([largeSize]byte) }}

// WriteTo implements io.WriterTo: it copies what the server says to w until the server ends or one of them fails.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return c.pass(w, c) }

// ReadFrom implements io.ReaderFrom: it copies what r says to the server until r ends or one of them fails.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) { return c.pass(c, r) }

// pass copies from one side to the other as io.Copy does, which would ask both for how they copy.
func (c *Conn) pass(to io.Writer, from io.Reader) (passed int64, err error) {
	b := buffer{size: c.size}
	defer b.release()
	for {
		p := b.next()
		n, errRead := from.Read(p)
		if n > 0 {
			written, err := to.Write(p[:n])
			passed += int64(max(written, 0))
			if err != nil {
				return passed, err
			}
			if written != n {
				return passed, io.ErrShortWrite
			}
		}
		switch {
		case errRead == io.EOF:
			return passed, nil
		case errRead != nil:
			return passed, errRead
		}
		b.read(n)
	}
}

// buffer is the buffer of one direction.
type buffer struct {
	size  int // that it always has; 0 where it grows with what passes
	small []byte
	large *[largeSize]byte // nil while the small one is enough
}

// next returns where the next bytes are to be read.
func (b *buffer) next() []byte {
	switch {
	case b.large != nil:
		return b.large[:]
	case b.small == nil:
		b.small = make([]byte, cmp.Or(b.size, smallSize))
	}
	return b.small
}

// read takes note of how much was read at once.
func (b *buffer) read(n int) {
	switch {
	case b.size != 0:
	case b.large != nil && n < largeUse:
		b.release()
	case b.large == nil && n == smallSize:
		b.large = large.Get().(*[largeSize]byte)
	}
}

// release gives the large buffer back.
func (b *buffer) release() {
	if b.large != nil {
		large.Put(b.large)
		b.large = nil
	}
}
