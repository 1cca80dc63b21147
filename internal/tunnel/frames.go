// This file holds how the frames of a websocket are read as they pass.

package tunnel

import "encoding/binary"

// Opcodes of frames (RFC 6455, section 5.2). Those from opClose on are of control frames.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPong         = 0xA
)

// Bits of the first two bytes of a frame.
const (
	finBit     = 0x80
	rsv1Bit    = 0x40 // with permessage-deflate: the message is compressed (RFC 7692, section 6)
	rsv2And3   = 0x30
	opcodeBits = 0x0f
	maskBit    = 0x80
	lengthBits = 0x7f
)

const (
	shortLength   = 125 // the longest payload whose length is in the second byte, and of a control frame
	length16      = 126 // says that 16 bits follow with the length
	maxHeaderSize = 14
)

// frames follows the frames of one direction. Its zero value is at the border between two frames.
type frames struct {
	header [maxHeaderSize]byte
	have   int    // bytes of the header that have come
	left   uint64 // bytes of the payload that have not
	offset uint64 // of the payload that has
	open   bool   // the header is whole, and its frame has not ended
	inside bool   // a message has begun whose last frame has not
}

// piece is what has come of a frame, in one piece.
type piece struct {
	opcode byte
	begins bool   // the frame
	ends   bool   // the frame
	last   bool   // frame of a message
	packed bool   // the message is compressed, as its first frame says
	mask   []byte // of the payload: 4 bytes, or none
	offset uint64 // where in the payload of the frame data begins
	data   []byte // as it passed; it is the caller's
}

// endsMessage says whether the message ends with the piece.
func (p *piece) endsMessage() bool { return p.ends && p.last }

// next takes the next piece off p and returns the rest. ok is false where that is no websocket; then nothing that follows can be read.
// Without a whole header there is no piece yet: it has neither begun nor ended.
func (f *frames) next(p []byte, masked bool) (is piece, rest []byte, ok bool) {
	begins := false
	if !f.open {
		if p, begins, ok = f.readHeader(p, masked); !ok || !begins {
			return piece{}, p, ok
		}
	}
	n := min(uint64(len(p)), f.left)
	b0 := f.header[0]
	is = piece{
		opcode: b0 & opcodeBits, begins: begins, last: b0&finBit != 0, packed: b0&rsv1Bit != 0,
		offset: f.offset, data: p[:n],
	}
	if masked {
		is.mask = f.header[f.have-4 : f.have]
	}
	f.left -= n
	f.offset += n
	if f.left == 0 {
		is.ends, f.open, f.have = true, false, 0
	}
	return is, p[n:], true
}

// readHeader reads what p has of a header, and returns the rest, and whether the header is whole now.
func (f *frames) readHeader(p []byte, masked bool) (rest []byte, whole, ok bool) {
	for f.have < f.headerSize() {
		if len(p) == 0 {
			return p, false, true
		}
		n := copy(f.header[f.have:f.headerSize()], p)
		f.have, p = f.have+n, p[n:]
	}
	f.left, f.offset, f.open = payloadLength(f.header[:]), 0, true
	return p, true, f.isSound(masked)
}

// headerSize returns how long the header is, as far as it can be told: the second byte says it.
func (f *frames) headerSize() int {
	size := 2
	if f.have < size {
		return size
	}
	b1 := f.header[1]
	switch length := b1 & lengthBits; {
	case length == length16:
		size += 2
	case length > length16:
		size += 8
	}
	if b1&maskBit != 0 {
		size += 4
	}
	return size
}

// payloadLength returns how long the payload is, by a whole header.
func payloadLength(header []byte) uint64 {
	switch length := header[1] & lengthBits; {
	case length < length16:
		return uint64(length)
	case length == length16:
		return uint64(binary.BigEndian.Uint16(header[2:]))
	}
	return binary.BigEndian.Uint64(header[2:])
}

// isSound says whether a frame may come now, and takes note of the message that begins or ends with it.
func (f *frames) isSound(masked bool) bool {
	b0, b1 := f.header[0], f.header[1]
	opcode, fin := b0&opcodeBits, b0&finBit != 0
	switch {
	case b0&rsv2And3 != 0, (b1&maskBit != 0) != masked, f.left>>63 != 0:
		return false
	case opcode >= opClose: // a control frame may come in the midst of a message
		return opcode <= opPong && fin && b0&rsv1Bit == 0 && f.left <= shortLength
	case opcode > opBinary:
		return false
	case opcode == opContinuation && (!f.inside || b0&rsv1Bit != 0), opcode != opContinuation && f.inside:
		return false
	}
	f.inside = !fin
	return true
}
