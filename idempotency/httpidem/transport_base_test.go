package httpidem_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// testBase answers in memory, or by another RoundTripper, and keeps what it was asked.
type testBase struct {
	// answer gets the number of the try, from 1, of all requests.
	answer func(try int, request *http.Request) (*http.Response, error)

	mu    sync.Mutex
	tries []*http.Request
	times []time.Time
}

func (b *testBase) RoundTrip(request *http.Request) (*http.Response, error) {
	b.mu.Lock()
	b.tries, b.times = append(b.tries, request), append(b.times, time.Now())
	try := len(b.tries)
	b.mu.Unlock()
	return b.answer(try, request)
}

func (b *testBase) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.tries)
}

// through counts the tries that go to another RoundTripper.
func through(base http.RoundTripper) *testBase {
	return &testBase{answer: func(_ int, request *http.Request) (*http.Response, error) { return base.RoundTrip(request) }}
}

// always answers each try in the same way.
func always(status int, header ...string) *testBase {
	return first(0, status, status, header...)
}

// first answers so many tries with one status and these headers, and later ones with the
// other status and none.
func first(tries, status, then int, header ...string) *testBase {
	return &testBase{answer: func(try int, _ *http.Request) (*http.Response, error) {
		if try > tries && status != then {
			return testResponse(then), nil
		}
		return testResponse(status, header...), nil
	}}
}

func failing(err error) *testBase {
	return &testBase{answer: func(int, *http.Request) (*http.Response, error) { return nil, err }}
}

func testResponse(status int, header ...string) *http.Response {
	response := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("body"))}
	for i := 0; i < len(header); i += 2 {
		response.Header.Set(header[i], header[i+1])
	}
	return response
}

// post returns a POST without a key.
func post(t *testing.T, url string) *http.Request {
	t.Helper()
	return testRequest(t, http.MethodPost, url, strings.NewReader("amount=500"))
}

func testRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

const testURL = "http://service.test/charges"

// roundTrip returns the status and the body of the answer.
func roundTrip(t *testing.T, transport *httpidem.Transport, request *http.Request) (int, string) {
	t.Helper()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("the answer's body: %v", err)
	}
	return response.StatusCode, string(body)
}

// wantStatus also reads the body of the answer, which must be whole.
func wantStatus(t *testing.T, transport *httpidem.Transport, request *http.Request, want int) {
	t.Helper()
	if status, body := roundTrip(t, transport, request); status != want || body != "body" {
		t.Errorf("got %d with %q, want %d with its body", status, body, want)
	}
}

func wantTries(t *testing.T, base *testBase, want int) {
	t.Helper()
	if got := base.count(); got != want {
		t.Errorf("%d tries, want %d", got, want)
	}
}
