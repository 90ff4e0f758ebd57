package txhelper_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/txhelper"
)

// Two statements as sqlc writes them.
func addNote(ctx context.Context, q txhelper.Querier, note string) (string, error) {
	var added string
	err := q.QueryRow(ctx, "INSERT INTO notes VALUES ($1) RETURNING note || '!'", note).Scan(&added)
	return added, err
}

func deleteNotes(ctx context.Context, q txhelper.Querier, like string) (int64, error) {
	tag, err := q.Exec(ctx, "DELETE FROM notes WHERE note LIKE $1", like)
	return tag.RowsAffected(), err
}

func listNotes(ctx context.Context, q txhelper.Querier) ([]string, error) {
	rows, err := q.Query(ctx, "SELECT note FROM notes ORDER BY note")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

type note struct{ Text string }

// lastNote is what sqlc generates for a query of one row.
func lastNote(ctx context.Context, q txhelper.Querier, like ...string) (*note, error) {
	pattern := "%"
	if len(like) > 0 {
		pattern = like[0]
	}
	row := q.QueryRow(ctx, "SELECT note FROM notes WHERE note LIKE $1 ORDER BY note DESC LIMIT 1", pattern)
	var found note
	err := row.Scan(&found.Text)
	return &found, err
}

func TestQueue(t *testing.T) {
	t.Parallel()
	for _, mode := range bench.ExecModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(pgtest.URL(t))
			if err != nil {
				t.Fatal(err)
			}
			counter := &bench.QueryCounter{}
			config.ConnConfig.Tracer = counter
			config.ConnConfig.DefaultQueryExecMode = mode
			pool := bench.PoolWith(t, config)
			if _, err := pool.Exec(t.Context(), txSchema+`; INSERT INTO notes VALUES ('old 1'), ('old 2')`, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			var deleted int64
			var added string
			var notes []string
			batch := &pgx.Batch{}
			txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
				deleted, err = deleteNotes(t.Context(), q, "old %")
				return err
			})
			txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
				added, err = addNote(t.Context(), q, "new")
				return err
			})
			txhelper.QueueStep(batch, func(q txhelper.Querier) (err error) {
				notes, err = listNotes(t.Context(), q)
				return err
			})
			flights, statements := counter.Count(func() {
				if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
					t.Error(err)
				}
			})
			if flights != 1 || len(statements) != 3 {
				t.Errorf("%d flights of %q, want one of three statements", flights, statements)
			}
			if deleted != 2 || added != "new!" || fmt.Sprint(notes) != "[new]" {
				t.Errorf("results are %d, %q, %v, want 2, new!, [new]", deleted, added, notes)
			}

			batch = &pgx.Batch{}
			txhelper.QueueStep(batch, func(q txhelper.Querier) error {
				_, err := q.Exec(t.Context(), "SELECT 1/0")
				return err
			})
			bench.WantPgError(t, pool.SendBatch(t.Context(), batch).Close(), "22012", "")
			wantNotes(t, pool, 1)

			// A row that is filled when the results are read.
			batch = &pgx.Batch{}
			last, _ := lastNote(t.Context(), txhelper.Queue(batch, nil))
			var met error
			_, _ = lastNote(t.Context(), txhelper.Queue(batch, func(err error) error {
				met = err
				return nil
			}), "none")
			_, _ = txhelper.Queue(batch, nil).Exec(t.Context(), "DELETE FROM notes")
			if last.Text != "" {
				t.Errorf("a note before the batch was sent: %q", last.Text)
			}
			if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
				t.Error(err)
			}
			if last.Text != "new" || !errors.Is(met, pgx.ErrNoRows) {
				t.Errorf("last note is %q, the missing one %v, want new and no rows", last.Text, met)
			}
			wantNotes(t, pool, 0)
		})
	}
}
