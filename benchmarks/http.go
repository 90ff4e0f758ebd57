package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/httpidem"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// website is one place for the orders of a handler, and for its keys.
type website[TTx any] struct {
	name   string
	client *idempotency.Client[TTx]
	// order is the business write.
	order func(ctx context.Context, tx TTx, id string) error
	// orders and keys are how many there should be afterwards.
	orders, keys int
}

// measureHTTP compares httpidem with a handler that uses Do by hand, and with one that has
// no keys. The handlers are called in this process, without a connection.
func measureHTTP(ctx context.Context, s *server, opts *options) error {
	for _, workers := range opts.workers {
		for _, replays := range []bool{false, true} {
			if err := measureHTTPInMemory(ctx, opts, workers, replays); err != nil {
				return fmt.Errorf("memstore: %w", err)
			}
			if err := measureHTTPOnPostgres(ctx, s, opts, workers, replays); err != nil {
				return fmt.Errorf("PostgreSQL: %w", err)
			}
		}
	}
	return nil
}

func measureHTTPInMemory(ctx context.Context, opts *options, workers int, replays bool) error {
	store := memstore.New[int](nil)
	site := &website[int]{name: "memstore", order: func(context.Context, int, string) error { return nil }}
	var config idempotency.Config
	if !replays {
		// Without a sweep, what is measured is how long the garbage collector takes for
		// all keys there are.
		config.TTL = 100 * time.Millisecond
		var orders atomic.Int64
		site.order = func(ctx context.Context, _ int, _ string) (err error) {
			if orders.Add(1)%1000 == 0 {
				_, err = store.DeleteExpired(ctx, math.MaxInt32)
			}
			return err
		}
	}
	var err error
	if site.client, err = idempotency.NewClient(store, &config); err != nil {
		return err
	}
	return site.measure(ctx, opts, workers, replays)
}

func measureHTTPOnPostgres(ctx context.Context, s *server, opts *options, workers int, replays bool) (err error) {
	db, err := s.empty(ctx, "http")
	if err != nil {
		return err
	}
	pool, err := db.open(ctx, workers)
	if err != nil {
		return err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, db.left(context.WithoutCancel(ctx)))
	}()
	client, err := newClient(pool)
	if err != nil {
		return err
	}
	site := &website[pgx.Tx]{name: "PostgreSQL", client: client, order: order}
	if err := site.measure(ctx, opts, workers, replays); err != nil {
		return err
	}
	return errors.Join(checkCount(ctx, pool, "orders", site.orders), checkCount(ctx, pool, "idempotency_keys", site.keys))
}

func (s *website[TTx]) measure(ctx context.Context, opts *options, workers int, replays bool) error {
	keys, err := httpidem.New(s.client, &httpidem.Config{Scope: func(*http.Request) string { return scope }})
	if err != nil {
		return err
	}
	contestants := []*contestant{
		s.contestant("Do", http.HandlerFunc(s.overDo), workers),
		s.contestant("httpidem", keys(http.HandlerFunc(s.inTx)), workers),
		s.contestant("no key", http.HandlerFunc(s.withoutKey), workers),
	}
	about := "an order under a fresh key"
	if replays {
		about, contestants = "the recorded answer", contestants[:2]
		for _, c := range contestants {
			c.before = replayedIDs(opts)
			c.load.newID = oneOf(c.before)
			if err := answer(ctx, c.load.op, c.before); err != nil {
				return err
			}
		}
	}
	if err := takeTurns(ctx, opts, contestants); err != nil {
		return err
	}
	for i, c := range contestants {
		done := int(c.load.done.Load())
		if replays {
			done = len(c.before)
		}
		s.orders += done
		if i < 2 {
			s.keys += done
		}
	}
	fmt.Printf("\nhttp: %s, %s, %d workers\n", about, s.name, workers)
	if err := printSlots(contestants); err != nil {
		return err
	}
	printMore(contestants[1], contestants[0], workers)
	return nil
}

// printMore prints how much longer one request takes than with another contestant.
func printMore(c, other *contestant, workers int) {
	more := make([]float64, len(c.slots))
	for round, slot := range c.slots {
		more[round] = (1/slot.rate() - 1/other.slots[round].rate()) * float64(workers) * float64(time.Second/time.Microsecond)
	}
	fmt.Printf("one request: %s takes %s µs more than %s\n", c.peer.name, spreadOf(more), other.peer.name)
}

// contestant sends each id as the key and the body of an order.
func (s *website[TTx]) contestant(name string, handler http.Handler, workers int) *contestant {
	return &contestant{peer: &peer{name: name}, load: &load{newID: newID, workers: workers, backends: &backends{}, op: func(ctx context.Context, id string) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/orders", bytes.NewReader([]byte(id)))
		if err != nil {
			return err
		}
		r.Header.Set(httpidem.DefaultHeader, id)
		r.Header.Set("Content-Type", "text/plain")
		w := &received{header: make(http.Header)}
		handler.ServeHTTP(w, r)
		if w.status != http.StatusCreated {
			return fmt.Errorf("an order is answered %d: %s", w.status, w.body)
		}
		return checkResponse(id, w.body)
	}}}
}

// withoutKey does the order in a transaction.
func (s *website[TTx]) withoutKey(w http.ResponseWriter, r *http.Request) {
	id, err := readID(r)
	if err == nil {
		err = s.client.Transact(r.Context(), func(ctx context.Context, tx TTx) error { return s.order(ctx, tx, id) })
	}
	writeOrder(w, responseTo(id), err)
}

// overDo is what one writes without the middleware, but for the errors that are no 500.
func (s *website[TTx]) overDo(w http.ResponseWriter, r *http.Request) {
	id, err := readID(r)
	if err != nil {
		writeOrder(w, nil, err)
		return
	}
	result, err := idempotency.Do(r.Context(), s.client, idempotency.Params{
		Key:         idempotency.Key{Scope: scope + " over Do", ID: r.Header.Get(httpidem.DefaultHeader)},
		Fingerprint: idempotency.FingerprintOf(r.Method, r.URL.Path, id),
	}, func(ctx context.Context, tx TTx) ([]byte, error) { return responseTo(id), s.order(ctx, tx, id) })
	if result.Replayed {
		w.Header().Set(httpidem.DefaultReplayedHeader, "true")
	}
	writeOrder(w, result.Value, err)
}

// inTx is the handler inside the middleware.
func (s *website[TTx]) inTx(w http.ResponseWriter, r *http.Request) {
	tx, ok := httpidem.Tx[TTx](r.Context())
	if !ok {
		writeOrder(w, nil, errors.New("the handler has no transaction"))
		return
	}
	id, err := readID(r)
	if err == nil {
		err = s.order(r.Context(), tx, id)
	}
	writeOrder(w, responseTo(id), err)
}

func readID(r *http.Request) (string, error) {
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

func writeOrder(w http.ResponseWriter, body []byte, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(body) // received takes everything
}

// received is an answer in memory.
type received struct {
	header http.Header
	status int
	body   []byte
}

func (r *received) Header() http.Header    { return r.header }
func (r *received) WriteHeader(status int) { r.status = status }
func (r *received) Write(data []byte) (int, error) {
	r.body = append(r.body, data...)
	return len(data), nil
}
