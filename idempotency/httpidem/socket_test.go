package httpidem_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// conn is a connection to an api on which a test writes what no client would.
type conn struct {
	*api
	net.Conn
	reader *bufio.Reader
}

func (a *api) dial() *conn {
	a.Helper()
	var dialer net.Dialer
	c, err := dialer.DialContext(a.Context(), "tcp", a.server.Listener.Addr().String())
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		a.Fatal(err)
	}
	return &conn{a, c, bufio.NewReader(c)}
}

func (c *conn) send(lines ...string) {
	c.Helper()
	if _, err := io.WriteString(c.Conn, strings.Join(lines, "\r\n")); err != nil {
		c.Fatal(err)
	}
}

// read reads an answer, 100 Continue too.
func (c *conn) read() *reply {
	c.Helper()
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		c.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		c.Fatal(err)
	}
	return &reply{response, string(text)}
}

func TestBodyThatIsCutShort(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, answerWith(201))
	for name, lines := range map[string][]string{
		"of a known length": {"Content-Length: 10", "", "four"},
		"in chunks":         {"Transfer-Encoding: chunked", "", "a", "four"},
	} {
		c := a.dial()
		c.send(append([]string{"POST /charges HTTP/1.1", "Host: x", "Idempotency-Key: k"}, lines...)...)
		if tcp, ok := c.Conn.(*net.TCPConn); !ok || tcp.CloseWrite() != nil {
			t.Fatal("cannot end what is sent")
		}
		got := c.read()
		if got.StatusCode != http.StatusBadRequest || got.kind() != httpidem.KindBodyUnreadable {
			t.Errorf("%s: %d %s", name, got.StatusCode, got.text)
		}
	}
	a.want(0, 0)
}

func TestBodyThatDoesNotCome(t *testing.T) {
	t.Parallel()
	a := &api{T: t}
	o := options{}.filled()
	keys, err := httpidem.New(options{}.newClient(t), &o.config)
	if err != nil {
		t.Fatal(err)
	}
	a.serve(o, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// As a server's ReadTimeout does.
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Error(err)
		}
		keys(answerWith(201)).ServeHTTP(w, r)
	}))
	c := a.dial()
	c.send("POST /charges HTTP/1.1", "Host: x", "Idempotency-Key: k", "Content-Length: 10", "", "four")
	a.wantProblem(c.read(), http.StatusRequestTimeout, httpidem.KindBodyTimeout)
}

// Whoever asks first whether to send the body is refused before that.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, answerWith(201))
	c := a.dial()
	c.send("POST /charges HTTP/1.1", "Host: x", "Expect: 100-continue", "Content-Length: 4", "", "")
	a.wantProblem(c.read(), http.StatusBadRequest, httpidem.KindKeyMissing)
	c = a.dial()
	c.send("POST /charges HTTP/1.1", "Host: x", "Idempotency-Key: k", "Expect: 100-continue", "Content-Length: 4", "", "")
	if got := c.read(); got.StatusCode != http.StatusContinue {
		t.Fatalf("%d, want 100", got.StatusCode)
	}
	c.send("body")
	if got := c.read(); got.StatusCode != 201 {
		t.Errorf("%d %s", got.StatusCode, got.text)
	}
	a.want(1, 1)
}

func TestConnectionGoesOnAfterARefusal(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, answerWith(201))
	c := a.dial()
	c.send("POST /charges HTTP/1.1", "Host: x", "Content-Length: 4", "", "body")
	a.wantProblem(c.read(), http.StatusBadRequest, httpidem.KindKeyMissing)
	c.send("POST /charges HTTP/1.1", "Host: x", "Idempotency-Key: k", "Content-Length: 4", "", "body")
	if got := c.read(); got.StatusCode != 201 {
		t.Errorf("%d %s", got.StatusCode, got.text)
	}
}

// Headers that are folded, joined or have what none may have are no key.
func TestKeysThatNoClientSends(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, answerWith(201))
	for _, header := range []string{
		"Idempotency-Key: a\r\n b", "Idempotency-Key: a\x00b", "Idempotency-Key: a\r\nidempotency-key: b", "Idempotency-Key: a, b",
		"Idempotency-Key:", "Idempotency-Key: \xff", "Idempotency-Key: \"a\" ; x", "IDEMPOTENCY-KEY: a b", "Idempotency-Key : a",
	} {
		c := a.dial()
		c.send("POST /charges HTTP/1.1", "Host: x", header, "Content-Length: 4", "", "body")
		if got := c.read(); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %d %s", header, got.StatusCode, got.text)
		}
	}
	a.want(0, 0)
}
