package trouble

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// attemptLimit is a client's patience with one attempt.
const attemptLimit = 10 * time.Second

// client sends charges the way a careful caller does: it tries again with the
// same key until it has an answer.
type client struct {
	url    string
	http   *http.Client
	counts *counts
}

// sentCharge is one charge and what the client was told about it.
type sentCharge struct {
	key  string
	ref  string
	body []byte

	mu sync.Mutex
	// answer is the first acknowledgement, nil before it.
	answer []byte
	// contradicted is set by an acknowledgement that differs from the first.
	contradicted bool
	// refusal is the last answer that was not an acknowledgement.
	refusal string
}

// chargeRequest is the body of POST /charges.
type chargeRequest struct {
	Ref    string `json:"ref"`
	From   string `json:"from"`
	To     string `json:"to"`
	Amount int64  `json:"amount"` // in cents
}

// newCharge is a charge of some amount between two accounts.
func newCharge(ref string, accounts []string) *sentCharge {
	from := mathrand.IntN(len(accounts))
	to := (from + 1 + mathrand.IntN(len(accounts)-1)) % len(accounts)
	charge := &sentCharge{key: rand.Text(), ref: ref}
	// Marshal cannot fail on strings and a number.
	charge.body, _ = json.Marshal(chargeRequest{
		Ref: ref, From: accounts[from], To: accounts[to], Amount: 1 + mathrand.Int64N(10_000),
	})
	return charge
}

// newClient returns a client that keeps up to atOnce connections to the API.
func newClient(url string, counts *counts, atOnce int) *client {
	return &client{
		url:    url + "/charges",
		http:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: atOnce}},
		counts: counts,
	}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// send tries until the charge is acknowledged. It comes back much sooner than
// Retry-After asks for: an impatient client is the harder test.
func (c *client) send(ctx context.Context, charge *sentCharge) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if done := c.attempt(ctx, charge); done {
			return
		}
		if !pause(ctx, wait/2+mathrand.N(wait)) {
			return
		}
	}
}

// attempt reports whether the charge needs no other attempt.
func (c *client) attempt(ctx context.Context, charge *sentCharge) bool {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	c.counts.attempts.Add(1)
	status, replayed, body, err := c.post(ctx, charge)
	switch {
	case err != nil:
		c.counts.failed.Add(1)
		charge.refuse(err.Error())
		return false
	case status/100 == 2:
		if replayed {
			c.counts.replayed.Add(1)
		} else {
			c.counts.executed.Add(1)
		}
		charge.acknowledge(body)
		return true
	case status == http.StatusConflict:
		c.counts.inProgress.Add(1)
	default:
		c.counts.failed.Add(1)
	}
	charge.refuse(fmt.Sprintf("%d %s", status, bytes.TrimSpace(body)))
	// Any other 4xx says that no retry can help.
	return status/100 == 4 && status != http.StatusConflict
}

func (c *client) post(ctx context.Context, charge *sentCharge) (status int, replayed bool, body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(charge.body))
	if err != nil {
		return 0, false, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", charge.key)
	response, err := c.http.Do(request)
	if err != nil {
		return 0, false, nil, err
	}
	defer func() { _ = response.Body.Close() }() // read to its end below
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, response.Header.Get("Idempotent-Replayed") == "true", body, err
}

func (s *sentCharge) acknowledge(answer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer == nil {
		s.answer = answer
	} else if !bytes.Equal(s.answer, answer) {
		s.contradicted = true
	}
}

func (s *sentCharge) refuse(refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = refusal
}

// randomPause is half to one and a half times pause.
func randomPause(pause time.Duration) time.Duration {
	return pause/2 + mathrand.N(pause+1)
}

// pause reports false where ctx ended first.
func pause(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
