package httpidem_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// testSocket is a server and a Transport for it, on connections of their own.
type testSocket struct {
	url       string
	transport *httpidem.Transport
	base      *testBase // what the Transport has sent
	opened    atomic.Int32

	mu     sync.Mutex
	keys   []string
	bodies []string
}

// newTestSocket answers by the number of the request, from 1.
func newTestSocket(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *testSocket {
	t.Helper()
	s := &testSocket{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("the request's body: %v", err)
		}
		s.mu.Lock()
		s.keys, s.bodies = append(s.keys, r.Header.Get("Idempotency-Key")), append(s.bodies, string(body))
		n := len(s.keys)
		s.mu.Unlock()
		answer(n, w, r)
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.opened.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	s.url = server.URL
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	s.base = through(base)
	s.transport = &httpidem.Transport{Base: s.base, MinDelay: 1}
	return s
}

// want checks the requests that the server got: all under one key, with this body.
func (s *testSocket) want(t *testing.T, requests int, body string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) != requests {
		t.Fatalf("the server got %d requests, want %d", len(s.keys), requests)
	}
	for i := range s.keys {
		if s.keys[i] != s.keys[0] || s.keys[i] == "" {
			t.Errorf("request %d has the key %q, the first %q", i+1, s.keys[i], s.keys[0])
		}
		if s.bodies[i] != body {
			t.Errorf("request %d has a body of %d bytes, want all %d", i+1, len(s.bodies[i]), len(body))
		}
	}
}

func write(w http.ResponseWriter, status int, body string) {
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// reset closes the connection of a request before an answer.
func reset(t *testing.T, w http.ResponseWriter) {
	t.Helper()
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// fourth answers the fourth try.
func fourth(n int, w http.ResponseWriter, _ *http.Request) {
	if n < 4 {
		write(w, http.StatusServiceUnavailable, "later")
		return
	}
	write(w, http.StatusCreated, "body")
}

func TestTransportSendsTheWholeBodyEachTime(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("amount=500&", 50_000)
	for name, reader := range map[string]func() io.Reader{
		"strings": func() io.Reader { return strings.NewReader(body) },
		"bytes":   func() io.Reader { return bytes.NewReader([]byte(body)) },
		"buffer":  func() io.Reader { return bytes.NewBufferString(body) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestSocket(t, fourth)
			wantStatus(t, s.transport, testRequest(t, "POST", s.url, reader()), http.StatusCreated)
			s.want(t, 4, body)
		})
	}
	for name, reader := range map[string]io.Reader{"nil": nil, "no body": http.NoBody} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestSocket(t, fourth)
			request := testRequest(t, "POST", s.url, reader)
			request.GetBody = nil // There is nothing to get.
			wantStatus(t, s.transport, request, http.StatusCreated)
			s.want(t, 4, "")
		})
	}
}

func TestTransportSendsABodyWithoutGetBodyOnce(t *testing.T) {
	t.Parallel()
	s := newTestSocket(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "0")
		write(w, http.StatusServiceUnavailable, "body")
	})
	request := testRequest(t, "POST", s.url, io.MultiReader(strings.NewReader("amount=500")))
	if request.GetBody != nil {
		t.Fatal("http.NewRequest has set GetBody")
	}
	wantStatus(t, s.transport, request, http.StatusServiceUnavailable)
	s.want(t, 1, "amount=500")
}

func TestTransportReturnsTheErrorOfGetBody(t *testing.T) {
	t.Parallel()
	gone := errors.New("the file is gone")
	s := newTestSocket(t, func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	request := post(t, s.url)
	request.GetBody = func() (io.ReadCloser, error) { return nil, gone }
	_, err := s.transport.RoundTrip(request) //nolint:bodyclose // There is none.
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	s.want(t, 1, "amount=500")
}

// The last answer comes whole, however long; those before it leave their connection in use.
func TestTransportKeepsTheConnection(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("overloaded ", 3000)
	s := newTestSocket(t, func(_ int, w http.ResponseWriter, _ *http.Request) { write(w, http.StatusServiceUnavailable, long) })
	status, body := roundTrip(t, s.transport, post(t, s.url))
	if status != http.StatusServiceUnavailable || body != long {
		t.Errorf("got %d with %d bytes, want %d", status, len(body), len(long))
	}
	s.want(t, 4, "amount=500")
	if opened := s.opened.Load(); opened != 1 {
		t.Errorf("4 tries opened %d connections, want 1", opened)
	}
}

func TestTransportDoesNotReadAnAnswerForEver(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	s := newTestSocket(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n > 1 {
			write(w, http.StatusCreated, "body")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		for {
			written, err := w.Write(make([]byte, 4<<10))
			if err != nil {
				return // The client has closed the connection.
			}
			sent.Add(int64(written))
		}
	})
	wantStatus(t, s.transport, post(t, s.url), http.StatusCreated)
	s.want(t, 2, "amount=500")
	if opened := s.opened.Load(); opened != 2 {
		t.Errorf("the tries opened %d connections, want 2", opened)
	}
}

func TestTransportClosesTheBodiesThatItGivesUp(t *testing.T) {
	t.Parallel()
	var bodies []*noteClose
	base := &testBase{answer: func(try int, _ *http.Request) (*http.Response, error) {
		response, body := testResponse(http.StatusServiceUnavailable), &noteClose{Reader: strings.NewReader("body")}
		bodies = append(bodies, body)
		if response.Body = body; try == 2 {
			response.Body = nil // http.Client takes this of a RoundTripper, and so do we.
		}
		return response, nil
	}}
	wantStatus(t, &httpidem.Transport{Base: base, MinDelay: 1}, post(t, testURL), http.StatusServiceUnavailable)
	wantTries(t, base, 4)
	for _, i := range []int{0, 2} {
		if rest, _ := io.ReadAll(bodies[i]); !bodies[i].closed || len(rest) > 0 {
			t.Errorf("body %d: closed %t, %d bytes left", i+1, bodies[i].closed, len(rest))
		}
	}
}

func TestTransportAfterAReset(t *testing.T) {
	t.Parallel()
	s := newTestSocket(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n < 4 {
			reset(t, w)
			return
		}
		write(w, http.StatusCreated, "body")
	})
	wantStatus(t, s.transport, post(t, s.url), http.StatusCreated)
	s.want(t, 4, "amount=500")
	wantTries(t, s.base, 4)
}

// On a connection that was in use before, net/http does it by itself. We say so.
func TestNetHTTPSendsARequestWithAKeyAgain(t *testing.T) {
	t.Parallel()
	s := newTestSocket(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 2 {
			reset(t, w)
			return
		}
		write(w, http.StatusCreated, "body")
	})
	s.transport.MaxAttempts = 1
	for range 2 {
		request := post(t, s.url)
		request.Header.Set("Idempotency-Key", "order-7")
		wantStatus(t, s.transport, request, http.StatusCreated)
	}
	s.want(t, 3, "amount=500")
	wantTries(t, s.base, 2)
}

func TestTransportIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	const requests = 40
	s := newTestSocket(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		switch n % 4 {
		case 1:
			reset(t, w)
		case 2:
			write(w, http.StatusServiceUnavailable, "later")
		default:
			write(w, http.StatusCreated, "body")
		}
	})
	s.transport.MaxAttempts, s.transport.Budget = 1000, 1000
	var group sync.WaitGroup
	for i := range requests {
		request := testRequest(t, "POST", s.url, strings.NewReader(fmt.Sprint(i)))
		group.Go(func() {
			response, err := s.transport.RoundTrip(request)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = response.Body.Close() }()
			if response.StatusCode != http.StatusCreated {
				t.Errorf("got %d", response.StatusCode)
			}
		})
	}
	group.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	of := make(map[string]string)
	for i, key := range s.keys {
		if body, seen := of[key]; seen && body != s.bodies[i] {
			t.Errorf("one key came with %q and %q", body, s.bodies[i])
		}
		of[key] = s.bodies[i]
	}
	if len(of) != requests || len(s.keys) <= requests {
		t.Errorf("%d requests came under %d keys in %d tries", requests, len(of), len(s.keys))
	}
}
