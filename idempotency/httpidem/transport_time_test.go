package httpidem_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// gaps returns the pauses between the tries.
func gaps(base *testBase) []time.Duration {
	var gaps []time.Duration
	for i := 1; i < len(base.times); i++ {
		gaps = append(gaps, base.times[i].Sub(base.times[i-1]))
	}
	return gaps
}

// Over many requests each pause comes close to both of its bounds.
func TestTransportJitter(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		transport func() *httpidem.Transport
		longest   []time.Duration
	}{
		"defaults": {
			func() *httpidem.Transport { return &httpidem.Transport{} },
			[]time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond},
		},
		"ten tries": {
			func() *httpidem.Transport { return &httpidem.Transport{MaxAttempts: 10, MaxWait: time.Hour} },
			[]time.Duration{
				100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond,
				1600 * time.Millisecond, 3200 * time.Millisecond, 6400 * time.Millisecond, 10 * time.Second, 10 * time.Second,
			},
		},
		"fields": {
			func() *httpidem.Transport {
				return &httpidem.Transport{MaxAttempts: 5, MinDelay: time.Second, MaxDelay: 3 * time.Second}
			},
			[]time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second},
		},
		"low maximum": {
			func() *httpidem.Transport {
				return &httpidem.Transport{MaxAttempts: 3, MinDelay: time.Second, MaxDelay: time.Millisecond}
			},
			[]time.Duration{time.Millisecond, time.Millisecond},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				lower, upper := make([]int, len(test.longest)), make([]int, len(test.longest))
				for range 300 {
					base, transport := always(http.StatusServiceUnavailable), test.transport()
					transport.Base = base
					wantStatus(t, transport, post(t, testURL), http.StatusServiceUnavailable)
					if len(base.times) != len(test.longest)+1 {
						t.Fatalf("%d tries, want %d", len(base.times), len(test.longest)+1)
					}
					for i, gap := range gaps(base) {
						switch longest := test.longest[i]; {
						case gap >= longest:
							t.Errorf("pause %d took %s, which is not below %s", i+1, gap, longest)
						case gap < longest/10:
							lower[i]++
						case gap > longest-longest/10:
							upper[i]++
						}
					}
				}
				// Of 300 pauses, 30 are expected; none come once in 10^13 runs.
				for i := range test.longest {
					if lower[i] == 0 || upper[i] == 0 {
						t.Errorf("pause %d: %d of 300 in its first tenth, %d in its last", i+1, lower[i], upper[i])
					}
				}
			})
		})
	}
}

func TestTransportWaitsForRetryAfter(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status  int
		header  func(now time.Time) string
		atLeast time.Duration
	}{
		"seconds":         {503, func(time.Time) string { return "7" }, 7 * time.Second},
		"of a 429":        {429, func(time.Time) string { return "7" }, 7 * time.Second},
		"of a 409":        {409, func(time.Time) string { return "7" }, 7 * time.Second},
		"beyond MaxDelay": {503, func(time.Time) string { return "30" }, 30 * time.Second},
		"date":            {503, func(now time.Time) string { return now.Add(7 * time.Second).UTC().Format(http.TimeFormat) }, 7 * time.Second},
		"past date":       {503, func(now time.Time) string { return now.Add(-time.Hour).UTC().Format(http.TimeFormat) }, 0},
		"zero":            {503, func(time.Time) string { return "0" }, 0},
		"no time":         {503, func(time.Time) string { return "soon" }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			apart := make(map[time.Duration]bool)
			for range 20 {
				// Its clock begins with a whole second, which is all that a date can say.
				synctest.Test(t, func(t *testing.T) {
					base := first(1, test.status, http.StatusOK, "Retry-After", test.header(time.Now()))
					wantStatus(t, &httpidem.Transport{Base: base}, post(t, testURL), http.StatusOK)
					wantTries(t, base, 2)
					gap := gaps(base)[0]
					if gap < test.atLeast || gap >= test.atLeast+100*time.Millisecond {
						t.Errorf("the pause took %s, want %s and less than 100ms", gap, test.atLeast)
					}
					apart[gap] = true
				})
			}
			if len(apart) < 2 {
				t.Error("all came back at once")
			}
		})
	}
}

// An answer that is given at once has its body; wantStatus reads it.
func TestTransportReturnsTheAnswerThatItCannotReplaceInTime(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		transport  *httpidem.Transport
		timeout    time.Duration
		status     int
		retryAfter string
		tries      int
		within     time.Duration
	}{
		"deadline":          {&httpidem.Transport{}, 5 * time.Second, 503, "6", 1, 0},
		"at the deadline":   {&httpidem.Transport{MinDelay: 1}, 5 * time.Second, 503, "5", 1, 0},
		"deadline, running": {&httpidem.Transport{}, 5 * time.Second, 409, "6", 1, 0},
		"later":             {&httpidem.Transport{}, 5 * time.Second, 503, "2", 3, 5 * time.Second},
		"default wait":      {&httpidem.Transport{}, 0, 503, "61", 1, 0},
		"default waits":     {&httpidem.Transport{MaxAttempts: 10}, 0, 503, "25", 3, time.Minute},
		"all of the wait":   {&httpidem.Transport{MaxAttempts: 10, MinDelay: 1, MaxDelay: 1}, 0, 503, "20", 4, time.Minute},
		"own wait":          {&httpidem.Transport{MaxWait: 10 * time.Second}, 0, 503, "11", 1, 0},
		"running":           {&httpidem.Transport{MinDelay: 1, MaxDelay: 1}, 0, 409, "1", 61, time.Minute},
		"no end of time":    {&httpidem.Transport{}, 0, 503, "99999999999999999999", 1, 0},
		"year 9999":         {&httpidem.Transport{}, 0, 503, "Fri, 31 Dec 9999 23:59:59 GMT", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				base, start := always(test.status, "Retry-After", test.retryAfter), time.Now()
				test.transport.Base = base
				request := post(t, testURL)
				if test.timeout > 0 {
					ctx, cancel := context.WithTimeout(t.Context(), test.timeout)
					defer cancel()
					request = request.WithContext(ctx)
				}
				wantStatus(t, test.transport, request, test.status)
				wantTries(t, base, test.tries)
				if took := time.Since(start); took > test.within {
					t.Errorf("took %s, more than %s", took, test.within)
				}
			})
		})
	}
}

func TestTransportReturnsTheErrorThatItCannotReplaceInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reset := errors.New("connection reset by peer")
		for range 100 {
			base := failing(reset)
			ctx, cancel := context.WithTimeout(t.Context(), time.Microsecond)
			start := time.Now()
			// A pause below a microsecond is not to be expected of an hour.
			transport := &httpidem.Transport{Base: base, MinDelay: time.Hour, MaxDelay: time.Hour, MaxWait: time.Hour}
			_, err := transport.RoundTrip(post(t, testURL).WithContext(ctx)) //nolint:bodyclose // There is none.
			cancel()
			if !errors.Is(err, reset) || time.Since(start) != 0 {
				t.Fatalf("got %v after %s", err, time.Since(start))
			}
			wantTries(t, base, 1)
		}
		base := failing(reset)
		_, err := (&httpidem.Transport{Base: base}).RoundTrip(post(t, testURL)) //nolint:bodyclose // There is none.
		if !errors.Is(err, reset) {
			t.Errorf("got %v, want the last error", err)
		}
		wantTries(t, base, 4)
	})
}

// A server that has no advice is asked less and less often, until MaxWait is over.
func TestTransportDoesNotStormARunningDuplicate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := always(http.StatusConflict, "Retry-After", "0")
		wantStatus(t, &httpidem.Transport{Base: base, MinDelay: 1}, post(t, testURL), http.StatusConflict)
		if n := base.count(); n > 200 {
			t.Errorf("%d tries in a minute", n)
		}
	})
}

func TestTransportWaitsForARunningDuplicate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &testBase{answer: func(try int, _ *http.Request) (*http.Response, error) {
			switch {
			case try <= 8:
				return testResponse(http.StatusConflict, "Retry-After", "1"), nil
			case try <= 11: // the three retries of four attempts
				return testResponse(http.StatusServiceUnavailable), nil
			}
			return testResponse(http.StatusConflict), nil
		}}
		// The budget has no more than these three either.
		wantStatus(t, &httpidem.Transport{Base: base, MaxDelay: time.Second, Budget: 3}, post(t, testURL), http.StatusConflict)
		wantTries(t, base, 12)
	})
}

func TestTransportEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("of one's own")
		base := always(http.StatusServiceUnavailable, "Retry-After", "30")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		start := time.Now()
		_, err := (&httpidem.Transport{Base: base}).RoundTrip(post(t, testURL).WithContext(ctx)) //nolint:bodyclose // There is none.
		if !errors.Is(err, cause) || time.Since(start) != time.Second {
			t.Errorf("got %v after %s, want the cause after 1s", err, time.Since(start))
		}
		wantTries(t, base, 1)

		// An answer that came all the same is the caller's.
		base = always(http.StatusServiceUnavailable)
		wantStatus(t, &httpidem.Transport{Base: base}, post(t, testURL).WithContext(ctx), http.StatusServiceUnavailable)
		wantTries(t, base, 1)
	})
}

func TestTransportAttempts(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]int{0: 4, 1: 1, 2: 2, 7: 7} {
		base := always(http.StatusServiceUnavailable)
		wantStatus(t, &httpidem.Transport{Base: base, MaxAttempts: attempts, MinDelay: 1}, post(t, testURL), http.StatusServiceUnavailable)
		wantTries(t, base, want)
	}
	for name, base := range map[string]*testBase{
		"a 409 that is an answer": always(http.StatusConflict),
		"a recorded 500":          always(http.StatusInternalServerError, "Idempotent-Replayed", "true"),
		"a 422":                   always(http.StatusUnprocessableEntity),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			response, err := (&httpidem.Transport{Base: base}).RoundTrip(post(t, testURL))
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			wantTries(t, base, 1)
		})
	}
}
