package httpidem

import (
	"cmp"
	"math/rand/v2"
	"net/http"
	"time"
)

// tries is what was done for one request.
type tries struct {
	transport *Transport
	// made does not count those that a running duplicate has turned away.
	made   int
	waited time.Duration
	// longest bounds the random part of the next pause, as does MaxDelay.
	longest time.Duration
}

// next returns the pause before another try. again is false where the response or the error
// is the caller's.
func (s *tries) next(request *http.Request, response *http.Response, err error) (pause time.Duration, again bool) {
	t, ctx := s.transport, request.Context()
	if !ShouldRetry(response, err) {
		if err == nil {
			t.budget.give()
		}
		return 0, false
	}
	running := false
	if err == nil {
		running = response.StatusCode == http.StatusConflict
		pause, _ = parseRetryAfter(response.Header)
	}
	if !running {
		s.made++
	}
	if s.longest == 0 {
		s.longest = cmp.Or(t.MinDelay, 100*time.Millisecond)
	}
	longest := min(s.longest, cmp.Or(t.MaxDelay, 10*time.Second))
	// On top of Retry-After: those whom an overloaded server sends away together must not
	// come back together.
	pause += rand.N(longest)
	// It grows for a running duplicate too, which may ask to wait for 0 seconds.
	s.longest = 2 * longest
	s.waited += pause
	deadline, bounded := ctx.Deadline()
	switch {
	// Its cause, which is what net/http returns then, can be any error.
	case ctx.Err() != nil:
	case !isRepeatable(request):
	case s.made >= cmp.Or(t.MaxAttempts, 4):
	case s.waited > cmp.Or(t.MaxWait, time.Minute):
	case bounded && time.Until(deadline) <= pause:
	case !running && !t.budget.take(cmp.Or(t.Budget, 10)):
	default:
		return pause, true
	}
	return 0, false
}

// isRepeatable reports whether the body can be read once more.
func isRepeatable(request *http.Request) bool {
	return request.Body == nil || request.Body == http.NoBody || request.GetBody != nil
}
