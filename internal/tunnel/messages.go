// This file holds how Bokeh's messages are read as they pass: where each ends, and whether it asks or answers.

package tunnel

import "sync"

// A message of Bokeh is several messages of the websocket (bokeh/protocol/message.py): a header, metadata and content, all text; then for
// each buffer its header, text, and the buffer itself, binary.
const (
	afterHeader = 2       // messages of the websocket that follow the header, without buffers
	perBuffer   = 2       // messages of the websocket
	maxBuffers  = 1 << 20 // that a message is believed to have
	maxHeader   = 512     // bytes; Bokeh's headers have about a hundred
)

// headers are where those that have not come whole are kept meanwhile.
var headers = sync.Pool{New: func() any { return new([maxHeader]byte) }}

// messages follows the messages of one direction. Its zero value is at the border between two of them, of a server.
type messages struct {
	frames
	masked bool // the direction is that of the client
	lost   bool // this is no websocket, or no Bokeh: nothing is looked at any more
	packed bool // a message was compressed, so what is header and what is content is unknown

	header *[maxHeader]byte // that has begun; nil between headers
	length int              // of what has come of it
	rest   int              // messages of the websocket until the next header
	asks   bool             // the message of Bokeh that is under way wants an answer
}

// tally is what was found in what has passed.
type tally struct {
	data    bool // a part of a message, however small
	closes  bool // a close frame
	asks    int  // messages that want an answer, and have come to their end; where they are compressed, any of the websocket's
	answers int  // messages that answer one, and have begun
}

// read looks at what passes. It changes nothing in p and keeps nothing of it but the beginning of a header.
func (m *messages) read(p []byte) (t tally) {
	for len(p) > 0 && !m.lost {
		is, rest, ok := m.next(p, m.masked)
		if !ok {
			m.lose()
			return t
		}
		p = rest
		if !m.open && !is.ends {
			return t // the frame's header is not whole
		}
		m.take(&is, &t)
	}
	return t
}

// take looks at a piece of a frame.
func (m *messages) take(is *piece, t *tally) {
	if is.opcode >= opClose {
		t.closes = t.closes || is.opcode == opClose
		return
	}
	t.data = true
	if m.packed = m.packed || is.packed; m.packed {
		m.drop()
		if is.endsMessage() {
			t.asks++
		}
		return
	}
	if is.begins && is.opcode != opContinuation && m.rest == 0 {
		if is.opcode != opText {
			m.lose()
			return
		}
		m.header, m.length = headers.Get().(*[maxHeader]byte), 0
	}
	switch {
	case m.header != nil:
		m.takeHeader(is, t)
	case is.endsMessage():
		if m.rest--; m.rest == 0 && m.asks {
			t.asks++
		}
	}
}

// takeHeader takes a piece of a header, and reads that when it is whole.
func (m *messages) takeHeader(is *piece, t *tally) {
	if len(is.data) > maxHeader-m.length {
		m.lose()
		return
	}
	text := m.header[m.length : m.length+len(is.data)]
	copy(text, is.data)
	if is.mask != nil {
		for i := range text {
			text[i] ^= is.mask[(is.offset+uint64(i))%4]
		}
	}
	m.length += len(text)
	if !is.endsMessage() {
		return
	}
	h, ok := readHeader(m.header[:m.length])
	m.drop()
	if !ok {
		m.lose()
		return
	}
	m.asks, m.rest = !h.answers, afterHeader+perBuffer*h.buffers
	if h.answers {
		t.answers++
	}
}

// lose gives up looking.
func (m *messages) lose() {
	m.lost = true
	m.drop()
}

// drop lets go of what has come of a header.
func (m *messages) drop() {
	if m.header != nil {
		headers.Put(m.header)
		m.header = nil
	}
}
