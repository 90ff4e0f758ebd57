package httpidem_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// badRequest makes requests of which each has something wrong.
type badRequest struct {
	// problem is what the middleware answers. Without one the request is no HTTP: net/http
	// refuses it, in plain text, before any handler.
	problem string
	// cut says that the client sends no more.
	cut  bool
	text func(random *rand.Rand) string
}

const badMaxBody = 1000

var badRequests = map[string]badRequest{
	"a key with a character that none may have": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		key := keyChars(random, 1, 100) + oneOf(random, `"`, ",", ";", `\`, " ", "\t", "\x80", "\xff", "é", ", ", `\"`) + keyChars(random, 1, 100)
		return badPost(random, "Idempotency-Key: "+oneOf(random, key, `"`+key+`"`), "body")
	}},
	"a key with half of its quotes": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		key := keyChars(random, 0, 100)
		return badPost(random, "Idempotency-Key: "+oneOf(random, `"`+key, key+`"`, `""`+key+`"`, `"`+key+`""`), "body")
	}},
	"a key with parameters": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		return badPost(random, `Idempotency-Key: "`+keyChars(random, 1, 100)+`"`+oneOf(random, ";a", "; a=1", " ;a", `;a="b"`), "body")
	}},
	"no key in the header": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key:"+oneOf(random, "", " ", `""`, ` "" `, "\t"), "body")
	}},
	"a key that is too long": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key: "+keyChars(random, idempotency.MaxKeyLength+1, 2000), "body")
	}},
	"a folded key": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key: "+keyChars(random, 1, 50)+"\r\n"+oneOf(random, " ", "\t", "  ")+keyChars(random, 1, 50), "body")
	}},
	"two keys": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		key := keyChars(random, 1, 50)
		return badPost(random, "Idempotency-Key: "+key+"\r\n"+oneOf(random, "Idempotency-Key: ", "idempotency-key:", "IDEMPOTENCY-KEY: ")+oneOf(random, key, keyChars(random, 1, 50), ""), "body")
	}},
	"a malformed key where none is needed": {problem: httpidem.KindKeyInvalid, text: func(random *rand.Rand) string {
		return oneOf(random, "PUT", "DELETE", "post", "PROPFIND", fmt.Sprint("X-", random.IntN(1000))) + badHead + "Idempotency-Key: a b\r\nContent-Length: 0\r\n\r\n"
	}},
	"no key": {problem: httpidem.KindKeyMissing, text: func(random *rand.Rand) string {
		return badPost(random, "X-Idempotency-Key: "+keyChars(random, 1, 50), keyChars(random, 0, 100))
	}},
	"a body that is cut short": {problem: httpidem.KindBodyUnreadable, cut: true, text: func(random *rand.Rand) string {
		size := 1 + random.IntN(100)
		return badPost(random, fmt.Sprintf("Idempotency-Key: k\r\nContent-Length: %d", size+1+random.IntN(100)), strings.Repeat("x", size))
	}},
	"chunks that are none": {problem: httpidem.KindBodyUnreadable, cut: true, text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key: k\r\nTransfer-Encoding: chunked", oneOf(random, "x\r\n", "-1\r\n\r\n", "5\r\nabc\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "3\r\nabcdef", "3\r\nabc\r\n", "\r\n\r\n", "1 \r\n"))
	}},
	"a body that is too large": {problem: httpidem.KindBodyTooLarge, text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key: k", strings.Repeat("x", badMaxBody+1+random.IntN(1000)))
	}},
	"chunks that are too large": {problem: httpidem.KindBodyTooLarge, text: func(random *rand.Rand) string {
		size := badMaxBody + 1 + random.IntN(1000)
		return badPost(random, "Idempotency-Key: k\r\nTransfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", size, strings.Repeat("x", size)))
	}},
	"a header with what none may have": {text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key: "+keyChars(random, 0, 50)+oneOf(random, "\x00", "\x01", "\x7f", "\x1b")+keyChars(random, 0, 50), "")
	}},
	"a header that is none": {text: func(random *rand.Rand) string {
		return badPost(random, oneOf(random, "Idempotency-Key : k", "Idempotency-Key", " Idempotency-Key: k", ": k", "Idempotency\x00Key: k", "Idempotency Key: k", "Idempotency-Kéy: k"), "")
	}},
	"a length that is none": {text: func(random *rand.Rand) string {
		return badPost(random, "Idempotency-Key: k\r\nContent-Length: "+oneOf(random, "-1", "x", "1, 2", "0x1", "+1", "1.0", "99999999999999999999", "1\r\nContent-Length: 2"), "")
	}},
	"a method that is none": {text: func(random *rand.Rand) string {
		return oneOf(random, "", "PO ST", "P\x00ST", "POST:", "PÖST", "(POST)", "\tPOST", `"POST"`) + badHead + "Idempotency-Key: k\r\nContent-Length: 0\r\n\r\n"
	}},
	"a request line that is none": {text: func(random *rand.Rand) string {
		return oneOf(random, "POST", "POST /", "POST / ", "POST / HTTP", "POST  HTTP/1.1", "POST /%zz HTTP/1.1", "POST /\x00 HTTP/1.1", "POST http://[ HTTP/1.1", keyChars(random, 1, 100)) + "\r\nHost: x\r\nIdempotency-Key: k\r\n\r\n"
	}},
	"no host, or two": {text: func(random *rand.Rand) string {
		return "POST / HTTP/1.1\r\n" + oneOf(random, "", "Host: a\r\nHost: b\r\n", "Host: a b\r\n") + "Idempotency-Key: k\r\n\r\n"
	}},
}

const badHead = " /charges HTTP/1.1\r\nHost: x\r\n"

// badPost makes a POST or a PATCH, with the length of its body unless the lines have one.
func badPost(random *rand.Rand, lines, body string) string {
	if !strings.Contains(lines, "Content-Length: ") && !strings.Contains(lines, "Transfer-Encoding: ") {
		lines += fmt.Sprintf("\r\nContent-Length: %d", len(body))
	}
	return oneOf(random, "POST", "PATCH") + badHead + lines + "\r\n\r\n" + body
}

func oneOf(random *rand.Rand, texts ...string) string { return texts[random.IntN(len(texts))] }

// keyChars returns so many characters that a key may have.
func keyChars(random *rand.Rand, least, most int) string {
	text := make([]byte, 0, most)
	for size := least + random.IntN(most-least+1); len(text) < size; {
		if c := byte('!' + random.IntN('~'-'!'+1)); !strings.ContainsRune(`",;\`, rune(c)) {
			text = append(text, c)
		}
	}
	return string(text)
}

// Whatever is wrong with a request is a 4xx, before anything is asked of the store: a
// problem of the middleware, or a plain text of net/http's where it is no HTTP at all.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	requests := 10_000
	if testing.Short() {
		requests = 1000
	}
	store := &storeDouble{Store: memstore.New[*memstore.Tx](nil)}
	a := newAPI(t, options{store: store, config: httpidem.Config{MaxBody: badMaxBody}}, answerWith(201))
	kinds := slices.Sorted(maps.Keys(badRequests))
	const seed = 1
	count := make(map[string]int)
	var c *conn
	for i := range requests {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		what := kinds[i%len(kinds)]
		bad := badRequests[what]
		text := bad.text(random)
		if c == nil {
			c = a.dial()
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		c.send(text)
		if tcp, ok := c.Conn.(*net.TCPConn); bad.cut && (!ok || tcp.CloseWrite() != nil) {
			t.Fatal("cannot end what is sent")
		}
		got := c.read()
		count[cmp.Or(bad.problem, "net/http")]++
		if got.StatusCode < 400 || got.StatusCode > 499 || got.kind() != bad.problem {
			t.Fatalf("request %d of seed %d, %s: %d %q (%s), want a 4xx %q for\n%q", i, seed, what, got.StatusCode, got.kind(), got.text, bad.problem, text)
		}
		if bad.problem == "" && (got.Header.Get("Content-Type") != "text/plain; charset=utf-8" || !strings.HasPrefix(got.text, fmt.Sprint(got.StatusCode, " ", http.StatusText(got.StatusCode)))) {
			t.Fatalf("request %d of seed %d, %s: %v %q is not what net/http says of\n%q", i, seed, what, got.Header, got.text, text)
		}
		if got.Close || bad.cut {
			_ = c.Close()
			c = nil
		}
	}
	t.Logf("refused: %v", count)
	a.want(0, 0)
	store.wantAsked(t, 0)
	if got := a.post("k", "body"); got.StatusCode != 201 {
		t.Errorf("afterwards: %d %s", got.StatusCode, got.text)
	}
	store.wantAsked(t, 1)
}
