// This file tests the reading of frames: whole, in pieces, and what is none.

package tunnel

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
)

// frame returns a frame as it passes.
func frame(b0 byte, payload []byte, mask []byte) []byte {
	b := []byte{b0, 0}
	switch n := len(payload); {
	case n <= shortLength:
		b[1] = byte(n)
	case n < 1<<16:
		b[1] = length16
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = length16 + 1
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if mask == nil {
		return append(b, payload...)
	}
	b[1] |= maskBit
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

// talk writes what one side says.
type talk struct {
	bytes.Buffer
	rnd    *rand.Rand
	masked bool
	wild   bool // it is fragmented, and pings come in between
}

func (t *talk) mask() []byte {
	if !t.masked {
		return nil
	}
	return binary.BigEndian.AppendUint32(nil, t.rnd.Uint32())
}

// ping may say something in between.
func (t *talk) ping() {
	if t.wild && t.rnd.IntN(3) == 0 {
		t.Write(frame(finBit|[]byte{0x9, opPong}[t.rnd.IntN(2)], make([]byte, t.rnd.IntN(shortLength+1)), t.mask()))
	}
}

// say says one message of the websocket.
func (t *talk) say(opcode byte, payload []byte) {
	for opcode := opcode; ; opcode = opContinuation {
		t.ping()
		n := len(payload)
		if t.wild {
			n = t.rnd.IntN(n + 1)
		}
		if n == len(payload) {
			t.Write(frame(finBit|opcode, payload, t.mask()))
			return
		}
		t.Write(frame(opcode, payload[:n], t.mask()))
		payload = payload[n:]
	}
}

// message says one of Bokeh's.
func (t *talk) message(header string, buffers ...[]byte) {
	t.say(opText, []byte(header))
	t.say(opText, []byte("{}"))
	t.say(opText, bytes.Repeat([]byte("x"), []int{0, 2, 300, 70_000}[t.rnd.IntN(4)]))
	for _, b := range buffers {
		t.say(opText, []byte(`{"id":"p1"}`))
		t.say(opBinary, b)
	}
}

// inPieces reads what was said in pieces of random sizes.
func inPieces(m *messages, said []byte, rnd *rand.Rand, most int) (sum tally) {
	for len(said) > 0 {
		n := min(1+rnd.IntN(most), len(said))
		t := m.read(said[:n])
		said = said[n:]
		sum.data, sum.closes, sum.asks, sum.answers = sum.data || t.data, sum.closes || t.closes, sum.asks+t.asks, sum.answers+t.answers
	}
	return sum
}

// However messages are put into frames, masked, mixed with pings and cut into pieces, each is counted when it has ended.
func TestMessagesAreCounted(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		said := &talk{rnd: rnd, masked: seed%2 > 0, wild: seed%3 > 0}
		var want tally
		for range rnd.IntN(8) {
			buffers := make([][]byte, rnd.IntN(3))
			for i := range buffers {
				buffers[i] = make([]byte, rnd.IntN(100_000))
			}
			header := `{"msgid":"1f","msgtype":"PATCH-DOC"`
			if rnd.IntN(2) > 0 {
				header = `{"reqid":"2a", "msgid" : "1f","msgtype":"OK"`
				want.answers++
			} else {
				want.asks++
			}
			if n := len(buffers); n > 0 || rnd.IntN(2) > 0 {
				header += `,"num_buffers":` + string('0'+rune(n))
			}
			said.message(header+"}", buffers...)
			want.data = true
		}
		said.ping()
		m := &messages{masked: said.masked}
		got := inPieces(m, said.Bytes(), rnd, []int{1, 7, 1000, 1 << 20}[seed%4])
		if got != want || m.lost || m.header != nil || m.have != 0 {
			t.Errorf("seed %d: %+v, want %+v; lost %v", seed, got, want, m.lost)
		}
	}
}

// What is no websocket, or not Bokeh's, is not looked at from where that shows.
func TestWhatIsLost(t *testing.T) {
	text := func(s string) []byte { return frame(finBit|opText, []byte(s), nil) }
	header := text(`{"msgid":"1","msgtype":"OK"}`)
	long := text(`{"msgtype":"OK","msgid":"` + strings.Repeat("x", maxHeader) + `"}`)
	huge := []byte{finBit | opText, length16 + 1, 0x80, 0, 0, 0, 0, 0, 0, 0}
	for name, tc := range map[string]struct {
		said []byte
		lost bool
	}{
		"nothing":                        {nil, false},
		"a header":                       {header, false},
		"half a frame":                   {header[:1], false},
		"HTTP":                           {[]byte("HTTP/1.1 200 OK\r\n\r\n"), true},
		"a masked frame of a server":     {frame(finBit|opText, []byte("{}"), []byte("mask")), true},
		"a reserved bit":                 {[]byte{finBit | 0x20 | opText, 0}, true},
		"a reserved opcode":              {[]byte{finBit | 0x3, 0}, true},
		"a reserved control frame":       {[]byte{finBit | 0xB, 0}, true},
		"a control frame in parts":       {[]byte{0x9, 0}, true},
		"a compressed control frame":     {[]byte{finBit | rsv1Bit | 0x9, 0}, true},
		"a long control frame":           {frame(finBit|0x9, make([]byte, shortLength+1), nil), true},
		"a continuation of nothing":      {[]byte{finBit | opContinuation, 0}, true},
		"a message within a message":     {[]byte{opText, 0, finBit | opText, 0}, true},
		"a compressed continuation":      {[]byte{opText, 0, finBit | rsv1Bit | opContinuation, 0}, true},
		"a length with the highest bit":  {huge, true},
		"a binary header":                {frame(finBit|opBinary, []byte("{}"), nil), true},
		"a header that is no JSON":       {text("hello"), true},
		"a header of no message":         {text("{}"), true},
		"a header that is too long":      {long, true},
		"a header that is long in parts": {append(frame(opText, make([]byte, maxHeader), nil), frame(finBit|opContinuation, []byte("x"), nil)...), true},
		"no header after a message":      {append(bytes.Repeat(header, 3), text("hello")...), true},
		"anything within a message":      {append(bytes.Clone(header), append(text("hello"), frame(finBit|opBinary, []byte{0}, nil)...)...), false},
		"a close frame":                  {frame(finBit|opClose, []byte{3, 0xE9}, nil), false},
		"a compressed message":           {[]byte{finBit | rsv1Bit | opText, 1, 0}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := new(messages)
			m.read(tc.said)
			if m.lost != tc.lost {
				t.Errorf("lost is %v, want %v", m.lost, tc.lost)
			}
			if m.lost && m.header != nil {
				t.Error("a header is kept")
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	for text, want := range map[string]struct {
		header
		ok bool
	}{
		`{"msgid":"1","msgtype":"ACK"}`:                       {header{}, true},
		` { "msgtype" : "OK" , "reqid" : "1" } `:              {header{answers: true}, true},
		`{"msgtype":"PATCH-DOC","num_buffers":12}`:            {header{buffers: 12}, true},
		`{"msgtype":"OK","reqid":null,"x":-1.5e+3,"y":true}`:  {header{}, true},
		`{"msgtype":"OK","x\"\\":"\"}{,"}`:                    {header{}, true},
		`{"msgtype":"OK","num_buffers":1048576}`:              {header{buffers: maxBuffers}, true},
		`{"msgtype":"OK","num_buffers":1048577}`:              {},
		`{"msgtype":"OK","num_buffers":99999999999999999999}`: {},
		`{"msgtype":"OK","num_buffers":-1}`:                   {},
		`{"msgtype":"OK","num_buffers":"1"}`:                  {},
		`{"msgtype":"OK","num_buffers":1.5}`:                  {},
		`{"msgtype":7}`:                                       {},
		`{"msgid":"1"}`:                                       {},
		`{}`:                                                  {},
		`[]`:                                                  {},
		``:                                                    {},
		`{"msgtype":"OK"`:                                     {},
		`{"msgtype":"OK",}`:                                   {},
		`{"msgtype":"OK"}x`:                                   {},
		`{"msgtype":"OK" "a":"b"}`:                            {},
		`{"msgtype" "OK"}`:                                    {},
		`{"msgtype":}`:                                        {},
		`{"msgtype":"OK`:                                      {},
		`{"msgtype":"OK\`:                                     {},
		"{\"msgtype\":\"O\nK\"}":                              {},
		`{msgtype:"OK"}`:                                      {},
		`{"msgtype":"OK","a":{}}`:                             {},
		`{"msgtype":"OK","a":[1]}`:                            {},
	} {
		h, ok := readHeader([]byte(text))
		if ok != want.ok || ok && h != want.header {
			t.Errorf("%s: %+v, %v; want %+v, %v", text, h, ok, want.header, want.ok)
		}
	}
}

// FuzzMessages reads any bytes at once and in pieces, and finds the same.
func FuzzMessages(f *testing.F) {
	for seed, masked := range []bool{false, true} {
		said := &talk{rnd: rand.New(rand.NewPCG(uint64(seed), 1)), masked: masked, wild: true}
		for _, text := range []string{`{"msgid":"1","msgtype":"OK","reqid":"0","num_buffers":1}`, "{}", "{}", "{}", "buffer", `{"msgtype":"PATCH-DOC"}`, "{}", "{}"} {
			said.say(opText, []byte(text))
		}
		f.Add(said.Bytes(), masked, uint64(seed))
	}
	f.Add([]byte{finBit | rsv1Bit | opText, 1, 0}, false, uint64(3))
	f.Fuzz(func(t *testing.T, said []byte, masked bool, seed uint64) {
		before := bytes.Clone(said)
		whole, pieces := &messages{masked: masked}, &messages{masked: masked}
		want := whole.read(said)
		got := inPieces(pieces, said, rand.New(rand.NewPCG(seed, seed)), 1+int(seed%9))
		if got != want || whole.lost != pieces.lost || whole.packed != pieces.packed || whole.rest != pieces.rest {
			t.Errorf("at once %+v %+v, in pieces %+v %+v", want, whole, got, pieces)
		}
		if !bytes.Equal(said, before) {
			t.Error("what passes was changed")
		}
	})
}
