package httpidem

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// Transport is an http.RoundTripper that sends a request again, under one key, until it
// has an answer. The zero Transport works. It is safe for concurrent use and must not be
// copied.
//
//	client := &http.Client{Transport: &httpidem.Transport{}}
//
// POST and PATCH without a key get a random one; Response.Request has it. That key ends
// with the process: a durable client stores NewKey() before the first send and sets the
// header itself. Requests of other methods without a key pass by untouched. All with a key
// are sent again where ShouldRetry says so, unless they have a body and no GetBody, as
// http.NewRequest sets it for a reader in memory. The request given is not changed.
//
// Before each further try is a random pause, and before that the time that Retry-After
// asks for. If the next pause would outlast MaxWait or the context's deadline, which
// http.Client.Timeout sets for all tries together, the last response, its body unread, or
// the last error is returned at once. A try that gets no answer has no bound of its own:
// http.Transport.ResponseHeaderTimeout is one. An answer that breaks off inside its body
// is not asked for again.
//
// A 409 with Retry-After means that an earlier try is running. To wait for it uses up
// MaxWait, but neither MaxAttempts nor Budget.
//
// Where a connection that was in use before breaks, http.Transport itself sends a request
// with Idempotency-Key or X-Idempotency-Key again (golang.org/issue/19943). Neither
// MaxAttempts nor Budget counts that.
type Transport struct {
	// Base sends each try. Defaults to http.DefaultTransport.
	Base http.RoundTripper
	// Header is the name of the header with the key. Defaults to "Idempotency-Key".
	Header string
	// Bare leaves out the quotes that draft-ietf-httpapi-idempotency-key-header-07 wants
	// around a key, for services that do not know them. A key that the request has is sent
	// as it is. Defaults to false.
	Bare bool
	// RequireKey refuses POST and PATCH without a key, for clients that store their keys.
	// The error is an *idempotency.ParamError. Defaults to false.
	RequireKey bool
	// MaxAttempts is how often one request is sent. Defaults to 4; with 1, only a running
	// duplicate is waited for.
	MaxAttempts int
	// MinDelay is the longest random pause before the second try. Each further one may be
	// twice as long. Defaults to 100 milliseconds.
	MinDelay time.Duration
	// MaxDelay is the longest that it may become. Retry-After may ask for more. Defaults
	// to 10 seconds.
	MaxDelay time.Duration
	// MaxWait bounds all pauses of one request together, their random parts included: a
	// Retry-After of as much is not waited for. Defaults to 1 minute.
	MaxWait time.Duration
	// Budget is how many retries may be sent at once, of all requests together: a retry
	// takes one away, and an answer that ShouldRetry does not want to replace gives a
	// tenth of one back. While none is left, each request is sent once. Of 100 requests to
	// a dead server, at most 110 are sent. Defaults to 10.
	Budget int

	budget budget
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip sends the request, again where that is safe and of use. Errors are those of
// Base, the cause of the context's end, what GetBody returns, and for a key that is missing
// or a field that cannot work an *idempotency.ParamError, before anything is sent.
func (t *Transport) RoundTrip(request *http.Request) (*http.Response, error) {
	base, name := t.Base, cmp.Or(t.Header, DefaultHeader)
	if base == nil {
		base = http.DefaultTransport
	}
	key := request.Header.Get(name)
	if key == "" && request.Method != http.MethodPost && request.Method != http.MethodPatch {
		return base.RoundTrip(request)
	}
	body := request.Body
	if err := t.validate(name, key); err != nil {
		if body != nil {
			_ = body.Close() // Nobody has read it.
		}
		return nil, err
	}
	made := ""
	if key == "" {
		made = NewKey()
		if !t.Bare {
			made = `"` + made + `"`
		}
	}
	ctx, sent := request.Context(), tries{transport: t}
	for {
		// Base may still be at the last one.
		try := request.Clone(ctx)
		try.Body = body
		if made != "" {
			if try.Header == nil {
				try.Header = make(http.Header)
			}
			try.Header.Set(name, made)
		}
		response, err := base.RoundTrip(try)
		pause, again := sent.next(request, response, err)
		if !again {
			return response, err
		}
		if err == nil {
			discard(response)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		if body != nil && request.GetBody != nil {
			if body, err = request.GetBody(); err != nil {
				return nil, fmt.Errorf("httpidem: no body for another try: %w", err)
			}
		}
	}
}

// validate returns a *ParamError for what no try should be made with.
func (t *Transport) validate(name, key string) error {
	switch {
	case key == "" && t.RequireKey:
		return &idempotency.ParamError{Field: name, Reason: "is missing, and Transport.RequireKey is set: store NewKey() before the first send, and set the header"}
	case !isToken(name):
		return &idempotency.ParamError{Field: "Transport.Header", Reason: "is not the name of a header"}
	case min(t.MaxAttempts, t.Budget) < 0 || min(t.MinDelay, t.MaxDelay, t.MaxWait) < 0:
		return &idempotency.ParamError{Field: "Transport", Reason: "has a negative number or time; 0 means the default"}
	}
	return nil
}

// discard reads the rest of a body that nobody wants, so that its connection can be used
// for the next try. Of a long one it costs less to close the connection.
func discard(response *http.Response) {
	const most = 64 << 10
	if response.Body == nil {
		return // http.Client allows that.
	}
	_, _ = io.CopyN(io.Discard, response.Body, most)
	_ = response.Body.Close()
}

// sleep returns the cause of the context's end, if that comes first.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
