package httpidem_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// What a request may allocate beside what Do does. With Go 1.26 it is 44 and 22, and with
// the race detector up to two more.
const (
	maxFreshAllocs  = 48
	maxReplayAllocs = 26
)

func TestAllocations(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts for the whole process.
	client, err := idempotency.NewClient(memstore.New[int](nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	middleware, err := httpidem.New(client, &httpidem.Config{Scope: func(*http.Request) string { return "orders" }})
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"cents":500}`
	handler := middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = []string{"application/json"}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, body) // into memory
	}))
	const calls = 200
	for _, c := range []struct {
		name string
		key  func(call int) string
		most float64
	}{
		{"fresh", strconv.Itoa, maxFreshAllocs},
		{"replay", func(int) string { return "one" }, maxReplayAllocs},
	} {
		// Beforehand, as they allocate. AllocsPerRun makes one call more.
		requests, answers := make([]*http.Request, calls+1), make([]*httptest.ResponseRecorder, calls+1)
		for i := range requests {
			requests[i] = httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/orders", strings.NewReader(body))
			requests[i].Header.Set("Idempotency-Key", c.key(i))
			answers[i] = httptest.NewRecorder()
		}
		i := 0
		ours := testing.AllocsPerRun(calls, func() {
			handler.ServeHTTP(answers[i], requests[i])
			i++
		})
		i = 0
		byDo := testing.AllocsPerRun(calls, func() {
			if _, err := idempotency.Do(t.Context(), client, idempotency.Params{
				Key: idempotency.Key{Scope: "by Do", ID: requests[i].Header.Get("Idempotency-Key")}, Fingerprint: idempotency.FingerprintOf(body),
			}, func(context.Context, int) (*idempotency.Response, error) {
				return &idempotency.Response{Type: "http", Body: []byte(body)}, nil
			}); err != nil {
				t.Fatal(err)
			}
			i++
		})
		t.Logf("%s: %.0f allocations, %.0f by Do", c.name, ours, byDo)
		if got := answers[calls]; got.Code != http.StatusCreated || got.Body.String() != body || (got.Header().Get("Idempotent-Replayed") == "true") != (c.name == "replay") {
			t.Errorf("%s: %d %v %s", c.name, got.Code, got.Header(), got.Body)
		}
		if ours-byDo > c.most {
			t.Errorf("%s: %.0f allocations more than Do, want at most %.0f", c.name, ours-byDo, c.most)
		}
	}
}
