package httpidem

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// ShouldRetry reports whether a request with a key is worth sending again after this
// response or error. It is what Transport goes by, and is there for other libraries that
// retry; these must send the same key and body each time.
//
// It is true for errors of a connection, a timeout of net or net/http among them, but not
// for those of a certificate and of a context that has ended. Of responses it is true for
// 408, 425, 429, 500, 502, 503 and 504, and for a 409 with Retry-After, which means that
// an earlier try is still running. A 409 without is an answer. So is every response with
// the header Idempotent-Replayed: it is recorded, and each further try would get it again.
func ShouldRetry(response *http.Response, err error) bool {
	if err != nil {
		// Both together are an answer whose redirect http.Client did not follow.
		return response == nil && !isPermanent(err)
	}
	if response == nil || len(response.Header.Values(DefaultReplayedHeader)) > 0 {
		return false
	}
	switch response.StatusCode {
	case http.StatusConflict:
		_, running := parseRetryAfter(response.Header)
		return running
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// isPermanent reports whether another try would fail as well.
func isPermanent(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, idempotency.ErrInvalidParams) {
		return true
	}
	// errors.Is would find it in the timeouts of net and net/http too, which claim to be
	// it, as those of a dial.
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		if inner == context.DeadlineExceeded { //nolint:errorlint // See above.
			return true
		}
	}
	// The server may refuse the client's certificate. The type of an alert is not exported.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate") {
		return true
	}
	return has[*tls.CertificateVerificationError](err) || has[x509.UnknownAuthorityError](err) ||
		has[x509.HostnameError](err) || has[x509.CertificateInvalidError](err)
}

func has[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// parseRetryAfter returns how long the header Retry-After, seconds or a date, asks to wait.
// ok is false where there is none that can be read.
func parseRetryAfter(header http.Header) (wait time.Duration, ok bool) {
	const longest = math.MaxUint32 * time.Second // so that a pause can be added to it
	text := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(seconds) * time.Second, true
	}
	date, err := http.ParseTime(text)
	if err != nil {
		return 0, false
	}
	return min(max(time.Until(date), 0), longest), true
}
