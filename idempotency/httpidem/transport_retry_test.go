package httpidem_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
)

func shouldRetry(status int, header ...string) bool {
	return httpidem.ShouldRetry(testResponse(status, header...), nil) //nolint:bodyclose // It is in memory.
}

func TestShouldRetryResponses(t *testing.T) {
	t.Parallel()
	again := []int{408, 425, 429, 500, 502, 503, 504}
	for status := 100; status < 600; status++ {
		if got, want := shouldRetry(status), slices.Contains(again, status); got != want {
			t.Errorf("%d: got %t", status, got)
		}
		if got, want := shouldRetry(status, "Retry-After", "1"), slices.Contains(again, status) || status == 409; got != want {
			t.Errorf("%d with Retry-After: got %t", status, got)
		}
		if shouldRetry(status, "Retry-After", "1", "Idempotent-Replayed", "true") {
			t.Errorf("%d that is recorded: got true", status)
		}
	}
	for text, want := range map[string]bool{
		"0": true, "120": true, "99999999999999999999": true, "Fri, 31 Dec 1999 23:59:59 GMT": true,
		"": false, "soon": false, "-1": false, "1.5": false,
	} {
		if got := shouldRetry(http.StatusConflict, "Retry-After", text); got != want {
			t.Errorf("409 with Retry-After %q: got %t", text, got)
		}
	}
	if httpidem.ShouldRetry(nil, nil) {
		t.Error("neither a response nor an error: got true")
	}
	if httpidem.ShouldRetry(&http.Response{StatusCode: http.StatusFound}, errors.New("stopped after 10 redirects")) {
		t.Error("a response beside an error: got true")
	}
}

func TestShouldRetryErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"end of file":         {io.EOF, true},
		"unexpected end":      {io.ErrUnexpectedEOF, true},
		"reset":               {&net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, true},
		"no such host":        {&net.DNSError{Err: "no such host"}, true},
		"alert of overload":   {&net.OpError{Op: "remote error", Err: tls.AlertError(80)}, true},
		"canceled":            {context.Canceled, false},
		"deadline":            {context.DeadlineExceeded, false},
		"client certificate":  {&net.OpError{Op: "remote error", Err: tls.AlertError(42)}, false},
		"verification":        {&tls.CertificateVerificationError{Err: errors.New("of one's own")}, false},
		"unknown authority":   {x509.UnknownAuthorityError{}, false},
		"name of host":        {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "a"}, false},
		"invalid certificate": {x509.CertificateInvalidError{Reason: x509.Expired}, false},
		"refused":             {&idempotency.ParamError{Field: "Idempotency-Key", Reason: "is missing"}, false},
	} {
		for _, err := range []error{test.err, &url.Error{Op: "Post", URL: testURL, Err: fmt.Errorf("wrapped: %w", test.err)}} {
			if got := httpidem.ShouldRetry(nil, err); got != test.want {
				t.Errorf("%s, %T: got %t", name, err, got)
			}
		}
	}
}

// What net/http returns itself, over sockets.
func TestTransportErrors(t *testing.T) {
	t.Parallel()
	answering := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	quiet := log.New(io.Discard, "", 0) // of handshakes that fail
	secure := httptest.NewUnstartedServer(answering)
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	t.Cleanup(secure.Close)
	mutual := httptest.NewUnstartedServer(answering)
	// In TLS 1.3 the client may have sent its request before it hears of the refusal.
	mutual.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(), MaxVersion: tls.VersionTLS12}
	mutual.Config.ErrorLog = quiet
	mutual.StartTLS()
	t.Cleanup(mutual.Close)
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(silent.Close)
	dead := httptest.NewServer(answering)
	dead.Close()
	trusting := secure.Client().Transport.(*http.Transport).TLSClientConfig
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("of one's own"))
	expired, expire := context.WithTimeout(t.Context(), time.Nanosecond)
	defer expire()
	<-expired.Done()

	for name, test := range map[string]struct {
		base  *http.Transport
		ctx   context.Context
		url   string
		tries int
	}{
		"no listener":       {base: &http.Transport{}, url: dead.URL, tries: 4},
		"dial timeout":      {base: &http.Transport{DialContext: (&net.Dialer{Timeout: time.Nanosecond}).DialContext}, url: secure.URL, tries: 4},
		"header timeout":    {base: &http.Transport{ResponseHeaderTimeout: time.Millisecond}, url: silent.URL, tries: 4},
		"unknown authority": {base: &http.Transport{}, url: secure.URL, tries: 1},
		"other name":        {base: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusting.RootCAs, ServerName: "other.test"}}, url: secure.URL, tries: 1},
		"own certificate":   {base: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: secure.TLS.Certificates}}, url: mutual.URL, tries: 1},
		"ended context":     {base: &http.Transport{}, ctx: ended, url: dead.URL, tries: 1},
		"expired context":   {base: &http.Transport{}, ctx: expired, url: dead.URL, tries: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer test.base.CloseIdleConnections()
			base := through(test.base)
			request := post(t, test.url)
			if test.ctx != nil {
				request = request.WithContext(test.ctx)
			}
			response, err := (&httpidem.Transport{Base: base, MinDelay: 1}).RoundTrip(request)
			if err == nil {
				_ = response.Body.Close()
				t.Fatalf("got %d, want an error", response.StatusCode)
			}
			wantTries(t, base, test.tries)
			if t.Failed() {
				t.Log(err)
			}
		})
	}
}
