package httpidem_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// outcomes are what becomes of the work and the key, by the status.
var outcomes = map[httpidem.Outcome][]int{
	httpidem.Commit:  {200, 201, 202, 206, 299, 301, 302, 303, 399},
	httpidem.Record:  {400, 402, 404, 405, 409, 410, 413, 422, 451},
	httpidem.Release: {401, 403, 407, 408, 421, 425, 429, 499, 500, 502, 503, 599, 600, 999},
}

func TestStatusDecides(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		a := newAPI(t, o, func(w http.ResponseWriter, r *http.Request) {
			var status int
			_, _ = fmt.Sscan(r.Header.Get("Want"), &status)
			answerWith(status)(w, r)
		})
		a.server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for outcome, statuses := range outcomes {
			for _, status := range statuses {
				runs, effects := a.runs.Load(), a.effects.Load()
				key := fmt.Sprint("status-", status)
				want := func(r *http.Request) { r.Header.Set("Want", fmt.Sprint(status)) }
				first, again := a.post(key, "", want), a.post(key, "", want)
				for _, got := range []*reply{first, again} {
					if got.StatusCode != status || got.text != fmt.Sprint("answer ", status) {
						t.Errorf("%d %q, want %d with its text", got.StatusCode, got.text, status)
					}
				}
				recorded := outcome != httpidem.Release
				if first.replayed() || again.replayed() != recorded {
					t.Errorf("%d was marked a replay: %t and %t, want false and %t", status, first.replayed(), again.replayed(), recorded)
				}
				wantRuns, wantEffects := int32(1), int32(0)
				if !recorded {
					wantRuns = 2
				}
				if outcome == httpidem.Commit {
					wantEffects = 1
				}
				if a.runs.Load()-runs != wantRuns || a.effects.Load()-effects != wantEffects {
					t.Errorf("%d: %d runs and %d effects, want %d and %d", status, a.runs.Load()-runs, a.effects.Load()-effects, wantRuns, wantEffects)
				}
			}
		}
	})
}

func TestRetryAfterFreesTheKey(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "1")
		answerWith(http.StatusConflict)(w, r)
	})
	for range 2 {
		if got := a.post("k", ""); got.StatusCode != http.StatusConflict || got.replayed() || got.Header.Get("Retry-After") != "1" {
			t.Errorf("%d, replayed %t", got.StatusCode, got.replayed())
		}
	}
	a.want(2, 0)
}

func TestSetOutcome(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status        int
		outcome       httpidem.Outcome
		runs, effects int32
	}{
		{404, httpidem.Commit, 1, 1}, {503, httpidem.Record, 1, 0}, {201, httpidem.Release, 2, 0}, {201, 0, 1, 1}, {201, 9, 1, 1},
	} {
		a := newAPI(t, options{}, func(w http.ResponseWriter, r *http.Request) {
			httpidem.SetOutcome(r.Context(), c.outcome)
			answerWith(c.status)(w, r)
		})
		a.post("k", "")
		if got := a.post("k", ""); got.StatusCode != c.status || got.replayed() != (c.runs == 1) {
			t.Errorf("%d, replayed %t, want %d", got.StatusCode, got.replayed(), c.status)
		}
		a.want(c.runs, c.effects)
	}
	httpidem.SetOutcome(t.Context(), httpidem.Commit) // outside of a handler
}

// What a handler does wrong undoes its work and frees the key.
func TestHandlersThatFail(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]httpidem.HandlerFunc[*memstore.Tx]{
		"wrote nothing": func(http.ResponseWriter, *http.Request, *memstore.Tx) error { return nil },
		"wrote less than its Content-Length": func(w http.ResponseWriter, _ *http.Request, _ *memstore.Tx) error {
			w.Header().Set("Content-Length", "5")
			_, err := io.WriteString(w, "four")
			return err
		},
		"wrote more than MaxBuffer": func(w http.ResponseWriter, _ *http.Request, _ *memstore.Tx) error {
			_, _ = w.Write(make([]byte, 1001))
			return nil
		},
		"switched protocols": func(w http.ResponseWriter, _ *http.Request, _ *memstore.Tx) error {
			w.WriteHeader(http.StatusSwitchingProtocols)
			return nil
		},
		"returned an error": func(w http.ResponseWriter, _ *http.Request, _ *memstore.Tx) error {
			w.WriteHeader(http.StatusCreated)
			return errors.New("a secret of ours")
		},
		"returned an error of another key": func(w http.ResponseWriter, _ *http.Request, _ *memstore.Tx) error {
			w.WriteHeader(http.StatusCreated)
			return &idempotency.InProgressError{RetryAfter: time.Second}
		},
		"committed": func(w http.ResponseWriter, r *http.Request, tx *memstore.Tx) error {
			_ = tx.Commit(r.Context())
			w.WriteHeader(http.StatusCreated)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newHandleAPI(t, options{config: httpidem.Config{MaxBuffer: 1000}}, handler)
			for range 2 {
				got := a.post("k", "")
				a.wantProblem(got, http.StatusInternalServerError, httpidem.KindInternal)
				if strings.Contains(got.text, "secret") {
					t.Error("the client was told the cause")
				}
			}
			a.want(2, 0)
		})
	}
}

func TestPanicsPassOn(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		var mu sync.Mutex
		var seen []any
		o.outside = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					seen = append(seen, recover())
					w.WriteHeader(http.StatusTeapot)
				}()
				next.ServeHTTP(w, r)
			})
		}
		a := newAPI(t, o, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusCreated)
			if r.Header.Get("Abort") != "" {
				panic(http.ErrAbortHandler)
			}
			panic("a bug")
		})
		for _, abort := range []string{"", "yes"} {
			if got := a.post("k", "", func(r *http.Request) { r.Header.Set("Abort", abort) }); got.StatusCode != http.StatusTeapot {
				t.Errorf("%d, want what the middleware outside has answered", got.StatusCode)
			}
		}
		a.want(2, 0)
		if !slices.Equal(seen, []any{"a bug", http.ErrAbortHandler}) {
			t.Errorf("outside came %v", seen)
		}
	})
}

func TestMethods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, key string
		optional    bool
		status      int
		effects     int32 // of two requests, and runs
	}{
		{http.MethodPost, "k", false, 201, 1},
		{http.MethodPost, "", false, 400, 0},
		{http.MethodPatch, "", false, 400, 0},
		{http.MethodPost, "", true, 201, 2},
		{http.MethodPut, "", false, 201, 2},
		{http.MethodPut, "k", false, 201, 1},
		{http.MethodDelete, "k", false, 201, 1},
		{http.MethodPut, "a key", false, 400, 0},
		{http.MethodPost, "a key", true, 400, 0},
	} {
		t.Run(fmt.Sprint(c.method, " ", c.key, " ", c.optional), func(t *testing.T) {
			t.Parallel()
			o := options{config: httpidem.Config{Optional: c.optional}}
			for _, a := range []*api{
				newAPI(t, o, answerWith(201)),
				newHandleAPI(t, o, func(w http.ResponseWriter, r *http.Request, _ *memstore.Tx) error {
					answerWith(201)(w, r)
					return nil
				}),
			} {
				for range 2 {
					if got := a.post(c.key, "", func(r *http.Request) { r.Method = c.method }); got.StatusCode != c.status {
						t.Errorf("%d (%s), want %d", got.StatusCode, got.text, c.status)
					}
				}
				a.want(c.effects, c.effects)
			}
		})
	}
}

// Without a key an answer that is no success undoes the work too.
func TestRefusalWithoutAKey(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{config: httpidem.Config{Optional: true}}, answerWith(http.StatusPaymentRequired))
	if got := a.post("", ""); got.StatusCode != http.StatusPaymentRequired || got.text != "answer 402" {
		t.Errorf("%d %q", got.StatusCode, got.text)
	}
	a.want(1, 0)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{}, answerWith(201))
	longest := strings.Repeat("x", 255)
	for _, key := range []string{
		"abc", `"abc"`, ` "abc" `, "1795562341075872049_6wruOg", "stripe-node-retry-6f0c1a7e-1f0e-4f0b-9d62-1f7d4f3c1d11", longest, `"` + longest + `"`, "!#$%&'()*+-./:<=>?@[]^_`{|}~",
	} {
		if got := a.post(key, ""); got.StatusCode != 201 {
			t.Errorf("key %q: %d %s", key, got.StatusCode, got.text)
		}
	}
	a.want(5, 5) // quotes make no other key
	for _, key := range []string{
		`""`, `"`, `"abc`, `abc"`, "a b", "a,b", "a;b", `a\b`, `"a\"b"`, `"a";v=1`, "é", "a\tb", longest + "x", `"` + longest + `x"`, `"a", "b"`, "'a b'",
	} {
		a.wantProblem(a.post(key, ""), http.StatusBadRequest, httpidem.KindKeyInvalid)
	}
	a.wantProblem(a.post("", "", func(r *http.Request) { r.Header["Idempotency-Key"] = []string{""} }), http.StatusBadRequest, httpidem.KindKeyInvalid)
	a.wantProblem(a.post("", "", func(r *http.Request) { r.Header["Idempotency-Key"] = []string{"a", "a"} }), http.StatusBadRequest, httpidem.KindKeyInvalid)
	a.wantProblem(a.post("", ""), http.StatusBadRequest, httpidem.KindKeyMissing)
	a.want(5, 5)
}

func TestScopes(t *testing.T) {
	t.Parallel()
	a := newAPI(t, options{config: httpidem.Config{Scope: func(r *http.Request) string { return r.Header.Get("Tenant") }}}, answerWith(201))
	of := func(tenant string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Tenant", tenant) }
	}
	for _, tenant := range []string{"a", "b", "a", "b"} {
		a.post("k", "the body of "+tenant, of(tenant))
	}
	a.want(2, 2)
	a.wantProblem(a.post("k", "", of("")), http.StatusInternalServerError, httpidem.KindInternal)
	a.want(2, 2)
}

func TestAnotherRequestIsRefused(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		a := newAPI(t, o, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a secret of the first") })
		header := func(name, value string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set(name, value) }
		}
		first := a.post("k", "body", header("User-Agent", "one"))
		if again := a.post("k", "body", header("User-Agent", "two")); !again.replayed() || again.text != first.text {
			t.Errorf("another header: %d %q", again.StatusCode, again.text)
		}
		for name, change := range map[string]func(*http.Request){
			"method":           func(r *http.Request) { r.Method = http.MethodPatch },
			"path":             func(r *http.Request) { r.URL.Path = "/charges/" },
			"escaped path":     func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/charges", "/charge%73" },
			"query":            func(r *http.Request) { r.URL.RawQuery = "a=1" },
			"Content-Type":     header("Content-Type", "text/plain"),
			"Content-Encoding": header("Content-Encoding", "gzip"),
			"body":             func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("bodY")), 4 },
		} {
			got := a.post("k", "body", change)
			a.wantProblem(got, http.StatusUnprocessableEntity, httpidem.KindKeyReused)
			if strings.Contains(got.text, "secret") || got.replayed() {
				t.Errorf("another %s: it was told of the first request", name)
			}
		}
		a.want(1, 1)
	})
}

func TestRunningRequest(t *testing.T) {
	t.Parallel()
	started, goOn := make(chan struct{}), make(chan struct{})
	a := newAPI(t, options{config: httpidem.Config{Wait: idempotency.NoWait}}, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-goOn
		answerWith(201)(w, r)
	})
	first := make(chan *reply)
	go func() {
		got, err := a.do(a.request("k", "body"))
		if err != nil {
			t.Error(err)
		}
		first <- got
	}()
	<-started
	for _, body := range []string{"body", "another body"} {
		got := a.post("k", body)
		a.wantProblem(got, http.StatusConflict, httpidem.KindInProgress)
		if got.Header.Get("Retry-After") == "" || got.replayed() {
			t.Errorf("%v: it does not say when to try again, or is marked a replay", got.Header)
		}
	}
	close(goOn)
	if got := <-first; got == nil || got.StatusCode != 201 {
		t.Errorf("%+v", got)
	}
	a.want(1, 1)
}

// The client goes away while its request is at work, and asks again.
func TestClientThatGivesUp(t *testing.T) {
	t.Parallel()
	for _, stop := range []bool{false, true} {
		t.Run(fmt.Sprint("StopWithClient ", stop), func(t *testing.T) {
			t.Parallel()
			eachProtocol(t, func(o options) {
				t := o.t
				o.config.StopWithClient = stop
				started, ended := make(chan struct{}, 2), make(chan error, 2)
				requests := make(chan context.Context, 2)
				o.outside = func(next http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						requests <- r.Context()
						next.ServeHTTP(w, r)
					})
				}
				a := newAPI(t, o, func(w http.ResponseWriter, r *http.Request) {
					request := <-requests
					started <- struct{}{}
					if r.Header.Get("First") != "" {
						<-request.Done()
						// It returns when those that stem from it have ended too.
						_ = context.Cause(request) //nolint:contextcheck // That of the server.
					}
					ended <- r.Context().Err()
					if r.Context().Err() != nil {
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					}
					answerWith(201)(w, r)
				})
				ctx, cancel := context.WithCancel(t.Context())
				given := make(chan error)
				go func() {
					_, err := a.do(a.request("k", "", withContext(ctx), func(r *http.Request) { r.Header.Set("First", "yes") })) //nolint:contextcheck // It has it.
					given <- err
				}()
				<-started
				cancel()
				if err := <-given; !errors.Is(err, context.Canceled) {
					t.Errorf("the first try: %v", err)
				}
				if err := <-ended; (err != nil) != stop {
					t.Errorf("the handler's context: %v, want it to end: %t", err, stop)
				}
				if got := a.post("k", ""); got.StatusCode != 201 || got.replayed() == stop {
					t.Errorf("%d, replayed %t, want 201, and a replay unless the work was stopped", got.StatusCode, got.replayed())
				}
				if runs := a.runs.Load(); (runs == 2) != stop || a.effects.Load() != 1 {
					t.Errorf("%d runs and %d effects", runs, a.effects.Load())
				}
			})
		})
	}
}

func TestDuplicatesRunOnce(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		const duplicates = 200
		a := newAPI(t, o, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, "run %d of %s", 1, body)
		})
		var group sync.WaitGroup
		for range duplicates {
			group.Go(func() {
				got, err := a.do(a.request("k", "the body"))
				if err != nil || got.StatusCode != 200 || got.text != "run 1 of the body" {
					t.Errorf("%+v, %v", got, err)
				}
			})
		}
		group.Wait()
		a.want(1, 1)
	})
}

// A value that is no outcome is the service's mistake, and commits nothing.
func TestOutcomeThatIsNone(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"k", ""} {
		a := newAPI(t, options{config: httpidem.Config{Optional: true, Outcome: func(status int, _ http.Header) httpidem.Outcome {
			return map[int]httpidem.Outcome{201: httpidem.Commit}[status]
		}}}, answerWith(500))
		a.wantProblem(a.post(key, ""), http.StatusInternalServerError, httpidem.KindInternal)
		a.want(1, 0)
	}
}

// The time is up while another request is at work.
func TestTimeoutOfAWait(t *testing.T) {
	t.Parallel()
	started, goOn := make(chan struct{}), make(chan struct{})
	client := options{}.newClient(t)
	config := httpidem.Config{Scope: func(*http.Request) string { return "scope" }}
	slow, err := httpidem.New(client, &config)
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout, config.Wait = 20*time.Millisecond, time.Minute
	quick, err := httpidem.New(client, &config)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{T: t}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-goOn
		answerWith(201)(w, r)
	})
	a.serve(options{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Quick") != "" {
			quick(handler).ServeHTTP(w, r)
			return
		}
		slow(handler).ServeHTTP(w, r)
	}))
	first := make(chan error)
	go func() {
		_, err := a.do(a.request("k", ""))
		first <- err
	}()
	<-started
	a.wantProblem(a.post("k", "", func(r *http.Request) { r.Header.Set("Quick", "yes") }), http.StatusServiceUnavailable, httpidem.KindUnavailable)
	close(goOn)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	a := newHandleAPI(t, options{config: httpidem.Config{Timeout: 20 * time.Millisecond}}, func(_ http.ResponseWriter, r *http.Request, _ *memstore.Tx) error {
		<-r.Context().Done()
		return r.Context().Err()
	})
	a.wantProblem(a.post("k", ""), http.StatusInternalServerError, httpidem.KindInternal)
	a.want(1, 0)
}

func TestNewRefusesConfigsThatCannotWork(t *testing.T) {
	t.Parallel()
	client := options{}.newClient(t)
	scope := func(*http.Request) string { return "scope" }
	for name, config := range map[string]*httpidem.Config{
		"nil": nil, "no scope": {},
		"header":   {Scope: scope, Header: "a b"},
		"marker":   {Scope: scope, ReplayedHeader: "a:b"},
		"body":     {Scope: scope, MaxBody: -1},
		"bodies":   {Scope: scope, MaxBody: 101, MaxBodies: 100},
		"TTL":      {Scope: scope, TTL: 1},
		"wait":     {Scope: scope, Wait: -5},
		"timeout":  {Scope: scope, Timeout: -1},
		"cookie":   {Scope: scope, Headers: []string{"set-cookie"}},
		"secret":   {Scope: scope, Headers: []string{"X-Own", "WWW-Authenticate"}},
		"length":   {Scope: scope, Headers: []string{"content-length"}},
		"no token": {Scope: scope, Headers: []string{"a\nb"}},
		"itself":   {Scope: scope, Headers: []string{"Idempotent-Replayed"}},
	} {
		if _, err := httpidem.New(client, config); !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("%s: New returned %v", name, err)
		}
		if _, err := httpidem.Handle(client, config, func(http.ResponseWriter, *http.Request, *memstore.Tx) error { return nil }); !errors.Is(err, idempotency.ErrInvalidParams) {
			t.Errorf("%s: Handle returned %v", name, err)
		}
	}
	if _, err := httpidem.New[*memstore.Tx](nil, &httpidem.Config{Scope: scope}); !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("without a client: %v", err)
	}
	if _, err := httpidem.Handle(client, &httpidem.Config{Scope: scope}, nil); !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("without a handler: %v", err)
	}
}

// A server may write the next request over the text of this one, as fasthttp's does.
func TestTextOfARequestIsNotKept(t *testing.T) {
	t.Parallel()
	key, tenant := []byte("key-1"), []byte("tenant-1")
	keys, err := httpidem.New(options{}.newClient(t), &httpidem.Config{Scope: func(r *http.Request) string { return r.Header.Get("Tenant") }})
	if err != nil {
		t.Fatal(err)
	}
	post := func(key, tenant string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/charges", strings.NewReader("body"))
		r.Header["Idempotency-Key"], r.Header["Tenant"] = []string{key}, []string{tenant}
		w := httptest.NewRecorder()
		keys(answerWith(201)).ServeHTTP(w, r)
		return w
	}
	post(unsafe.String(&key[0], len(key)), unsafe.String(&tenant[0], len(tenant)))
	copy(key, "xxxxx")
	copy(tenant, "xxxxxxxx")
	if w := post("key-1", "tenant-1"); w.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("%d %v, want a replay", w.Code, w.Header())
	}
}
