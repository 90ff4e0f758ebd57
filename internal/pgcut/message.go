package pgcut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
)

// Message is one message that a side sent.
type Message struct {
	From Direction
	// Number counts the direction's messages from 1.
	Number int
	// Conn counts the connections from 1.
	Conn int
	// Starting says that Cutter.Started was not yet called for the connection.
	Starting bool
	// Type is the protocol's letter; 0 for the first message of a connection.
	Type byte
	// Statement is the text that the message makes the server run, if it does.
	Statement string
	// Commit says that the message makes the server commit, or, from the
	// server, that it says so: the tag COMMIT.
	Commit bool
}

// String returns, for example, "F12 E commit".
func (m Message) String() string {
	kind := m.Type
	if kind == 0 {
		kind = '-'
	}
	text := fmt.Sprintf("%c%d %c", m.From, m.Number, kind)
	if m.Commit {
		text += " commit"
	}
	return text
}

var errNotProtocol = errors.New("pgcut: not a message of PostgreSQL's protocol: the connection must be neither encrypted nor asked to be")

// stream cuts a direction's bytes into messages.
type stream struct {
	buffer []byte
	// untyped says that the next message has no type: it opens a connection.
	untyped bool
}

// next returns the bytes of the next whole message, nil while it is incomplete.
func (s *stream) next() ([]byte, error) {
	header := 5
	if s.untyped {
		header = 4
	}
	if len(s.buffer) < header {
		return nil, nil
	}
	length := int(binary.BigEndian.Uint32(s.buffer[header-4:])) + header - 4
	if length < header || length > 1<<30 {
		return nil, errNotProtocol
	}
	if len(s.buffer) < length {
		return nil, nil
	}
	raw := s.buffer[:length:length]
	s.buffer = s.buffer[length:]
	s.untyped = false
	return raw, nil
}

// What the first message of a connection may be, beside a start.
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
)

func startCode(raw []byte) uint32 {
	if len(raw) < 8 {
		return 0
	}
	return binary.BigEndian.Uint32(raw[4:])
}

// commitPattern finds a COMMIT at the start of a statement, also behind comments.
// Elsewhere the word may be a name or a value.
var commitPattern = regexp.MustCompile(`(?is)(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*commit\b`)

// statement is a text, and whether it makes the server commit.
type statement struct {
	text   string
	commit bool
}

func parse(text []byte) statement { return statement{string(text), commitPattern.Match(text)} }

// statements knows the prepared statements of a connection.
type statements struct {
	prepared map[string]statement
	bound    statement
}

// run returns what the frontend's message makes the server run. A statement that
// was prepared earlier is sent without its text.
func (s *statements) run(raw []byte) statement {
	fields := bytes.SplitN(raw[5:], []byte{0}, 3)
	switch kind := raw[0]; {
	case kind == 'Q':
		return parse(fields[0])
	case kind == 'P' && len(fields) > 1: // name, text
		if s.prepared == nil {
			s.prepared = make(map[string]statement)
		}
		s.prepared[string(fields[0])] = parse(fields[1])
	case kind == 'B' && len(fields) > 1: // portal, name
		s.bound = s.prepared[string(fields[1])]
	case kind == 'E':
		return s.bound
	}
	return statement{}
}
