package frameworks

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/gofiber/fiber/v3"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/valyala/fasthttp"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // problems that tests make
	gin.SetMode(gin.ReleaseMode)
	gin.DefaultErrorWriter = io.Discard
	// From the first header on, fasthttp keeps the time for the others, for good: not a
	// goroutine that a test has left.
	_ = new(fasthttp.ResponseHeader).Header()
	pgtest.Main(m)
}

// mount is a function of this package, or a wrong one, that serves at the URL it returns.
type mount func(t *testing.T, keys func(http.Handler) http.Handler, charge Charge) (url string)

// frameworks are the right ones.
var frameworks = map[string]mount{
	"chi":   onNetHTTP(Chi),
	"gin":   onNetHTTP(Gin),
	"echo":  onNetHTTP(Echo),
	"fiber": onFiber(Fiber),
}

func onNetHTTP(handler func(func(http.Handler) http.Handler, Charge) http.Handler) mount {
	return func(t *testing.T, keys func(http.Handler) http.Handler, charge Charge) string {
		t.Helper()
		server := httptest.NewServer(handler(keys, charge))
		t.Cleanup(server.Close)
		return server.URL
	}
}

func onFiber(handler func(func(http.Handler) http.Handler, Charge) *fiber.App) mount {
	return func(t *testing.T, keys func(http.Handler) http.Handler, charge Charge) string {
		t.Helper()
		var config net.ListenConfig
		listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		app, ended := handler(keys, charge), make(chan error, 1)
		go func() { ended <- app.Listener(listener, fiber.ListenConfig{DisableStartupMessage: true}) }()
		t.Cleanup(func() {
			if err := errors.Join(app.Shutdown(), <-ended); err != nil {
				t.Error(err)
			}
		})
		return "http://" + listener.Addr().String()
	}
}

// api is a server whose charges are rows.
type api struct {
	*testing.T
	url    string
	client *http.Client
	pool   *pgxpool.Pool
	// runs counts those of the charge.
	runs atomic.Int32
}

// after is what goes on once the row of a charge is written; run counts from 1.
type after func(ctx context.Context, tx pgx.Tx, run int32) error

var errNoTx = errors.New("charge runs outside of the middleware")

func newAPI(t *testing.T, m mount, then after) *api {
	t.Helper()
	// Fiber's server ends only when all connections have.
	transport := &http.Transport{}
	a := &api{T: t, client: &http.Client{Transport: transport}, pool: pgtest.DB(t)}
	if _, err := a.pool.Exec(t.Context(), `CREATE TABLE charges (id bigint GENERATED ALWAYS AS IDENTITY, account text NOT NULL, cents bigint NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	store, err := pgxstore.New(a.pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := httpidem.New(client, &httpidem.Config{Scope: func(*http.Request) string { return "charges" }})
	if err != nil {
		t.Fatal(err)
	}
	a.url = m(t, keys, func(ctx context.Context, account string, cents int64) (id int64, err error) {
		run := a.runs.Add(1)
		tx, ok := httpidem.Tx[pgx.Tx](ctx)
		if !ok {
			return 0, errNoTx
		}
		if err := tx.QueryRow(ctx, `INSERT INTO charges (account, cents) VALUES ($1, $2) RETURNING id`, account, cents).Scan(&id); err != nil {
			return 0, err
		}
		return id, then(ctx, tx, run)
	})
	t.Cleanup(transport.CloseIdleConnections)
	return a
}

// reply is an answer that has been read.
type reply struct {
	status int
	header http.Header
	text   string
}

func (r *reply) replayed() bool { return r.header.Get("Idempotent-Replayed") == "true" }

func (a *api) post(key, body string) *reply {
	a.Helper()
	r, err := http.NewRequestWithContext(a.Context(), http.MethodPost, a.url+"/accounts/anna/charges", strings.NewReader(body))
	if err != nil {
		a.Fatal(err)
	}
	r.Header.Set("Idempotency-Key", key)
	r.Header.Set("Content-Type", "application/json")
	response, err := a.client.Do(r)
	if err != nil {
		a.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		a.Fatal(err)
	}
	return &reply{response.StatusCode, response.Header, string(text)}
}

// want checks the rows, each an account and cents, and how often the charge has run.
func (a *api) want(rows string, runs int32) {
	a.Helper()
	var got string
	if err := a.pool.QueryRow(a.Context(), `SELECT coalesce(string_agg(account || ' ' || cents, ', ' ORDER BY id), '') FROM charges`).Scan(&got); err != nil || got != rows {
		a.Errorf("the charges are %q, %v; want %q", got, err, rows)
	}
	if a.runs.Load() != runs {
		a.Errorf("%d runs, want %d", a.runs.Load(), runs)
	}
}

// wantKeys checks how many answers are recorded.
func (a *api) wantKeys(want int) {
	a.Helper()
	var got int
	if err := a.pool.QueryRow(a.Context(), "SELECT count(*) FROM idempotency_keys").Scan(&got); err != nil || got != want {
		a.Errorf("%d keys are recorded, %v; want %d", got, err, want)
	}
}

func books(context.Context, pgx.Tx, int32) error { return nil }

// once lets the first run alone go wrong.
func once(wrong after) after {
	return func(ctx context.Context, tx pgx.Tx, run int32) error {
		if run > 1 {
			return nil
		}
		return wrong(ctx, tx, run)
	}
}

// conflicts is a failure that another run gets over.
func conflicts(ctx context.Context, tx pgx.Tx, _ int32) error {
	_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`)
	return err
}

func TestFrameworks(t *testing.T) {
	t.Parallel()
	type step struct {
		body     string
		status   int
		replayed bool
	}
	const body, other = `{"cents":500}`, `{"cents":501}`
	for name, m := range frameworks {
		for _, c := range []struct {
			name  string
			then  after
			steps []step // under one key
			rows  string
			runs  int32
			keys  int
		}{
			{"a charge once", books, []step{{body, 201, false}, {body, 201, true}, {other, 422, false}, {body, 201, true}}, "anna 500", 1, 1},
			{"a body that is none", books, []step{{"no JSON", 400, false}, {"no JSON", 400, true}}, "", 0, 1},
			{
				"a refusal is recorded, its work undone", func(context.Context, pgx.Tx, int32) error { return ErrDeclined },
				[]step{{body, 402, false}, {body, 402, true}},
				"", 1, 1,
			},
			{
				"an error frees the key", once(func(context.Context, pgx.Tx, int32) error { return errors.New("no luck") }),
				[]step{{body, 500, false}, {other, 201, false}, {other, 201, true}},
				"anna 501", 2, 1,
			},
			{
				"a panic frees the key, and is recovered outside", once(func(context.Context, pgx.Tx, int32) error { panic("no luck") }),
				[]step{{body, 500, false}, {other, 201, false}, {other, 201, true}},
				"anna 501", 2, 1,
			},
			{
				"an error each time leaves nothing", func(context.Context, pgx.Tx, int32) error { return errors.New("no luck") },
				[]step{{body, 500, false}, {body, 500, false}},
				"", 2, 0,
			},
			{"a conflict is run again", once(conflicts), []step{{body, 201, false}, {body, 201, true}}, "anna 500", 2, 1},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				a := newAPI(t, m, c.then)
				last := ""
				for i, s := range c.steps {
					got := a.post("k", s.body)
					if got.status != s.status || got.replayed() != s.replayed {
						t.Errorf("request %d: %d, replayed %t: %s; want %d, %t", i+1, got.status, got.replayed(), got.text, s.status, s.replayed)
					}
					switch {
					case !s.replayed && got.status != http.StatusUnprocessableEntity:
						last = got.text
					case s.replayed && (got.text != last || last == ""):
						t.Errorf("request %d: the replay is %q, the answer was %q", i+1, got.text, last)
					}
				}
				a.want(c.rows, c.runs)
				a.wantKeys(c.keys)
			})
		}
	}
}

// Two handlers deadlock. Both answer 201, since the one that PostgreSQL has chosen runs
// again: as a whole, through the framework.
func TestFrameworksWithHandlersThatDeadlock(t *testing.T) {
	t.Parallel()
	for name, m := range frameworks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var meet sync.WaitGroup
			meet.Add(2)
			a := newAPI(t, m, func(ctx context.Context, tx pgx.Tx, run int32) error {
				const lock = "SELECT pg_advisory_xact_lock($1)"
				if run > 2 { // the one that runs again
					_, err := tx.Exec(ctx, lock, 1)
					return err
				}
				if _, err := tx.Exec(ctx, lock, run); err != nil {
					return err
				}
				meet.Done()
				meet.Wait()
				_, err := tx.Exec(ctx, lock, 3-run)
				return err
			})
			var group sync.WaitGroup
			for _, key := range []string{"k", "l"} {
				group.Go(func() {
					if got := a.post(key, `{"cents":500}`); got.status != http.StatusCreated {
						t.Errorf("%+v, want 201", got)
					}
				})
			}
			group.Wait()
			a.want("anna 500, anna 500", 3)
		})
	}
}
