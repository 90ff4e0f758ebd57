package pgxstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// What a call costs, in what does not depend on the machine. Whoever lowers a
// cost lowers its number here, so that it stays low.
const (
	// Bytes of WAL that a call writes for its key, without full-page images and
	// page splits. The same from PostgreSQL 14 to 18.
	maxDoWAL    = 591
	maxVerbsWAL = 849
	// Allocations of a call above those of pgx for the same statements.
	maxDoAllocs     = 40
	maxReplayAllocs = 33
	maxGetAllocs    = 6
	// What the race detector adds: a sync.Pool then loses some of what it gets.
	raceAllocs = 10
)

// countedID and countedScope have the length of what is usual.
const (
	countedScope = "POST /orders"
	countedID    = "%08d-0000-4000-8000-000000000000"
)

func countedParams(i int) idempotency.Params {
	id := fmt.Sprintf(countedID, i)
	return idempotency.Params{Key: idempotency.Key{Scope: countedScope, ID: id}, Fingerprint: idempotency.FingerprintOf(id)}
}

// countedResponse has the size of a short JSON document.
var countedResponse = []byte(strings.Repeat(".", 204))

func countedOperation(id string) func(context.Context, pgx.Tx) ([]byte, error) {
	return func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return countedResponse, bench.Effect(ctx, tx, id)
	}
}

// sentStatement is a statement as it was sent.
type sentStatement struct {
	sql  string
	args []any
}

// flightRecorder is a tracer that keeps what is sent, flight by flight.
type flightRecorder struct {
	mu      sync.Mutex
	flights [][]sentStatement
}

func (r *flightRecorder) add(flight ...sentStatement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flights = append(r.flights, flight)
}

func (r *flightRecorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.add(sentStatement{data.SQL, data.Args})
	return ctx
}

func (*flightRecorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (r *flightRecorder) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	var flight []sentStatement
	for _, query := range data.Batch.QueuedQueries {
		flight = append(flight, sentStatement{query.SQL, query.Arguments})
	}
	r.add(flight...)
	return ctx
}

func (*flightRecorder) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*flightRecorder) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// record returns the flights of fn.
func (r *flightRecorder) record(t *testing.T, fn func() error) [][]sentStatement {
	t.Helper()
	r.mu.Lock()
	r.flights = nil
	r.mu.Unlock()
	if err := fn(); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flights
}

// newRecordedBench returns a bench, and a recorder of what it sends.
func newRecordedBench(t *testing.T, config *idempotency.Config) (*bench.Bench, *flightRecorder) {
	t.Helper()
	return recordBench(t, pgtest.Config(t), config)
}

func recordBench(t *testing.T, poolConfig *pgxpool.Config, config *idempotency.Config) (*bench.Bench, *flightRecorder) {
	t.Helper()
	recorder := &flightRecorder{}
	poolConfig = poolConfig.Copy()
	poolConfig.ConnConfig.Tracer = recorder
	pool := bench.PoolWith(t, poolConfig)
	return bench.New(t, pool, nil, config), recorder
}

// inTx calls fn in a transaction of its caller's.
func inTx(ctx context.Context, b *bench.Bench, fn func(tx pgx.Tx, keys *idempotency.TxClient) error) error {
	return pgx.BeginFunc(ctx, b.Pool, func(tx pgx.Tx) error { return fn(tx, b.Client.WithTx(tx)) })
}

func TestFlightsAndStatements(t *testing.T) {
	t.Parallel()
	b, recorder := newRecordedBench(t, finalConfig())
	ctx := t.Context()
	do := func(i int) error {
		_, err := idempotency.Do(ctx, b.Client, countedParams(i), countedOperation("effect"))
		return err
	}
	doTx := func(i int) error {
		return inTx(ctx, b, func(tx pgx.Tx, _ *idempotency.TxClient) error {
			_, err := idempotency.DoTx(ctx, b.Client, tx, countedParams(i), countedOperation("effect"))
			return err
		})
	}
	final := func(i int) error {
		_, err := idempotency.Do(ctx, b.Client, countedParams(i), func(ctx context.Context, tx pgx.Tx) (string, error) {
			return "", errors.Join(bench.Effect(ctx, tx, "effect"), idempotency.Final(errClosed))
		})
		if !errors.Is(err, errClosed) {
			return fmt.Errorf("got %w, want the final error", err)
		}
		return nil
	}
	transact := func(int) error {
		return b.Client.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error { return bench.Effect(ctx, tx, "effect") })
	}
	withTx := func(i int) error { return beginAndComplete(ctx, b, i) }
	many := func(i int) error {
		return inTx(ctx, b, func(_ pgx.Tx, keys *idempotency.TxClient) error {
			params := make([]idempotency.Params, 100)
			for n := range params {
				params[n] = countedParams(100*i + n)
			}
			batch, err := keys.BeginMany(ctx, params)
			if err != nil {
				return err
			}
			for _, item := range batch.Items {
				item.Response = &idempotency.Response{Type: idempotency.TypeBytes, Body: countedResponse}
			}
			return batch.Complete(ctx)
		})
	}
	leased := func(i int) error {
		params := countedParams(i)
		outcome, err := b.Store.Begin(ctx, &idempotency.BeginParams{Key: params.Key, Fingerprint: params.Fingerprint, TTL: time.Hour, Lease: time.Hour})
		if err != nil {
			return err
		}
		claim, err := b.Store.Extend(ctx, outcome.Claim, time.Hour)
		if err != nil {
			return err
		}
		return b.Store.Release(ctx, claim)
	}
	external := func(i int) error {
		_, err := idempotency.DoExternal(ctx, b.Client, countedParams(i), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
			return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return "receipt", nil })
		}, func(ctx context.Context, tx pgx.Tx, receipt string) (string, error) {
			return receipt, bench.Effect(ctx, tx, "effect")
		})
		return err
	}

	for _, count := range []struct {
		name                string
		call                func(i int) error
		i                   int
		flights, statements int
	}{
		{"a fresh Do with one statement", do, 1, 3, 6},
		{"its replay", do, 1, 2, 4},
		{"Transact with one statement", transact, 1, 3, 4},
		{"a Do that ends in a final error", final, 2, 5, 10},
		{"its replay", final, 2, 2, 4},
		{"BEGIN, a fresh DoTx with one statement, COMMIT", doTx, 3, 7, 7},
		{"BEGIN, its replay, COMMIT", doTx, 3, 4, 4},
		{"BEGIN, Begin, one statement, Complete, COMMIT", withTx, 4, 5, 5},
		{"BEGIN, a replay by Begin, COMMIT", withTx, 4, 4, 4},
		{"BEGIN, BeginMany of 100, Complete, COMMIT", many, 5, 4, 10},
		{"BEGIN, a replay by BeginMany of 100, COMMIT", many, 5, 4, 10},
		{"a leased Begin, Extend, Release", leased, 6, 3, 3},
		{"a fresh DoExternal with a step and one statement", external, 7, 5, 10},
		{"its replay", external, 7, 2, 2},
		{"ListAbandoned", func(i int) error { _, err := b.Store.ListAbandoned(ctx, nil, i); return err }, 1, 1, 3},
		{"Get", func(i int) error { _, err := b.Client.Get(ctx, countedParams(i).Key); return err }, 1, 1, 1},
		{"DeleteExpired", func(i int) error { _, err := b.Client.DeleteExpired(ctx, i); return err }, 1, 1, 3},
	} {
		flights := recorder.record(t, func() error { return count.call(count.i) })
		var statements []string
		for _, flight := range flights {
			for _, statement := range flight {
				statements = append(statements, statement.sql)
			}
		}
		if len(flights) != count.flights || len(statements) != count.statements {
			t.Errorf("%s: %d flights, %d statements; want %d and %d\n%s", count.name,
				len(flights), len(statements), count.flights, count.statements, strings.Join(statements, "\n"))
		}
	}
}

// beginAndComplete is one operation by the verbs.
func beginAndComplete(ctx context.Context, b *bench.Bench, i int) error {
	return inTx(ctx, b, func(tx pgx.Tx, keys *idempotency.TxClient) error {
		outcome, err := keys.Begin(ctx, countedParams(i))
		if err != nil || outcome.State == idempotency.Completed {
			return err
		}
		if err := bench.Effect(ctx, tx, "effect"); err != nil {
			return err
		}
		_, err = keys.Complete(ctx, outcome.Claim, &idempotency.Response{Type: idempotency.TypeBytes, Body: countedResponse})
		return err
	})
}

// TestWAL counts what the statements of a call write, by having the server
// explain them: the count is of this session alone.
func TestWAL(t *testing.T) {
	t.Parallel()
	do := func(b *bench.Bench, i int) error {
		_, err := idempotency.Do(t.Context(), b.Client, countedParams(i), countedOperation("effect"))
		return err
	}
	verbs := func(b *bench.Bench, i int) error { return beginAndComplete(t.Context(), b, i) }
	for _, count := range []struct {
		name    string
		call    func(b *bench.Bench, i int) error
		again   bool
		largest int
	}{
		{"a fresh Do", do, false, maxDoWAL},
		{"a replay by Do", do, true, 0},
		{"Begin and Complete", verbs, false, maxVerbsWAL},
		{"a replay by Begin", verbs, true, 0},
	} {
		t.Run(count.name, func(t *testing.T) {
			t.Parallel()
			b, recorder := newRecordedBench(t, nil)
			if count.again {
				if err := count.call(b, 0); err != nil {
					t.Fatal(err)
				}
			}
			flights := recorder.record(t, func() error { return count.call(b, 0) })
			if !count.again {
				// Without the key, in a table that has others.
				if _, err := b.Pool.Exec(t.Context(), `TRUNCATE idempotency_keys`); err != nil {
					t.Fatal(err)
				}
				for i := range 20 {
					if err := count.call(b, i+1); err != nil {
						t.Fatal(err)
					}
				}
			}
			written := explainWAL(t, b, flights)
			t.Logf("%s: %d bytes of WAL", count.name, written)
			if written > count.largest {
				t.Errorf("%d bytes of WAL, want at most %d", written, count.largest)
			}
			if !count.again && written == 0 {
				t.Error("no WAL: what writes it was not explained")
			}
		})
	}
}

// explainWAL sends the flights again, in a transaction that is rolled back, and
// returns how much WAL their statements write, without those of the operation. A
// full-page image, which the first write after a checkpoint leaves, makes it try
// again.
func explainWAL(t *testing.T, b *bench.Bench, flights [][]sentStatement) int {
	t.Helper()
	least := math.MaxInt
	for tries, whole := 0, 0; whole < 5; tries++ {
		if tries == 1000 {
			t.Fatal("the server writes a full-page image each time")
		}
		tx, err := b.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var total walUsage
		explained := 0
		for _, statement := range slices.Concat(flights...) {
			switch sql := strings.ToLower(statement.sql); {
			case sql == "begin" || sql == "commit" || sql == "rollback":
			case strings.Contains(sql, "into effects"):
			default:
				used := explain(t, tx, statement)
				total.Bytes, total.Images = total.Bytes+used.Bytes, total.Images+used.Images
				explained++
			}
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if explained == 0 {
			t.Fatal("no statement was recorded")
		}
		if total.Images == 0 {
			least = min(least, total.Bytes)
			whole++
		}
	}
	return least
}

type walUsage struct {
	Bytes  int `json:"WAL Bytes"`
	Images int `json:"WAL FPI"`
}

func explain(t *testing.T, tx pgx.Tx, statement sentStatement) walUsage {
	t.Helper()
	var text []byte
	if err := tx.QueryRow(t.Context(), "EXPLAIN (ANALYZE, WAL, FORMAT JSON) "+statement.sql, statement.args...).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var plans []struct{ Plan walUsage }
	if err := json.Unmarshal(text, &plans); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan
}

// TestAllocations compares a call with its statements sent by hand.
func TestAllocations(t *testing.T) { //nolint:paralleltest // Other tests' allocations would be counted.
	const calls = 200
	config := pgtest.Config(t)
	recorded, recorder := recordBench(t, config, nil)
	// A tracer would allocate as well.
	pool := bench.PoolWith(t, config)
	b := bench.Open(t, pool, nil, nil)

	ctx, made := t.Context(), 0
	fresh := func() idempotency.Params {
		made++
		return countedParams(made)
	}
	completed := fresh()
	again := func() idempotency.Params { return completed }
	do := func(b *bench.Bench, params idempotency.Params) error {
		_, err := idempotency.Do(ctx, b.Client, params, countedOperation("effect"))
		return err
	}
	get := func(b *bench.Bench, params idempotency.Params) error {
		_, err := b.Client.Get(ctx, params.Key)
		return err
	}
	if err := do(b, completed); err != nil {
		t.Fatal(err)
	}

	for _, count := range []struct {
		name    string
		call    func(b *bench.Bench, params idempotency.Params) error
		params  func() idempotency.Params
		largest float64
	}{
		{"a fresh Do", do, fresh, maxDoAllocs},
		{"a replay by Do", do, again, maxReplayAllocs},
		{"Get", get, again, maxGetAllocs},
	} {
		first := count.params()
		flights := recorder.record(t, func() error { return count.call(recorded, first) })
		hand := newHand(t, pool, flights, first.Key.ID)
		allocations := func(call func(params idempotency.Params) error) float64 {
			// Beforehand, as they allocate. AllocsPerRun makes one call more.
			params := make([]idempotency.Params, calls+1)
			for i := range params {
				params[i] = count.params()
			}
			i := 0
			return testing.AllocsPerRun(calls, func() {
				if err := call(params[i]); err != nil {
					t.Fatal(err)
				}
				i++
			})
		}
		ours := allocations(func(params idempotency.Params) error { return count.call(b, params) })
		byHand := allocations(func(params idempotency.Params) error { return hand.send(ctx, params.Key.ID) })
		t.Logf("%s: %.0f allocations, %.0f by hand", count.name, ours, byHand)
		largest := count.largest
		if underRaceDetector() {
			largest += raceAllocs
		}
		if ours-byHand > largest {
			t.Errorf("%s: %.0f allocations, %.0f more than by hand; want at most %.0f more", count.name, ours, ours-byHand, largest)
		}
	}
}

func underRaceDetector() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// hand sends recorded flights again, under another id. What it allocates is
// pgx's own, and an interface for each argument: the variables for what comes
// back are there beforehand.
type hand struct {
	pool    *pgxpool.Pool
	flights [][]*handStatement
	id      string
}

type handStatement struct {
	sentStatement
	// scan reads the rows; nil where none comes back.
	scan func(rows pgx.Rows) error
}

func newHand(t *testing.T, pool *pgxpool.Pool, flights [][]sentStatement, id string) *hand {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	h := &hand{pool: pool, id: id}
	for _, flight := range flights {
		var statements []*handStatement
		for _, statement := range flight {
			description, err := conn.Conn().Prepare(t.Context(), "", statement.sql)
			if err != nil {
				t.Fatal(err)
			}
			described := &handStatement{sentStatement: statement}
			if len(description.Fields) > 0 {
				described.scan = scanInto(description.Fields)
			}
			statements = append(statements, described)
		}
		h.flights = append(h.flights, statements)
	}
	return h
}

func (h *hand) send(ctx context.Context, id string) error {
	conn, err := h.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	for _, flight := range h.flights {
		if len(flight) == 1 {
			err = flight[0].alone(ctx, conn, flight[0].argsFor(h.id, id))
		} else {
			batch := &pgx.Batch{}
			for _, statement := range flight {
				queued := batch.Queue(statement.sql, statement.argsFor(h.id, id)...)
				if statement.scan != nil {
					queued.Query(statement.scan)
				}
			}
			err = conn.SendBatch(ctx, batch).Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *handStatement) alone(ctx context.Context, conn *pgxpool.Conn, args []any) error {
	if s.scan == nil {
		_, err := conn.Exec(ctx, s.sql, args...)
		return err
	}
	rows, err := conn.Query(ctx, s.sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	return errors.Join(s.scan(rows), rows.Err())
}

// scanInto returns a function that reads rows into one set of variables.
func scanInto(fields []pgconn.FieldDescription) func(rows pgx.Rows) error {
	var variables []any
	for _, field := range fields {
		variables = append(variables, variableOf(field.DataTypeOID))
	}
	return func(rows pgx.Rows) error {
		for rows.Next() {
			if err := rows.Scan(variables...); err != nil {
				return err
			}
		}
		return rows.Err()
	}
}

// variableOf returns a new variable for a value, or a NULL, of this type.
func variableOf(column uint32) any {
	switch column {
	case pgtype.BoolOID:
		return new(pgtype.Bool)
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
		return new(pgtype.Int8)
	case pgtype.ByteaOID:
		return new([]byte)
	case pgtype.TimestamptzOID:
		return new(pgtype.Timestamptz)
	case pgtype.UUIDOID:
		return new(pgtype.UUID)
	default:
		return new(pgtype.Text)
	}
}

// argsFor returns the arguments with one id in place of another. Each is put
// into an interface anew, as it would be from a variable.
func (s *handStatement) argsFor(recorded, id string) []any {
	args := make([]any, len(s.args))
	for i, arg := range s.args {
		switch arg := arg.(type) {
		case string:
			if arg == recorded {
				arg = id
			}
			args[i] = arg
		case []byte:
			args[i] = arg
		case int16:
			args[i] = arg
		case int32:
			args[i] = arg
		case int64:
			args[i] = arg
		case bool:
			args[i] = arg
		case time.Duration:
			args[i] = arg
		case pgtype.UUID:
			args[i] = arg
		default: // a pointer, which an interface holds as it is
			args[i] = arg
		}
	}
	return args
}

func TestFlights(t *testing.T) {
	t.Parallel()
	counter := &bench.QueryCounter{}
	config := pgtest.Config(t)
	config.ConnConfig.Tracer = counter
	pool := bench.PoolWith(t, config)
	b := bench.New(t, pool, nil, nil)
	do := func(id string) func() {
		return func() {
			if _, err := idempotency.Do(t.Context(), b.Client, bench.Params(id), bench.Charge(id)); err != nil {
				t.Error(err)
			}
		}
	}
	do("warm up")()

	flights, statements := counter.Count(do("k"))
	if flights != 3 || len(statements) != 6 {
		t.Errorf("a fresh Do with 1 statement: %d flights, %d statements; want 3 and 6\n%s", flights, len(statements), strings.Join(statements, "\n"))
	}
	flights, statements = counter.Count(do("k"))
	if flights != 2 || statements[len(statements)-1] != "rollback" {
		t.Errorf("a replay: %d flights; want 2, the second the rollback\n%s", flights, strings.Join(statements, "\n"))
	}
	serializable := bench.New(t, pool, &pgxstore.Config{TxOptions: pgx.TxOptions{IsoLevel: pgx.Serializable}}, finalConfig())
	doSerializable := func(id string) func() {
		return func() {
			if _, err := idempotency.Do(t.Context(), serializable.Client, bench.Params(id), bench.Charge(id)); err != nil {
				t.Error(err)
			}
		}
	}
	doSerializable("warm up serializable")()
	if flights, _ = counter.Count(doSerializable("s")); flights != 4 {
		t.Errorf("a fresh Do at serializable: %d flights, want 4", flights)
	}
	if flights, _ = counter.Count(doSerializable("s")); flights != 1 {
		t.Errorf("a replay at serializable: %d flights, want 1", flights)
	}
	doFinal := func(id string) func() {
		return func() {
			_, err := idempotency.Do(t.Context(), serializable.Client, bench.Params(id), func(ctx context.Context, tx pgx.Tx) (string, error) {
				return "", errors.Join(bench.Effect(ctx, tx, id), idempotency.Final(errClosed))
			})
			if !errors.Is(err, errClosed) {
				t.Error(err)
			}
		}
	}
	if flights, _ = counter.Count(doFinal("final")); flights != 6 {
		t.Errorf("a final error at serializable: %d flights, want 6", flights)
	}
	flights, _ = counter.Count(func() {
		if _, err := b.Client.Get(t.Context(), bench.Params("k").Key); err != nil {
			t.Error(err)
		}
	})
	if flights != 1 {
		t.Errorf("Get: %d flights, want 1", flights)
	}
}

func TestReplayWritesNothing(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k")); err != nil {
		t.Fatal(err)
	}
	// One session that has assigned no transaction id: a replay in it must not
	// assign one, and without one nothing can have been written.
	conn, err := b.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	result, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("k"), bench.Charge("k"))
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := result.Answer(); err != nil || !answer.Replayed {
		t.Fatalf("%+v, %v; want a replay", answer, err)
	}
	var xid *string
	if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id_if_assigned()::text`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	if xid != nil {
		t.Errorf("the replay was assigned transaction id %s", *xid)
	}
}
