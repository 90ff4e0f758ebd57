package txhelper

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Queue returns a Querier that adds to batch the one statement which a function
// that sqlc generated sends with it, and does not wait for the result. The
// function must return nothing but a pointer to a struct, for one row, or an
// error alone: the struct is filled when the batch's results are read. Then done
// is called with the statement's error, and what it returns is the batch's. A
// nil done returns it as it is.
func Queue(batch *pgx.Batch, done func(err error) error) Querier {
	return &queued{batch: batch, done: done}
}

// queued is the Querier of one statement and the row that it gives.
type queued struct {
	batch *pgx.Batch
	done  func(err error) error
	query *pgx.QueuedQuery
	dest  []any
}

func (q *queued) ended(err error) error {
	if q.done == nil {
		return err
	}
	return q.done(err)
}

func (q *queued) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	q.batch.Queue(sql, args...).Fn = q.readTag
	return pgconn.CommandTag{}, nil
}

func (q *queued) readTag(results pgx.BatchResults) error {
	_, err := results.Exec()
	return q.ended(err)
}

// Query is for the interface only: rows are read at once. See QueueStep.
func (q *queued) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return nil, errors.ErrUnsupported
}

func (q *queued) QueryRow(_ context.Context, sql string, args ...any) pgx.Row {
	q.query = q.batch.Queue(sql, args...)
	return q
}

// Scan keeps the places to scan into, which are in the struct that the generated
// function returns.
func (q *queued) Scan(dest ...any) error {
	q.dest = dest
	q.query.Fn = q.readRow
	return nil
}

func (q *queued) readRow(results pgx.BatchResults) error {
	return q.ended(results.QueryRow().Scan(q.dest...))
}

// QueueStep adds to batch the one statement that step sends, also where it reads
// many rows or counts them. step is called twice: at once, to learn the statement
// and its arguments, with a Querier whose results are errors; and when the
// batch's results are read, to read its own.
func QueueStep(batch *pgx.Batch, step func(q Querier) error) {
	var recorded recorder
	_ = step(&recorded) // its error is the recorder's own
	batch.Queue(recorded.sql, recorded.args...).Fn = func(results pgx.BatchResults) error {
		return step(reader{results})
	}
}

// Querier is what generated queries need of a connection or transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

var errRecording = errors.New("txhelper: statement is queued, not yet sent")

// recorder takes down a statement instead of sending it.
type recorder struct {
	sql  string
	args []any
}

func (r *recorder) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	r.sql, r.args = sql, args
	return pgconn.CommandTag{}, errRecording
}

func (r *recorder) Query(_ context.Context, sql string, args ...any) (pgx.Rows, error) {
	r.sql, r.args = sql, args
	return nil, errRecording
}

func (r *recorder) QueryRow(_ context.Context, sql string, args ...any) pgx.Row {
	r.sql, r.args = sql, args
	return errorRow{errRecording}
}

// reader answers a statement with the next result of a batch.
type reader struct{ results pgx.BatchResults }

func (r reader) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	return r.results.Exec()
}

func (r reader) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return r.results.Query() //nolint:rowserrcheck // The caller reads the rows.
}

func (r reader) QueryRow(context.Context, string, ...any) pgx.Row {
	return r.results.QueryRow()
}

type errorRow struct{ err error }

func (r errorRow) Scan(...any) error { return r.err }
