package pgxstore_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// restoreOrder returns the statements of the schema as pg_dump orders them:
// types and tables before the data, then what the data must meet, foreign keys last.
func restoreOrder(t *testing.T) (tables, constraints []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "migrations", "testdata", "schema.golden.sql"))
	if err != nil {
		t.Fatal(err)
	}
	var types, foreignKeys []string
	for statement := range strings.SplitSeq(string(text), ";\n") {
		switch {
		case strings.Contains(statement, "CREATE DOMAIN"):
			types = append(types, statement)
		case strings.Contains(statement, "CREATE TABLE"):
			tables = append(tables, statement)
		case strings.Contains(statement, "FOREIGN KEY"):
			foreignKeys = append(foreignKeys, statement)
		case strings.TrimSpace(statement) != "":
			constraints = append(constraints, statement)
		}
	}
	if len(tables) != 2 || len(foreignKeys) != 1 || len(constraints) == 0 {
		t.Fatalf("%d tables, %d foreign keys, %d others; want 2, 1 and some", len(tables), len(foreignKeys), len(constraints))
	}
	return append(types, tables...), append(constraints, foreignKeys...)
}

// copyOut returns the table's data as text, as pg_dump writes it.
func copyOut(t *testing.T, pool *pgxpool.Pool, table string) []byte {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var data bytes.Buffer
	if _, err := conn.Conn().PgConn().CopyTo(t.Context(), &data, "COPY "+table+" TO STDOUT"); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

func copyIn(t *testing.T, pool *pgxpool.Pool, table string, data []byte) error {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	_, err = conn.Conn().PgConn().CopyFrom(t.Context(), bytes.NewReader(data), "COPY "+table+" FROM STDIN")
	return err
}

// execAll executes the statements until one fails, and returns its error.
func execAll(t *testing.T, pool *pgxpool.Pool, statements ...string) error {
	t.Helper()
	for _, statement := range statements {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			return err
		}
	}
	return nil
}

// slipPast commits a key that was begun and not completed.
func slipPast(t *testing.T, b *bench.Bench, name string) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
		begin(t, b, tx, name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// bytesOf writes one effect and returns the answer as it is.
func bytesOf(name string, answer []byte) func(context.Context, pgx.Tx) ([]byte, error) {
	return func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return answer, bench.Effect(ctx, tx, name)
	}
}

func TestRestoredDump(t *testing.T) {
	t.Parallel()
	source := bench.New(t, pgtest.DB(t), nil, nil)
	// What COPY has to escape.
	answer := []byte("\x00\t\\N\n\\.\n\xff")
	first, err := idempotency.Do(t.Context(), source.Client, bench.Params("live"), bytesOf("live", answer))
	if err != nil {
		t.Fatal(err)
	}
	expired := bench.Params("expired")
	expired.TTL = time.Microsecond
	if _, err := idempotency.Do(t.Context(), source.Client, expired, bench.Charge("expired")); err != nil {
		t.Fatal(err)
	}
	tables, constraints := restoreOrder(t)

	pool := pgtest.Empty(t)
	if err := execAll(t, pool, append(tables, `CREATE TABLE effects (name text NOT NULL)`)...); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"idempotency_keys", "idempotency_unfinished", "effects"} {
		if err := copyIn(t, pool, table, copyOut(t, source.Pool, table)); err != nil {
			t.Fatal(err)
		}
	}
	if err := execAll(t, pool, constraints...); err != nil {
		t.Fatal(err)
	}
	b := bench.New(t, pool, nil, nil)
	replay, err := idempotency.Do(t.Context(), b.Client, bench.Params("live"), bytesOf("live", nil))
	if err != nil || !replay.Replayed || !bytes.Equal(replay.Value, answer) || b.Effects(t, "live") != 1 {
		t.Errorf("%+v, %v, %d effects; want a replay of %q", replay, err, b.Effects(t, "live"), answer)
	}
	if was, is := first.Record, replay.Record; is != nil && (is.ClaimID != was.ClaimID || is.Fingerprint != was.Fingerprint ||
		!is.CreatedAt.Equal(was.CreatedAt) || !is.ExpiresAt.Equal(was.ExpiresAt)) {
		t.Errorf("record %+v, want %+v", is, was)
	}
	if again, err := idempotency.Do(t.Context(), b.Client, expired, bench.Charge("expired")); err != nil || again.Replayed || b.Effects(t, "expired") != 2 {
		t.Errorf("%+v, %v, %d effects; want a second run, the answer has expired", again, err, b.Effects(t, "expired"))
	}
	err = pgx.BeginFunc(t.Context(), b.Pool, func(tx pgx.Tx) error {
		begin(t, b, tx, "forgotten")
		return bench.Effect(t.Context(), tx, "forgotten")
	})
	bench.WantPgError(t, err, "23503", guard)
	wantNothing(t, b, "forgotten")
}

func TestRestoreRefusesAnUnfinishedRow(t *testing.T) {
	t.Parallel()
	source := bench.New(t, pgtest.DB(t), nil, nil)
	slipPast(t, source, "k")
	tables, constraints := restoreOrder(t)
	data := copyOut(t, source.Pool, "idempotency_keys")

	t.Run("whole", func(t *testing.T) {
		t.Parallel()
		pool := pgtest.Empty(t)
		if err := execAll(t, pool, tables...); err != nil {
			t.Fatal(err)
		}
		if err := copyIn(t, pool, "idempotency_keys", data); err != nil {
			t.Fatal(err)
		}
		bench.WantPgError(t, execAll(t, pool, constraints...), "23503", guard)
	})
	t.Run("data only", func(t *testing.T) {
		t.Parallel()
		bench.WantPgError(t, copyIn(t, pgtest.DB(t), "idempotency_keys", data), "23503", guard)
	})
}

var repairCommand = regexp.MustCompile(`DELETE FROM .* id = \$2`)

// As pg_dump --data-only --disable-triggers restores, and as a replication role
// writes. The message must hold a command that repairs just this row.
func TestRowThatSlippedPastTheGuard(t *testing.T) {
	t.Parallel()
	source := bench.New(t, pgtest.DB(t), nil, nil)
	slipPast(t, source, "k")
	for _, name := range []string{"other", "k2"} {
		wantRun(t, source, name)
	}
	restored := bench.New(t, pgtest.DB(t), nil, nil)
	if err := execAll(t, restored.Pool, `ALTER TABLE idempotency_keys DISABLE TRIGGER ALL`); err != nil {
		t.Fatal(err)
	}
	if err := copyIn(t, restored.Pool, "idempotency_keys", copyOut(t, source.Pool, "idempotency_keys")); err != nil {
		t.Fatal(err)
	}
	if err := execAll(t, restored.Pool, `ALTER TABLE idempotency_keys ENABLE TRIGGER ALL`); err != nil {
		t.Fatal(err)
	}

	for name, b := range map[string]*bench.Bench{"replication role": source, "restore": restored} {
		calls := map[string]func(tx pgx.Tx) error{
			"Do": func(pgx.Tx) error {
				_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k"))
				return err
			},
			"DoTx": func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(t.Context(), b.Client, tx, bench.Params("k"), bench.Charge("k"))
				return err
			},
			"Begin": func(tx pgx.Tx) error {
				_, err := b.Client.WithTx(tx).Begin(t.Context(), bench.Params("k"))
				return err
			},
			"Begin with a lease": func(pgx.Tx) error {
				_, err := b.Store.Begin(t.Context(), &idempotency.BeginParams{
					Key: bench.Params("k").Key, Fingerprint: bench.Params("k").Fingerprint, TTL: time.Hour, Lease: time.Hour,
				})
				return err
			},
			"Get": func(pgx.Tx) error {
				_, err := b.Client.Get(t.Context(), bench.Params("k").Key)
				return err
			},
			"Get in a transaction": func(tx pgx.Tx) error {
				_, err := b.Client.WithTx(tx).Get(t.Context(), bench.Params("k").Key)
				return err
			},
		}
		var command string
		for call, fn := range calls {
			tx, err := b.Pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			err = fn(tx)
			if rollbackErr := tx.Rollback(t.Context()); rollbackErr != nil {
				t.Fatal(rollbackErr)
			}
			var keyErr *idempotency.KeyError
			if !errors.Is(err, idempotency.ErrUnfinished) || !errors.As(err, &keyErr) || keyErr.Key != bench.Params("k").Key {
				t.Errorf("%s, %s: %v, want ErrUnfinished with the key", name, call, err)
				continue
			}
			if command = repairCommand.FindString(err.Error()); command == "" {
				t.Errorf("%s, %s: no repair command in %v", name, call, err)
			}
		}
		if command == "" {
			t.Fatalf("%s: no repair command to try", name)
		}
		for _, want := range []int64{1, 0} {
			tag, err := b.Pool.Exec(t.Context(), command, bench.Params("k").Key.Scope, bench.Params("k").Key.ID)
			if err != nil || tag.RowsAffected() != want {
				t.Errorf("%s: %q deleted %d rows, %v; want %d", name, command, tag.RowsAffected(), err, want)
			}
		}
		wantRun(t, b, "k")
		// The same command leaves a finished key alone.
		if tag, err := b.Pool.Exec(t.Context(), command, bench.Params("k").Key.Scope, bench.Params("k").Key.ID); err != nil || tag.RowsAffected() != 0 {
			t.Errorf("%s: %q deleted %d finished keys, %v", name, command, tag.RowsAffected(), err)
		}
		for _, other := range []string{"other", "k2"} {
			if _, err := b.Client.Get(t.Context(), bench.Params(other).Key); err != nil {
				t.Errorf("%s, another key: %v", name, err)
			}
		}
	}
}
