package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// callerRow is a row of a callerTx.
type callerRow struct {
	row *sql.Row
	tx  *callerTx
}

func (r callerRow) Scan(dest ...any) error { return r.tx.explainSent(r.row.Scan(dest...)) }

type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }

// callerRows are rows of a callerTx, with what generated queries use of pgx.Rows.
type callerRows struct {
	rows *sql.Rows
	tx   *callerTx
}

func (r *callerRows) Next() bool             { return r.rows.Next() }
func (r *callerRows) Scan(dest ...any) error { return r.rows.Scan(dest...) }
func (r *callerRows) Err() error             { return r.tx.explainSent(r.rows.Err()) }
func (r *callerRows) Close()                 { _ = r.rows.Close() } // Err has it

func (r *callerRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (r *callerRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (r *callerRows) Values() ([]any, error)                       { return nil, errors.ErrUnsupported }
func (r *callerRows) RawValues() [][]byte                          { return nil }
func (r *callerRows) Conn() *pgx.Conn                              { return nil }
func (r *callerRows) TypeMap() *pgtype.Map                         { return nil }

// callerResults sends the statements of a batch as their results are read.
type callerResults struct {
	ctx     context.Context //nolint:containedctx // That of SendBatch, which pgx's results keep too.
	tx      *callerTx
	queries []*pgx.QueuedQuery
	err     error
}

var errNoMoreResults = errors.New("sqlstore: the batch has no more results")

func (r *callerResults) next() (*pgx.QueuedQuery, error) {
	if r.err != nil {
		return nil, r.err
	}
	if len(r.queries) == 0 {
		return nil, errNoMoreResults
	}
	query := r.queries[0]
	r.queries = r.queries[1:]
	return query, nil
}

func (r *callerResults) Exec() (pgconn.CommandTag, error) {
	query, err := r.next()
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return r.tx.Exec(r.ctx, query.SQL, query.Arguments...)
}

func (r *callerResults) Query() (pgx.Rows, error) {
	query, err := r.next()
	if err != nil {
		return nil, err
	}
	return r.tx.Query(r.ctx, query.SQL, query.Arguments...) //nolint:rowserrcheck // The caller reads the rows.
}

func (r *callerResults) QueryRow() pgx.Row {
	query, err := r.next()
	if err != nil {
		return failedRow{err}
	}
	return r.tx.QueryRow(r.ctx, query.SQL, query.Arguments...)
}

// Close sends what is left, and stops at the first error.
func (r *callerResults) Close() error {
	for r.err == nil && len(r.queries) > 0 {
		if fn := r.queries[0].Fn; fn != nil {
			r.err = fn(r)
		} else {
			_, r.err = r.Exec()
		}
	}
	return r.err
}

func (r *callerResults) Tx() pgx.Tx { return nil }
