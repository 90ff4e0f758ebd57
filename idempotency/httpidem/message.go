package httpidem

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/samecommit/samecommit/idempotency"
)

// Types of the responses that are recorded.
const (
	// TypeMessage is an answer: a response message of RFC 9112.
	TypeMessage = "http"
	// TypeNoBody is an answer that was too large to be recorded: its message without the
	// body.
	TypeNoBody = "http:no-body"
)

// message is an answer as it is recorded.
type message struct {
	status int
	// header has canonical names, and values without a line end.
	header http.Header
	body   []byte
	// noBody says that there was one, which is not recorded.
	noBody bool
}

var errMessage = errors.New("httpidem: the recorded answer is not a response message as this version writes it: another version has, or another program has used the key")

// encode returns the response to record.
func (m *message) encode() *idempotency.Response {
	text := make([]byte, 0, usualHead+len(m.body))
	text = fmt.Appendf(text, "HTTP/1.1 %d %s\r\n", m.status, http.StatusText(m.status))
	for _, name := range slices.Sorted(maps.Keys(m.header)) {
		for _, value := range m.header[name] {
			text = append(append(append(append(text, name...), ": "...), value...), "\r\n"...)
		}
	}
	if m.noBody {
		return &idempotency.Response{Type: TypeNoBody, Body: append(text, "\r\n"...)}
	}
	text = fmt.Appendf(text, "Content-Length: %d\r\n\r\n", len(m.body))
	return &idempotency.Response{Type: TypeMessage, Body: append(text, m.body...)}
}

// usualHead is how many bytes a message has before its body, if it has few headers.
const usualHead = 256

// decode reads a recorded response.
func decode(response *idempotency.Response) (*message, error) {
	if response == nil || response.Type != TypeMessage && response.Type != TypeNoBody {
		return nil, errMessage
	}
	head, body, ok := bytes.Cut(response.Body, []byte("\r\n\r\n"))
	if !ok {
		return nil, errMessage
	}
	first, lines, more := strings.Cut(string(head), "\r\n")
	m := &message{header: make(http.Header), noBody: response.Type == TypeNoBody}
	code, _, _ := strings.Cut(strings.TrimPrefix(first, "HTTP/1.1 "), " ")
	status, err := strconv.Atoi(code)
	if err != nil || status < 200 || status > 999 || !strings.HasPrefix(first, "HTTP/1.1 ") {
		return nil, errMessage
	}
	m.status = status
	for more {
		var line string
		line, lines, more = strings.Cut(lines, "\r\n")
		name, value, ok := strings.Cut(line, ": ")
		if !ok || name == "" || strings.ContainsAny(line, "\r\n") {
			return nil, errMessage
		}
		m.header[name] = append(m.header[name], value)
	}
	if m.noBody {
		if len(body) > 0 {
			return nil, errMessage
		}
		return m, nil
	}
	if m.header.Get("Content-Length") != strconv.Itoa(len(body)) {
		return nil, errMessage
	}
	m.header.Del("Content-Length")
	m.body = body
	return m, nil
}

// recorded returns what of an answer is recorded, read back from what will be: what cannot
// be read must not be committed.
func recorded(m *message, limit int) (*idempotency.Response, error) {
	response := m.encode()
	if len(response.Body) > limit {
		m = &message{status: m.status, header: keptHeader(m.header, nil, []string{"Location"}), noBody: true}
		response = m.encode()
	}
	back, err := decode(response)
	if err != nil {
		return nil, err
	}
	if back.status != m.status || back.noBody != m.noBody || !bytes.Equal(back.body, m.body) || !sameHeader(back.header, m.header) {
		return nil, errMessage
	}
	return response, nil
}

func sameHeader(a, b http.Header) bool {
	return maps.EqualFunc(a, b, slices.Equal[[]string])
}

// recordedHeaders are those of an answer that are recorded, beside Config.Headers.
var recordedHeaders = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Location", "Content-Type",
	"Etag", "Last-Modified", "Link", "Location", "Retry-After", "Vary",
}

// keptHeader returns the values of the names, which are canonical, but for those that a
// middleware outside has set: on a replay it sets its own.
func keptHeader(header, outside http.Header, names []string) http.Header {
	kept := make(http.Header)
	for _, name := range names {
		if values := header[name]; len(values) > 0 && !slices.Equal(values, outside[name]) {
			kept[name] = values
		}
	}
	return kept
}

// cleaned returns the header with canonical names, as a client reads them, and each value in
// one line, as net/http writes it in HTTP/1.1 alone: a line end would be another header.
func cleaned(header http.Header) http.Header {
	if isClean(header) {
		return header
	}
	clean := make(http.Header, len(header))
	for _, name := range slices.Sorted(maps.Keys(header)) {
		canonical := http.CanonicalHeaderKey(name)
		if header[name] == nil { // net/http is not to add it
			clean[canonical] = nil
		}
		for _, value := range header[name] {
			clean[canonical] = append(clean[canonical], oneLine(value))
		}
	}
	return clean
}

// isClean reports whether there is nothing to clean, as in nearly every header.
func isClean(header http.Header) bool {
	for name, values := range header {
		if http.CanonicalHeaderKey(name) != name {
			return false
		}
		for _, value := range values {
			if oneLine(value) != value {
				return false
			}
		}
	}
	return true
}

var lineEnds = strings.NewReplacer("\r", " ", "\n", " ")

func oneLine(value string) string { return strings.TrimSpace(lineEnds.Replace(value)) }
