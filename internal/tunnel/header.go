// This file holds what is read of the header of one of Bokeh's messages.

package tunnel

// header is what the header of a message of Bokeh says, as far as it is looked at: {"msgid":"…","msgtype":"…"}, with "reqid" where it
// answers another one, and "num_buffers" where it has some.
type header struct {
	answers bool
	buffers int
}

// readHeader reads a header, and says whether it is one. It allocates nothing, and takes whatever order and white space JSON allows, but no
// object or list within.
func readHeader(text []byte) (h header, ok bool) {
	s, isMessage := scanner(text), false
	if !s.takes('{') {
		return header{}, false
	}
	for {
		key, isKey := s.text()
		if !isKey || !s.takes(':') {
			return header{}, false
		}
		value, isText, isValue := s.value()
		if !isValue {
			return header{}, false
		}
		switch string(key) { // which allocates nothing
		case "msgtype":
			isMessage = isText
		case "reqid":
			h.answers = isText
		case "num_buffers":
			if h.buffers, ok = count(value); isText || !ok {
				return header{}, false
			}
		}
		if !s.takes(',') {
			return h, isMessage && s.takes('}') && s.isAtEnd()
		}
	}
}

// count returns a number of buffers.
func count(digits []byte) (n int, ok bool) {
	for _, c := range digits {
		if c < '0' || c > '9' || n > maxBuffers {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, n <= maxBuffers
}

// scanner is the rest of a JSON text.
type scanner []byte

// takes says whether a character is the next one but for white space, and goes past it if so.
func (s *scanner) takes(c byte) bool {
	s.skipSpace()
	if len(*s) == 0 || (*s)[0] != c {
		return false
	}
	*s = (*s)[1:]
	return true
}

// isAtEnd says whether there is nothing more but white space.
func (s *scanner) isAtEnd() bool {
	s.skipSpace()
	return len(*s) == 0
}

func (s *scanner) skipSpace() {
	for len(*s) > 0 && isSpace((*s)[0]) {
		*s = (*s)[1:]
	}
}

// text takes a string off, and returns what is between its quotes, as it is written.
func (s *scanner) text() (inside []byte, ok bool) {
	if !s.takes('"') {
		return nil, false
	}
	for i := 0; i < len(*s); i++ {
		switch c := (*s)[i]; {
		case c == '"':
			inside, *s = (*s)[:i], (*s)[i+1:]
			return inside, true
		case c == '\\':
			i++
		case c < ' ':
			return nil, false
		}
	}
	return nil, false
}

// value takes a string, a number, true, false or null off.
func (s *scanner) value() (value []byte, isText, ok bool) {
	s.skipSpace()
	if len(*s) > 0 && (*s)[0] == '"' {
		value, ok = s.text()
		return value, true, ok
	}
	n := 0
	for n < len(*s) && isLiteral((*s)[n]) {
		n++
	}
	value, *s = (*s)[:n], (*s)[n:]
	return value, false, n > 0
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// isLiteral says whether a character may be of a number or of a word.
func isLiteral(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '-' || c == '+' || c == '.' || c == 'E'
}
