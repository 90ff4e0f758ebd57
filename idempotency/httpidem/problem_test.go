package httpidem_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// Every error of the client's is a problem, which tells nothing of the cause, the key and
// the request.
func TestProblemOfEachError(t *testing.T) {
	t.Parallel()
	const again = "1"
	for _, c := range []struct {
		err                    error
		status                 int
		kind                   string
		retryAfter, withoutKey string // Retry-After, if any
	}{
		{idempotency.ErrUnavailable, 503, httpidem.KindUnavailable, again, again},
		{idempotency.ErrOverloaded, 503, httpidem.KindUnavailable, again, again},
		{idempotency.ErrReadOnly, 503, httpidem.KindUnavailable, again, again},
		{idempotency.ErrSerializationFailure, 503, httpidem.KindUnavailable, again, again},
		{idempotency.ErrOutcomeUnknown, 503, httpidem.KindOutcomeUnknown, again, ""},
		{idempotency.ErrFingerprintMismatch, 422, httpidem.KindKeyReused, "", ""},
		{&idempotency.InProgressError{RetryAfter: time.Millisecond}, 409, httpidem.KindInProgress, again, again},
		{&idempotency.InProgressError{RetryAfter: 1001 * time.Millisecond}, 409, httpidem.KindInProgress, "2", "2"},
		{idempotency.ErrNested, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrInvalidParams, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrStepChanged, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrNeedsAttention, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrClaimLost, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrUnfinished, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrOwned, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrTxAborted, 500, httpidem.KindInternal, "", ""},
		{idempotency.ErrTxEnded, 500, httpidem.KindInternal, "", ""},
		{errors.New("a constraint"), 500, httpidem.KindInternal, "", ""},
	} {
		store := &storeDouble{Store: memstore.New[*memstore.Tx](nil), fail: func(context.Context) error { return fmt.Errorf("SECRET cause: %w", c.err) }}
		a := newAPI(t, options{store: store, config: httpidem.Config{Optional: true}}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Own", "SECRET header")
			w.WriteHeader(http.StatusCreated)
			_, _ = fmt.Fprint(w, "SECRET answer")
		})
		for key, retryAfter := range map[string]string{"SECRET-key": c.retryAfter, "": c.withoutKey} {
			got := a.post(key, "SECRET body", func(r *http.Request) {
				r.Header.Set("Tenant", "SECRET tenant")
				r.URL.RawQuery = "SECRET-query"
			})
			a.wantProblem(got, c.status, c.kind)
			if got.Header.Get("Retry-After") != retryAfter || got.replayed() {
				t.Errorf("%v, key %q: Retry-After is %q, want %q; replayed %t", c.err, key, got.Header.Get("Retry-After"), retryAfter, got.replayed())
			}
			if begun := store.last.Load(); begun != nil && strings.Contains(got.text, begun.Fingerprint.Text()) {
				t.Errorf("%v: the client was told the fingerprint: %s", c.err, got.text)
			}
			for _, told := range []string{got.text, fmt.Sprint(got.Header)} {
				if strings.Contains(told, "SECRET") || strings.Contains(told, c.err.Error()) {
					t.Errorf("%v: the client was told %s", c.err, told)
				}
			}
		}
		a.want(2, 0)
	}
}

// The time is up while the reply to the commit is awaited: nobody knows whether the work
// was done, and so it is not said.
func TestTimeoutOfACommit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err                    error
		kind                   string
		retryAfter, withoutKey string
	}{
		{idempotency.ErrOutcomeUnknown, httpidem.KindOutcomeUnknown, "1", ""},
		{idempotency.ErrUnavailable, httpidem.KindUnavailable, "1", "1"},
	} {
		store := &storeDouble{Store: memstore.New[*memstore.Tx](nil), fail: func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("%w: %w", c.err, ctx.Err())
		}}
		a := newAPI(t, options{store: store, config: httpidem.Config{Optional: true, Timeout: 10 * time.Millisecond}}, answerWith(201))
		for key, retryAfter := range map[string]string{"k": c.retryAfter, "": c.withoutKey} {
			got := a.post(key, "")
			a.wantProblem(got, http.StatusServiceUnavailable, c.kind)
			if got.Header.Get("Retry-After") != retryAfter {
				t.Errorf("%v, key %q: Retry-After is %q, want %q", c.err, key, got.Header.Get("Retry-After"), retryAfter)
			}
		}
	}
}

// One more duplicate than may wait is refused at once.
func TestOverloaded(t *testing.T) {
	t.Parallel()
	started, goOn := make(chan struct{}), make(chan struct{})
	a := newAPI(t, options{client: idempotency.Config{MaxWaiters: 1, Wait: time.Minute}}, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-goOn
		answerWith(201)(w, r)
	})
	answers := make(chan *reply)
	ask := func() {
		got, err := a.do(a.request("k", ""))
		if err != nil {
			t.Error(err)
			got = &reply{Response: &http.Response{}}
		}
		answers <- got
	}
	go ask()
	<-started
	// One of them watches the store, and one waits for it.
	for range 3 {
		go ask()
	}
	got := <-answers
	a.wantProblem(got, http.StatusServiceUnavailable, httpidem.KindUnavailable)
	close(goOn)
	for range 3 {
		if got := <-answers; got.StatusCode != 201 {
			t.Errorf("%d %s", got.StatusCode, got.text)
		}
	}
	a.want(1, 1)
}

// What the service's log is told of a bug, the client is not.
func TestCauseIsInTheLogOnly(t *testing.T) { //nolint:paralleltest // The log is the process's.
	var log bytes.Buffer
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	pool := pgtest.DB(t)
	a := newPostgresAPI(t, pool, options{config: httpidem.Config{Optional: true}}, func(w http.ResponseWriter, r *http.Request) {
		if exec(w, r, "INSERT INTO charges VALUES ('SECRET', 1, 'SECRET parent')") {
			w.WriteHeader(http.StatusCreated)
		}
	})
	for _, key := range []string{"SECRET-key", ""} {
		log.Reset()
		got := a.post(key, "SECRET body", func(r *http.Request) { r.URL.RawQuery = "SECRET-query" })
		a.wantProblem(got, http.StatusInternalServerError, httpidem.KindInternal)
		const cause = "charges_parent_fkey" // checked at the commit
		if !strings.Contains(log.String(), cause) || strings.Contains(got.text, cause) {
			t.Errorf("key %q: the cause is to be in the log alone: %s; the client was told %s", key, &log, got.text)
		}
		if strings.Contains(log.String(), "SECRET") || strings.Contains(got.text, "SECRET") {
			t.Errorf("key %q: the request is in the log or the answer: %s; %s", key, &log, got.text)
		}
	}
	a.wantCharges(pool, 0)
}

// TTL and Wait are those of the config, or else the client's.
func TestParamsOfAKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		config httpidem.Config
		want   time.Duration
	}{{httpidem.Config{}, time.Hour}, {httpidem.Config{TTL: time.Minute}, time.Minute}} {
		store := &storeDouble{Store: memstore.New[*memstore.Tx](nil)}
		a := newAPI(t, options{store: store, client: idempotency.Config{TTL: time.Hour}, config: c.config}, answerWith(201))
		a.post("k", "", func(r *http.Request) { r.Header.Set("Tenant", "a") })
		if got := store.last.Load(); got.TTL != c.want || got.Key != (idempotency.Key{Scope: "tenant a", ID: "k"}) {
			t.Errorf("the store was asked for %q of %q for %s, want %s", got.Key.ID, got.Key.Scope, got.TTL, c.want)
		}
	}
}
