package httpidem_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// newPostgresAPI serves a handler whose keys are in PostgreSQL, beside a table of charges.
func newPostgresAPI(t *testing.T, pool *pgxpool.Pool, o options, handler http.HandlerFunc) *api {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `CREATE TABLE charges (reference text PRIMARY KEY, cents bigint NOT NULL DEFAULT 0,
		parent text REFERENCES charges DEFERRABLE INITIALLY DEFERRED)`); err != nil {
		t.Fatal(err)
	}
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(store, &o.client)
	if err != nil {
		t.Fatal(err)
	}
	o = o.filled()
	keys, err := httpidem.New(client, &o.config)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{T: t}
	a.serve(o, keys(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.runs.Add(1)
		handler(w, r)
	})))
	return a
}

// exec runs a statement in the handler's transaction, and answers 500 where it fails, as
// handlers do that know of no other run.
func exec(w http.ResponseWriter, r *http.Request, statement string, args ...any) bool {
	tx, ok := httpidem.Tx[pgx.Tx](r.Context())
	if !ok {
		http.Error(w, "no transaction", http.StatusInternalServerError)
		return false
	}
	if _, err := tx.Exec(r.Context(), statement, args...); err != nil {
		http.Error(w, "the statement has failed", http.StatusInternalServerError)
		return false
	}
	return true
}

func (a *api) wantCharges(pool *pgxpool.Pool, want int) {
	a.Helper()
	var count int
	if err := pool.QueryRow(a.Context(), "SELECT count(*) FROM charges").Scan(&count); err != nil || count != want {
		a.Errorf("%d charges, %v; want %d", count, err, want)
	}
}

// So many duplicates on a small pool: one run, one body.
func TestDuplicatesOnPostgres(t *testing.T) {
	t.Parallel()
	eachProtocol(t, func(o options) {
		t := o.t
		config := pgtest.Config(t)
		config.MaxConns = 4
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		o.config.Wait = time.Minute
		a := newPostgresAPI(t, pool, o, func(w http.ResponseWriter, r *http.Request) {
			if exec(w, r, "INSERT INTO charges VALUES ('a')") {
				w.WriteHeader(http.StatusCreated)
				_, _ = io.WriteString(w, "the only answer")
			}
		})
		duplicates := 1000
		if testing.Short() {
			duplicates = 200
		}
		var replays atomic.Int32
		var group sync.WaitGroup
		for range duplicates {
			group.Go(func() {
				got, err := a.do(a.request("k", "body"))
				if err != nil || got.StatusCode != http.StatusCreated || got.text != "the only answer" {
					t.Errorf("%+v, %v", got, err)
					return
				}
				if got.replayed() {
					replays.Add(1)
				}
			})
		}
		group.Wait()
		if a.runs.Load() != 1 || int(replays.Load()) != duplicates-1 {
			t.Errorf("%d runs and %d replays, want 1 and %d", a.runs.Load(), replays.Load(), duplicates-1)
		}
		a.wantCharges(pool, 1)
	})
}

// Two handlers deadlock. Both answer 201, since the one that PostgreSQL has chosen runs
// again, and nothing of its first run is in the answer.
func TestHandlersThatDeadlock(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	var ran sync.Map
	var meet sync.WaitGroup
	meet.Add(2)
	a := newPostgresAPI(t, pool, options{}, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) != 2 {
			t.Errorf("the body is %q: %v", body, err)
			return
		}
		if !exec(w, r, "UPDATE charges SET cents = cents + 1 WHERE reference = $1", string(body[:1])) {
			return
		}
		if w.Header().Get("X-Run") != "" {
			t.Error("the writer has a header of another run")
		}
		w.Header().Add("X-Run", "yes")
		if _, again := ran.LoadOrStore(string(body), true); !again {
			meet.Done()
			meet.Wait()
		}
		if exec(w, r, "UPDATE charges SET cents = cents + 1 WHERE reference = $1", string(body[1:])) {
			w.WriteHeader(http.StatusCreated)
		}
	})
	if _, err := pool.Exec(t.Context(), "INSERT INTO charges VALUES ('a'), ('b')"); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for _, body := range []string{"ab", "ba"} {
		group.Go(func() {
			got, err := a.do(a.request("k"+body, body))
			if err != nil || got.StatusCode != http.StatusCreated || len(got.Header["X-Run"]) != 1 {
				t.Errorf("%+v, %v; want 201 of one run", got, err)
			}
		})
	}
	group.Wait()
	var cents int
	if err := pool.QueryRow(t.Context(), "SELECT sum(cents) FROM charges").Scan(&cents); err != nil || cents != 4 {
		t.Errorf("%d cents, %v; want 4", cents, err)
	}
	if a.runs.Load() != 3 {
		t.Errorf("%d runs, want 3: nothing has deadlocked", a.runs.Load())
	}
}

// A success over a transaction that cannot commit is none.
func TestSuccessThatCannotCommit(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]http.HandlerFunc{
		"aborted by a statement": func(w http.ResponseWriter, r *http.Request) {
			tx, _ := httpidem.Tx[pgx.Tx](r.Context())
			_, _ = tx.Exec(r.Context(), "SELECT 1/0")
			w.WriteHeader(http.StatusCreated)
		},
		"a constraint that is deferred to the commit": func(w http.ResponseWriter, r *http.Request) {
			if exec(w, r, "INSERT INTO charges VALUES ('a', 1, 'no such charge')") {
				w.WriteHeader(http.StatusCreated)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.DB(t)
			a := newPostgresAPI(t, pool, options{}, handler)
			for range 2 {
				a.wantProblem(a.post("k", ""), http.StatusInternalServerError, httpidem.KindInternal)
			}
			if a.runs.Load() != 2 {
				t.Errorf("%d runs, want 2: the key was not free", a.runs.Load())
			}
			a.wantCharges(pool, 0)
		})
	}
}

// A handler that commits by itself has not had its work undone: that is told, and logged.
func TestHandlerThatCommitsBySQL(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusCreated, http.StatusPaymentRequired, http.StatusServiceUnavailable} {
		a := newPostgresAPI(t, pgtest.DB(t), options{}, func(w http.ResponseWriter, r *http.Request) {
			if exec(w, r, "INSERT INTO charges VALUES ('a')") && exec(w, r, "COMMIT") {
				w.WriteHeader(status)
			}
		})
		a.wantProblem(a.post("k", ""), http.StatusInternalServerError, httpidem.KindInternal)
	}
}

func TestServerIsAway(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	a := newPostgresAPI(t, pool, options{config: httpidem.Config{Optional: true}}, answerWith(201))
	pool.Close()
	for _, key := range []string{"k", ""} {
		got := a.post(key, "")
		a.wantProblem(got, http.StatusServiceUnavailable, httpidem.KindUnavailable)
		if got.Header.Get("Retry-After") == "" {
			t.Error("it does not say when to try again")
		}
	}
	a.want(0, 0)
}

// A server that takes no writes, as a standby, is one that is away.
func TestServerIsReadOnly(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	a := newPostgresAPI(t, pool, options{}, answerWith(201))
	if _, err := pool.Exec(t.Context(), "SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	got := a.post("k", "")
	a.wantProblem(got, http.StatusServiceUnavailable, httpidem.KindUnavailable)
	if got.Header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	if _, err := pool.Exec(t.Context(), "SET default_transaction_read_only = off"); err != nil {
		t.Fatal(err)
	}
	if got := a.post("k", ""); got.StatusCode != 201 || got.replayed() {
		t.Errorf("afterwards: %d %s", got.StatusCode, got.text)
	}
}

// The row of a key can be read by hand.
func TestRecordIsAMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	a := newPostgresAPI(t, pool, options{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Location", "/charges/1")
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprint(w, "é\r\n\r\nx")
	})
	first, again := a.post("k", ""), a.post("k", "")
	if first.text != "é\r\n\r\nx" || again.text != first.text || !again.replayed() {
		t.Errorf("%q and %q", first.text, again.text)
	}
	var text string
	const want = "HTTP/1.1 201 Created\r\nContent-Type: text/plain\r\nLocation: /charges/1\r\nContent-Length: 7\r\n\r\né\r\n\r\nx"
	if err := pool.QueryRow(t.Context(), "SELECT convert_from(response, 'UTF8') FROM idempotency_keys").Scan(&text); err != nil || text != want {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
}
