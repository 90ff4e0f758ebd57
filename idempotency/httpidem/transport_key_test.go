package httpidem_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
)

const uuid4 = `[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`

func TestNewKeyIsARandomUUID(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 100 {
		key := httpidem.NewKey()
		if !regexp.MustCompile("^" + uuid4 + "$").MatchString(key) {
			t.Fatalf("%q is not a UUID of version 4", key)
		}
		seen[key] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d different keys of 100", len(seen))
	}
}

func TestTransportKeys(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		method    string
		transport *httpidem.Transport
		header    string // in which the request has the keys
		keys      []string
		wantIn    string
		want      string // a pattern of all the keys sent, or "" for none
	}{
		"POST":           {method: "POST", wantIn: "Idempotency-Key", want: `"` + uuid4 + `"`},
		"PATCH":          {method: "PATCH", wantIn: "Idempotency-Key", want: `"` + uuid4 + `"`},
		"bare":           {method: "POST", transport: &httpidem.Transport{Bare: true}, wantIn: "Idempotency-Key", want: uuid4},
		"other header":   {method: "POST", transport: &httpidem.Transport{Header: "x-request-id"}, wantIn: "X-Request-Id", want: `"` + uuid4 + `"`},
		"only its own":   {method: "POST", transport: &httpidem.Transport{Header: "X-Request-Id"}, wantIn: "Idempotency-Key"},
		"key set":        {method: "POST", header: "Idempotency-Key", keys: []string{"order-7"}, wantIn: "Idempotency-Key", want: "order-7"},
		"quotes set":     {method: "POST", transport: &httpidem.Transport{Bare: true}, header: "Idempotency-Key", keys: []string{`"order-7"`}, wantIn: "Idempotency-Key", want: `"order-7"`},
		"two set":        {method: "POST", header: "Idempotency-Key", keys: []string{"a", "b"}, wantIn: "Idempotency-Key", want: "a,b"},
		"empty":          {method: "POST", header: "Idempotency-Key", keys: []string{""}, wantIn: "Idempotency-Key", want: `"` + uuid4 + `"`},
		"other one set":  {method: "POST", transport: &httpidem.Transport{Header: "X-Request-Id"}, header: "X-Request-Id", keys: []string{"order-7"}, wantIn: "X-Request-Id", want: "order-7"},
		"PUT with key":   {method: "PUT", header: "Idempotency-Key", keys: []string{"order-7"}, wantIn: "Idempotency-Key", want: "order-7"},
		"required, set":  {method: "POST", transport: &httpidem.Transport{RequireKey: true}, header: "Idempotency-Key", keys: []string{"order-7"}, wantIn: "Idempotency-Key", want: "order-7"},
		"required of no": {method: "PUT", transport: &httpidem.Transport{RequireKey: true}, wantIn: "Idempotency-Key"},
		"GET":            {method: "GET", wantIn: "Idempotency-Key"},
		"PUT":            {method: "PUT", wantIn: "Idempotency-Key"},
		"DELETE":         {method: "DELETE", wantIn: "Idempotency-Key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, transport := always(http.StatusOK), test.transport
			if transport == nil {
				transport = &httpidem.Transport{}
			}
			transport.Base = base
			request := testRequest(t, test.method, testURL, nil)
			for _, key := range test.keys {
				request.Header.Add(test.header, key)
			}
			wantStatus(t, transport, request, http.StatusOK)
			wantTries(t, base, 1)
			sent := strings.Join(base.tries[0].Header[test.wantIn], ",")
			if !regexp.MustCompile("^(" + test.want + ")$").MatchString(sent) {
				t.Errorf("sent %q in %s, want %s", sent, test.wantIn, test.want)
			}
		})
	}
}

func TestTransportWithoutKeyPassesByUntouched(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS"} {
		// The fields that would be refused are of no interest to it either.
		base := always(http.StatusServiceUnavailable)
		transport := &httpidem.Transport{Base: base, RequireKey: true, MaxAttempts: -1}
		request := testRequest(t, method, testURL, nil)
		wantStatus(t, transport, request, http.StatusServiceUnavailable)
		wantTries(t, base, 1)
		if base.tries[0] != request {
			t.Errorf("%s without a key: Base got another request", method)
		}
	}
}

func TestTransportSendsOneKeyForAllTries(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"POST", "PATCH"} {
		base := first(3, http.StatusServiceUnavailable, http.StatusCreated)
		transport := &httpidem.Transport{Base: base, MinDelay: 1}
		wantStatus(t, transport, testRequest(t, method, testURL, nil), http.StatusCreated)
		wantStatus(t, transport, testRequest(t, method, testURL, nil), http.StatusCreated)
		wantTries(t, base, 5)
		keys := make(map[string]int)
		for _, try := range base.tries {
			keys[try.Header.Get("Idempotency-Key")]++
		}
		if key := base.tries[0].Header.Get("Idempotency-Key"); len(keys) != 2 || keys[key] != 4 {
			t.Errorf("%s: 4 tries of a request and 1 of another had %d keys: %v", method, len(keys), keys)
		}
	}
}

func TestTransportRetriesEveryMethodWithAKey(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "PUT", "DELETE", "POST"} {
		base := first(2, http.StatusServiceUnavailable, http.StatusOK)
		request := testRequest(t, method, testURL, nil)
		request.Header.Set("Idempotency-Key", "order-7")
		wantStatus(t, &httpidem.Transport{Base: base, MinDelay: 1}, request, http.StatusOK)
		wantTries(t, base, 3)
		for _, try := range base.tries {
			if key := try.Header.Get("Idempotency-Key"); key != "order-7" {
				t.Errorf("%s: sent %q", method, key)
			}
		}
	}
}

// noteClose tells whether the body was closed.
type noteClose struct {
	io.Reader
	closed bool
}

func (b *noteClose) Close() error {
	b.closed = true
	return nil
}

func TestTransportRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		transport *httpidem.Transport
		key       string
		field     string
	}{
		"no key":            {&httpidem.Transport{RequireKey: true}, "", "Idempotency-Key"},
		"no key in header":  {&httpidem.Transport{RequireKey: true, Header: "X-Request-Id"}, "", "X-Request-Id"},
		"header":            {&httpidem.Transport{Header: "Idempotency Key"}, "", "Transport.Header"},
		"negative attempts": {&httpidem.Transport{MaxAttempts: -1}, "secret", "Transport"},
		"negative minimum":  {&httpidem.Transport{MinDelay: -1}, "secret", "Transport"},
		"negative maximum":  {&httpidem.Transport{MaxDelay: -1}, "secret", "Transport"},
		"negative wait":     {&httpidem.Transport{MaxWait: -1}, "secret", "Transport"},
		"negative budget":   {&httpidem.Transport{Budget: -1}, "secret", "Transport"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, method := range []string{"POST", "PATCH"} {
				base := always(http.StatusOK)
				test.transport.Base = base
				body := &noteClose{Reader: strings.NewReader("amount=500")}
				request := testRequest(t, method, testURL, body)
				if test.key != "" {
					request.Header.Set("Idempotency-Key", test.key)
				}
				_, err := test.transport.RoundTrip(request) //nolint:bodyclose // There is none.
				if param, ok := errors.AsType[*idempotency.ParamError](err); !ok || param.Field != test.field || !errors.Is(err, idempotency.ErrInvalidParams) {
					t.Fatalf("got %v, want a *ParamError of %s", err, test.field)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error has the key: %v", err)
				}
				wantTries(t, base, 0)
				if !body.closed {
					t.Error("the body was not closed")
				}
			}
		})
	}
}

func TestTransportDoesNotModifyTheRequest(t *testing.T) {
	t.Parallel()
	base := &testBase{answer: func(try int, request *http.Request) (*http.Response, error) {
		if request.Header.Get("Traceparent") != "" || request.URL.Path != "/charges" {
			t.Errorf("try %d has what Base did to the one before", try)
		}
		request.Header.Set("Traceparent", "x")
		request.URL.Path = "/elsewhere"
		if try < 3 {
			return testResponse(http.StatusServiceUnavailable), nil
		}
		return testResponse(http.StatusOK), nil
	}}
	request := post(t, testURL)
	request.Header.Set("Accept", "text/plain")
	header, url, body := request.Header.Clone(), *request.URL, request.Body
	wantStatus(t, &httpidem.Transport{Base: base, MinDelay: 1}, request, http.StatusOK)
	wantTries(t, base, 3)
	if !reflect.DeepEqual(request.Header, header) || *request.URL != url || request.Body != body {
		t.Errorf("the request was changed: %v %v", request.Header, request.URL)
	}
}

func TestTransportTakesARequestWithoutHeader(t *testing.T) {
	t.Parallel()
	base := always(http.StatusOK)
	request := post(t, testURL)
	request.Header = nil
	wantStatus(t, &httpidem.Transport{Base: base}, request, http.StatusOK)
	if base.tries[0].Header.Get("Idempotency-Key") == "" || request.Header != nil {
		t.Errorf("sent %v, and the request has %v", base.tries[0].Header, request.Header)
	}
}

func TestZeroTransport(t *testing.T) {
	t.Parallel()
	var keys []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	client := &http.Client{Transport: &httpidem.Transport{}}
	response, err := client.Do(post(t, server.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK || len(keys) != 2 || keys[0] != keys[1] {
		t.Fatalf("got %d after tries with %q", response.StatusCode, keys)
	}
	if key := response.Request.Header.Get("Idempotency-Key"); key != keys[0] {
		t.Errorf("the response's request has %q, sent was %q", key, keys[0])
	}
}
