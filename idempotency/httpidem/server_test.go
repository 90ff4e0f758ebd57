package httpidem_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) {
	// Tests make problems that a server logs.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	if flag.Parse(); flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(m.Run()) // a fuzzer needs no server, and leaves goroutines behind
	}
	pgtest.Main(m)
}

// api is a server over a real socket, whose keys are in memory.
type api struct {
	*testing.T
	server *httptest.Server
	// runs counts the runs of the handler, effects those whose work was committed.
	runs, effects atomic.Int32
}

// options are what a test changes. Zero values are those of most tests.
type options struct {
	t *testing.T
	// store is in the place of a memstore of its own.
	store  idempotency.TxStore[*memstore.Tx]
	client idempotency.Config
	config httpidem.Config
	// http2 serves HTTP/2 without TLS, which clients must know of.
	http2 bool
	// outside wraps the middleware.
	outside func(http.Handler) http.Handler
}

func (o options) filled() options {
	if o.config.Scope == nil {
		o.config.Scope = func(r *http.Request) string { return "tenant " + r.Header.Get("Tenant") }
	}
	if o.store == nil {
		o.store = memstore.New[*memstore.Tx](nil)
	}
	return o
}

// newAPI serves a handler, whose work is an effect that appears with its commit, by New.
func newAPI(t *testing.T, o options, handler http.HandlerFunc) *api {
	t.Helper()
	a := &api{T: t}
	o = o.filled()
	keys, err := httpidem.New(o.newClient(t), &o.config)
	if err != nil {
		t.Fatal(err)
	}
	a.serve(o, keys(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.runs.Add(1)
		if tx, ok := httpidem.Tx[*memstore.Tx](r.Context()); ok {
			tx.OnCommit(func() { a.effects.Add(1) })
		}
		handler(w, r)
	})))
	return a
}

// newHandleAPI is newAPI by Handle.
func newHandleAPI(t *testing.T, o options, handler httpidem.HandlerFunc[*memstore.Tx]) *api {
	t.Helper()
	a := &api{T: t}
	o = o.filled()
	served, err := httpidem.Handle(o.newClient(t), &o.config, func(w http.ResponseWriter, r *http.Request, tx *memstore.Tx) error {
		a.runs.Add(1)
		tx.OnCommit(func() { a.effects.Add(1) })
		return handler(w, r, tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	a.serve(o, served)
	return a
}

func (o options) newClient(t *testing.T) *idempotency.Client[*memstore.Tx] {
	t.Helper()
	client, err := idempotency.NewClient(o.filled().store, &o.client)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (a *api) serve(o options, handler http.Handler) {
	a.Helper()
	if o.outside != nil {
		handler = o.outside(handler)
	}
	a.server = httptest.NewUnstartedServer(handler)
	a.server.Config.ErrorLog = nil
	if o.http2 {
		protocols := &http.Protocols{}
		protocols.SetUnencryptedHTTP2(true)
		a.server.Config.Protocols = protocols
	}
	a.server.Start()
	if o.http2 {
		protocols := &http.Protocols{}
		protocols.SetUnencryptedHTTP2(true)
		a.server.Client().Transport = &http.Transport{Protocols: protocols}
	}
	a.Cleanup(a.server.Close)
}

// reply is an answer that has been read.
type reply struct {
	*http.Response
	text string
}

func (r *reply) replayed() bool { return r.Header.Get("Idempotent-Replayed") == "true" }

// kind is that of a problem, empty for another answer.
func (r *reply) kind() string {
	if r.Header.Get("Content-Type") != "application/problem+json" {
		return ""
	}
	_, kind, _ := strings.Cut(r.text, "docs/http.md#")
	kind, _, _ = strings.Cut(kind, `"`)
	return kind
}

// request makes a POST with a key; change may change it.
func (a *api) request(key, body string, change ...func(r *http.Request)) *http.Request {
	a.Helper()
	r, err := http.NewRequestWithContext(a.Context(), http.MethodPost, a.server.URL+"/charges", strings.NewReader(body))
	if err != nil {
		a.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for _, c := range change {
		c(r)
	}
	return r
}

// do sends a request and reads the answer.
func (a *api) do(r *http.Request) (*reply, error) {
	response, err := a.server.Client().Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return &reply{response, string(text)}, err
}

func (a *api) post(key, body string, change ...func(r *http.Request)) *reply {
	a.Helper()
	got, err := a.do(a.request(key, body, change...))
	if err != nil {
		a.Fatal(err)
	}
	return got
}

// want checks how often the handler has run, and how often its work was committed.
func (a *api) want(runs, effects int32) {
	a.Helper()
	if a.runs.Load() != runs || a.effects.Load() != effects {
		a.Errorf("%d runs and %d effects, want %d and %d", a.runs.Load(), a.effects.Load(), runs, effects)
	}
}

func (a *api) wantProblem(got *reply, status int, kind string) {
	a.Helper()
	if got.StatusCode != status || got.kind() != kind {
		a.Errorf("%d %q (%s), want the problem %d %q", got.StatusCode, got.kind(), got.text, status, kind)
	}
}

// eachProtocol runs a test over HTTP/1.1 and HTTP/2, as a subtest that is in its options.
func eachProtocol(t *testing.T, test func(o options)) {
	t.Helper()
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP 1.1", true: "HTTP 2"}[http2], func(t *testing.T) {
			t.Parallel()
			test(options{t: t, http2: http2})
		})
	}
}

// answerWith is a handler that answers with a status.
func answerWith(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "answer %d", status)
	}
}

func withContext(ctx context.Context) func(*http.Request) {
	return func(r *http.Request) { *r = *r.WithContext(ctx) }
}
