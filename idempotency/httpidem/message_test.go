package httpidem

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
)

// What is recorded is read back as it was, and no header appears that was not there.
func FuzzRecordedAnswer(f *testing.F) {
	f.Add(200, "Location", "/a", "body")
	f.Add(404, "Link", "a\r\nSet-Cookie: b", "\r\n\r\nHTTP/1.1 200 OK\r\n")
	f.Add(299, "X-Own", "Content-Length: 5", "")
	f.Add(999, "Etag", " \x00\xff ", "é")
	f.Fuzz(func(t *testing.T, status int, name, value, body string) {
		if status < 200 || status > 999 || !isToken(name) || http.CanonicalHeaderKey(name) == "Content-Length" {
			return
		}
		name = http.CanonicalHeaderKey(name)
		given := http.Header{name: {value, value}, "X-Not-Kept": {value}}
		kept := keptHeader(cleaned(given), nil, []string{name})
		response, err := recorded(&message{status: status, header: kept, body: []byte(body)}, 1<<20)
		if err != nil {
			t.Fatalf("it is refused: %v", err)
		}
		back, err := decode(response)
		if err != nil || back.status != status || string(back.body) != body || !sameHeader(back.header, kept) {
			t.Fatalf("%+v, %v; want %d %q %q", back, err, status, kept, body)
		}
	})
}

// Whatever is stored is an answer or an error.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 201 \r\nA: b\r\nA: c\r\nContent-Length: 1\r\n\r\nx"))
	f.Fuzz(func(t *testing.T, stored []byte) {
		m, err := decode(&idempotency.Response{Type: TypeMessage, Body: stored})
		if err != nil {
			return
		}
		again, err := decode(m.encode())
		if err != nil || again.status != m.status || !bytes.Equal(again.body, m.body) || !sameHeader(again.header, m.header) {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", stored, m, again, err)
		}
	})
}
