package httpidem_test

import (
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// sendMany sends so many requests at once and waits for their answers.
func sendMany(t *testing.T, transport *httpidem.Transport, requests int) {
	t.Helper()
	var group sync.WaitGroup
	for range requests {
		request := post(t, testURL)
		group.Go(func() {
			if response, err := transport.RoundTrip(request); err == nil {
				_ = response.Body.Close()
			}
		})
	}
	group.Wait()
}

// testAnswer is what the server does with each try, for a time.
type testAnswer struct {
	status int
	header []string
	err    error
}

// testBudget counts the tries of requests by what the server does at the time.
type testBudget struct {
	t         *testing.T
	transport *httpidem.Transport
	base      *testBase
	answer    testAnswer
}

func newTestBudget(t *testing.T, transport *httpidem.Transport) *testBudget {
	t.Helper()
	b := &testBudget{t: t, transport: transport}
	b.base = &testBase{answer: func(int, *http.Request) (*http.Response, error) {
		if b.answer.err != nil {
			return nil, b.answer.err
		}
		return testResponse(b.answer.status, b.answer.header...), nil
	}}
	transport.Base = b.base
	return b
}

func (b *testBudget) want(what string, answer testAnswer, requests, tries int) {
	b.t.Helper()
	b.answer = answer
	before := b.base.count()
	sendMany(b.t, b.transport, requests)
	if got := b.base.count() - before; got != tries {
		b.t.Errorf("%s: %d requests were sent %d times, want %d", what, requests, got, tries)
	}
}

func TestTransportBudget(t *testing.T) {
	t.Parallel()
	well, busy, dead := testAnswer{status: http.StatusOK}, testAnswer{status: http.StatusServiceUnavailable}, testAnswer{err: io.ErrUnexpectedEOF}
	synctest.Test(t, func(t *testing.T) {
		b := newTestBudget(t, &httpidem.Transport{})
		b.want("dead", dead, 100, 110)
		b.want("busy, and the budget empty", busy, 10, 10)
		b.want("nine tenths", well, 9, 9)
		b.want("nine tenths spent", dead, 1, 1)
		b.want("a tenth", well, 1, 1)
		b.want("one token", dead, 5, 6)
		b.want("answers of a kind", testAnswer{status: http.StatusUnprocessableEntity}, 30, 30)
		b.want("three tokens", dead, 5, 8)
		b.want("many", well, 1000, 1000)
		b.want("no more than full", dead, 100, 110)
	})
	synctest.Test(t, func(t *testing.T) {
		b := newTestBudget(t, &httpidem.Transport{Budget: 3})
		b.want("dead", dead, 20, 23)
	})
	// None of these says that the server is well.
	for name, answer := range map[string]testAnswer{
		"busy":        busy,
		"limited":     {status: http.StatusTooManyRequests},
		"broken":      dead,
		"canceled":    {err: context.Canceled},
		"certificate": {err: x509.UnknownAuthorityError{}},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newTestBudget(t, &httpidem.Transport{MaxAttempts: 2})
			b.want(name+", dead", dead, 20, 30)
			b.want(name, answer, 20, 20)
			b.want(name+", dead still", dead, 20, 20)
		})
	}
}

// To wait for a running duplicate works with an empty budget, and leaves a full one full.
func TestTransportBudgetIsNotForRunningDuplicates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newTestBudget(t, &httpidem.Transport{Budget: 2, MinDelay: 1, MaxDelay: 1})
		running := testAnswer{status: http.StatusConflict, header: []string{"Retry-After", "20"}} // 0, 20, 40, 60 seconds
		b.want("running", running, 10, 40)
		b.want("dead", testAnswer{status: http.StatusServiceUnavailable}, 10, 12)
		b.want("running and empty", running, 10, 40)
		b.want("dead and empty", testAnswer{status: http.StatusServiceUnavailable}, 10, 10)
	})
}
