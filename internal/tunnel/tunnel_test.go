// This file tests that bytes pass through a tunnel as they came, and what its watcher hears.

package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// log is a watcher that keeps what it hears, a letter each, in the order in which it came; Heard only where nothing else came with it.
type log struct {
	t     *testing.T
	mu    sync.Mutex
	heard int
	told  strings.Builder
}

func (l *log) tell(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told.WriteString(what)
}

func (l *log) Heard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard++
}

func (l *log) Asked()    { l.tell("?") }
func (l *log) Answered() { l.tell("!") }
func (l *log) Refused()  { l.tell("R") }
func (l *log) Lost()     { l.tell("L") }

// wants checks all that a watcher has heard.
func (l *log) wants(want string) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := l.told.String(); got != want {
		l.t.Errorf("it has heard %q, want %q", got, want)
	}
}

// server is the connection to one: it says what it is told to, and keeps what it is told.
type server struct {
	io.Reader
	bytes.Buffer
	closed, halfClosed bool
}

func (s *server) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s *server) Write(p []byte) (int, error) { return s.Buffer.Write(p) }

func (s *server) Close() error {
	s.closed = true
	return nil
}

func (s *server) CloseWrite() error {
	s.halfClosed = true
	return nil
}

const (
	ack   = `{"msgid":"0","msgtype":"ACK"}`
	patch = `{"msgid":"1","msgtype":"PATCH-DOC"}`
	okay  = `{"msgid":"2","msgtype":"OK","reqid":"1"}`
)

// said returns messages of one side as they pass.
func said(masked bool, headers ...string) []byte {
	s := &talk{rnd: rand.New(rand.NewPCG(1, uint64(len(headers)))), masked: masked}
	for _, h := range headers {
		s.message(h)
	}
	return s.Bytes()
}

// What is asked and answered is heard in the order of what passes.
func TestWatcherHears(t *testing.T) {
	closes := frame(finBit|opClose, []byte{3, 0xE8}, nil)
	packed := func(masked bool) []byte {
		s := &talk{rnd: rand.New(rand.NewPCG(1, 1)), masked: masked}
		s.Write(frame(finBit|rsv1Bit|opText, []byte("packed"), s.mask()))
		return s.Bytes()
	}
	type step struct {
		client, server []byte
	}
	up := func(headers ...string) step { return step{client: said(true, headers...)} }
	down := func(headers ...string) step { return step{server: said(false, headers...)} }
	for name, tc := range map[string]struct {
		steps []step
		want  string
	}{
		"nothing":                         {nil, ""},
		"it is open":                      {[]step{down(ack)}, "!"},
		"a click":                         {[]step{down(ack), up(patch), down(okay)}, "!?!"},
		"two at once":                     {[]step{down(ack), up(patch, patch), down(okay), down(okay)}, "!??!!"},
		"before it is open":               {[]step{up(patch), down(ack), down(okay)}, "?!!"},
		"what the server says by itself":  {[]step{down(ack), down(patch, patch), up(patch), down(patch), down(okay)}, "!?!"},
		"half a click":                    {[]step{down(ack), {client: said(true, patch)[:50]}}, "!"},
		"an answer to nothing":            {[]step{down(ack), down(okay, okay), up(patch), down(okay)}, "!?!"},
		"what the client answers":         {[]step{down(ack), up(okay)}, "!"},
		"a ping of the server":            {[]step{{server: frame(finBit|0x9, nil, nil)}, down(ack)}, "!"},
		"it refuses":                      {[]step{{server: closes}}, "R"},
		"it closes later":                 {[]step{down(ack), {server: closes}}, "!"},
		"it is open, and closes":          {[]step{{server: append(said(false, ack), closes...)}}, "!"},
		"compressed":                      {[]step{{server: packed(false)}, {client: packed(true)}, {client: packed(true)}, {server: packed(false)}, {server: packed(false)}}, "!?!"},
		"compressed on one side":          {[]step{down(ack), {client: packed(true)}, down(patch), {client: packed(true)}, down(patch)}, "!?!?!"},
		"compressed, with a ping between": {[]step{{server: packed(false)}, {client: packed(true)}, {server: frame(finBit|0x9, nil, nil)}}, "!?"},
		"it was not, and is":              {[]step{down(ack), up(patch, patch), {server: packed(false)}}, "!??!!"},
		"no Bokeh":                        {[]step{down(ack), up(patch), {server: frame(finBit|opText, []byte("hello"), nil)}, down(okay), up(patch)}, "!?L"},
		"no websocket":                    {[]step{{client: []byte("GET / HTTP/1.1\r\n\r\n")}, down(ack), down(okay)}, "L"},
		"no websocket of the server":      {[]step{{server: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")}, {server: closes}, up(patch)}, "L"},
		"no websocket, and it closes":     {[]step{{client: []byte("GET / HTTP/1.1\r\n\r\n")}, {server: closes}}, "L"},
	} {
		t.Run(name, func(t *testing.T) {
			w, sv := &log{t: t}, new(server)
			c := New(sv, 0, w)
			var sent []byte
			heard := 0
			for _, s := range tc.steps {
				if s.client != nil {
					sent = append(sent, s.client...)
					_, _ = c.Write(s.client)
					continue
				}
				sv.Reader = bytes.NewReader(s.server)
				heard++
				if got, _ := io.ReadAll(io.LimitReader(c, int64(len(s.server)))); !bytes.Equal(got, s.server) {
					t.Error("what the server said has not come as it was said")
				}
			}
			w.wants(tc.want)
			if w.heard < heard {
				t.Errorf("the server was heard %d times, want %d", w.heard, heard)
			}
			if !bytes.Equal(sv.Bytes(), sent) {
				t.Error("what the client said has not come as it was said")
			}
		})
	}
}

// A server that ends without a word refuses, unless the client went first.
func TestSilentServer(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(c *Conn)
		err    error
		want   string
	}{
		"it ends":                       {func(*Conn) {}, io.EOF, "R"},
		"it breaks":                     {func(*Conn) {}, errors.New("reset"), ""},
		"the client has gone":           {func(c *Conn) { _ = c.Close() }, io.EOF, ""},
		"the client says no more":       {func(c *Conn) { _ = c.CloseWrite() }, io.EOF, ""},
		"it has said a ping":            {func(c *Conn) { c.passedFromServer(frame(finBit|0x9, nil, nil), nil) }, io.EOF, "R"},
		"it has said what nobody reads": {func(c *Conn) { c.passedFromServer([]byte("HTTP/1.1"), nil) }, io.EOF, "L"},
		"it has said that it's open":    {func(c *Conn) { c.passedFromServer(said(false, ack), nil) }, io.EOF, "!"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &log{t: t}
			c := New(&server{Reader: iotest.ErrReader(tc.err)}, 0, w)
			tc.before(c)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, tc.err) {
				t.Error(err)
			}
			w.wants(tc.want)
		})
	}
}

// plain hides all that a connection has but the methods that it is taken for.
type plain struct{ io.ReadWriteCloser }

func TestClose(t *testing.T) {
	sv := new(server)
	c := New(sv, 0, nil)
	if err := c.CloseWrite(); err != nil || !sv.halfClosed || sv.closed {
		t.Errorf("half closed: %v, closed: %v, %v", sv.halfClosed, sv.closed, err)
	}
	if err := c.Close(); err != nil || !sv.closed {
		t.Errorf("closed: %v, %v", sv.closed, err)
	}
	if err := New(plain{sv}, 0, nil).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// sizes is a reader and a writer that notes how much is read or written at once.
type sizes struct {
	io.Reader
	read    []int
	written bytes.Buffer
}

func (s *sizes) Read(p []byte) (int, error) {
	s.read = append(s.read, len(p))
	return s.Reader.Read(p)
}

func (s *sizes) Write(p []byte) (int, error) { return s.written.Write(p) }

// A buffer is small while little passes, and grows with what does; one whose size was given stays as it is.
func TestBuffers(t *testing.T) {
	chunks := func(lengths ...int) io.Reader {
		var all []io.Reader
		for _, n := range lengths {
			all = append(all, bytes.NewReader(make([]byte, n)))
		}
		return io.MultiReader(all...)
	}
	for name, tc := range map[string]struct {
		size int
		from io.Reader
		want []int // at once
	}{
		"little":         {0, chunks(10, 1023, 5), []int{smallSize, smallSize, smallSize, smallSize}},
		"much":           {0, chunks(1024, 40_000, 10, 7), []int{smallSize, largeSize, largeSize, smallSize, smallSize, smallSize}},
		"a document":     {0, chunks(4000), []int{smallSize, largeSize, smallSize}},
		"a stream":       {0, chunks(10_000, 10_000), []int{smallSize, largeSize, largeSize, largeSize}},
		"a size":         {500, chunks(10, 1000, 3), []int{500, 500, 500, 500, 500}},
		"a larger size":  {100_000, chunks(10, 100_000, 3), []int{100_000, 100_000, 100_000, 100_000}},
		"none whatever":  {0, chunks(), []int{smallSize}},
		"exactly enough": {0, chunks(1023), []int{smallSize, smallSize}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &sizes{Reader: tc.from}
			c := New(struct {
				io.Reader
				io.Writer
				io.Closer
			}{s, s, nil}, tc.size, nil)
			if n, err := c.WriteTo(io.Discard); err != nil {
				t.Error(n, err)
			}
			if len(s.read) != len(tc.want) {
				t.Fatalf("read %v, want %v", s.read, tc.want)
			}
			for i, n := range s.read {
				if n != tc.want[i] {
					t.Fatalf("read %v, want %v", s.read, tc.want)
				}
			}
		})
	}
}

// shortWriter writes less than it is told to and says nothing of it.
type shortWriter struct{}

func (shortWriter) Write(p []byte) (int, error) { return len(p) - 1, nil }

// Errors of both sides come out as they came, and how much has passed is said.
func TestErrorsPass(t *testing.T) {
	broken := errors.New("broken")
	c := New(&server{Reader: io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken))}, 0, &log{t: t})
	if n, err := c.WriteTo(io.Discard); n != 3 || !errors.Is(err, broken) {
		t.Error("reading: ", n, err)
	}
	c = New(&server{Reader: strings.NewReader("abc")}, 0, nil)
	if n, err := c.WriteTo(shortWriter{}); n != 2 || !errors.Is(err, io.ErrShortWrite) {
		t.Error("writing: ", n, err)
	}
	if n, err := New(plain{&brokenServer{}}, 0, nil).ReadFrom(strings.NewReader("abc")); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Error("writing to the server: ", n, err)
	}
}

type brokenServer struct{ server }

func (*brokenServer) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// FuzzTunnel passes any bytes both ways at once, which come out as they went in.
func FuzzTunnel(f *testing.F) {
	f.Add(said(true, patch, patch), said(false, ack, okay), uint8(3))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte{finBit | rsv1Bit | opText, 1, 0}, uint8(0))
	f.Fuzz(func(t *testing.T, client, fromServer []byte, how uint8) {
		wantUp, wantDown := bytes.Clone(client), bytes.Clone(fromServer)
		readers := []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader}
		in := readers[how%4]
		sv := &server{Reader: in(bytes.NewReader(fromServer))}
		c := New(sv, int(how/4), &log{t: t})
		var got bytes.Buffer
		var both sync.WaitGroup
		both.Go(func() {
			if n, err := io.CopyBuffer(&writerOnly{&got}, c, make([]byte, 1)); n != int64(len(wantDown)) || err != nil {
				t.Error(n, err)
			}
		})
		both.Go(func() {
			if n, err := io.CopyBuffer(c, &readerOnly{in(bytes.NewReader(client))}, make([]byte, 1)); n != int64(len(wantUp)) || err != nil {
				t.Error(n, err)
			}
			_ = c.CloseWrite()
		})
		both.Wait()
		if !bytes.Equal(got.Bytes(), wantDown) || !bytes.Equal(sv.Bytes(), wantUp) {
			t.Error("what came out is not what went in")
		}
	})
}

type writerOnly struct{ io.Writer }

type readerOnly struct{ io.Reader }

// What passes is looked at without a byte of memory for each message.
func TestNoAllocationForMessages(t *testing.T) {
	c := New(new(server), 0, silent{})
	up, down := said(true, patch), said(false, okay)
	if n := testing.AllocsPerRun(100, func() {
		c.passesToServer(up)
		c.passedFromServer(down, nil)
	}); n > 0 {
		t.Errorf("a click and its answer make %v allocations", n)
	}
}

// silent is a watcher that does nothing.
type silent struct{}

func (silent) Heard()    {}
func (silent) Asked()    {}
func (silent) Answered() {}
func (silent) Refused()  {}
func (silent) Lost()     {}

// BenchmarkClick is what it costs to look at a click and its answer.
func BenchmarkClick(b *testing.B) {
	c := New(new(server), 0, silent{})
	s := &talk{rnd: rand.New(rand.NewPCG(1, 1)), masked: true}
	for _, text := range []string{patch, "{}", strings.Repeat("x", 200)} {
		s.say(opText, []byte(text))
	}
	up, down := s.Bytes(), said(false, okay)
	b.ReportAllocs()
	for b.Loop() {
		c.passesToServer(up)
		c.passedFromServer(down, nil)
	}
}

// tcpPair returns both ends of a connection.
func tcpPair(b *testing.B) (here, there net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	here, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	there = <-accepted
	b.Cleanup(func() {
		here.Close()
		there.Close()
	})
	return here, there
}

// body hides from io.Copy what the connection of an upgraded response does not show either.
type body struct{ io.ReadWriteCloser }

// BenchmarkPassing passes what a server says, in messages of several sizes, to its client: through a tunnel, and as Caddy copies it without
// one.
func BenchmarkPassing(b *testing.B) {
	for _, size := range []int{100, 10_000, 1 << 20} {
		message := frame(finBit|opText, []byte(okay), nil)
		message = append(message, frame(finBit|opText, []byte("{}"), nil)...)
		message = append(message, frame(finBit|opText, make([]byte, size), nil)...)
		for name, pass := range map[string]func(to net.Conn, from net.Conn){
			"tunnel": func(to, from net.Conn) { _, _ = io.CopyBuffer(to, New(body{from}, 0, silent{}), make([]byte, 1)) },
			"copy":   func(to, from net.Conn) { _, _ = io.CopyBuffer(to, body{from}, make([]byte, 32<<10)) },
		} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				server, fromServer := tcpPair(b)
				toClient, client := tcpPair(b)
				go pass(toClient, fromServer)
				go func() {
					for range b.N {
						if _, err := server.Write(message); err != nil {
							return
						}
					}
				}()
				b.SetBytes(int64(len(message)))
				b.ResetTimer()
				if n, err := io.CopyN(io.Discard, client, int64(b.N)*int64(len(message))); err != nil {
					b.Fatal(n, err)
				}
			})
		}
	}
}
