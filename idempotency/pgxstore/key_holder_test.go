package pgxstore_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// The query of docs/guarantees.md finds who holds the key that a log names.
func TestKeyInALogIsFoundInPgLocks(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(string(text), "```sql\n")
	query, _, found := strings.Cut(query, "```")
	const example = "0123456789abcdef"
	if !found || strings.Count(query, example) != 1 {
		t.Fatalf("docs/guarantees.md has no query with the digits %s: %q", example, query)
	}
	b := bench.New(t, pgtest.DB(t), nil, nil)
	holders := func(key idempotency.Key) (pids []uint32) {
		t.Helper()
		digits := strings.TrimPrefix(key.String(), "key:")
		rows, err := b.Pool.Query(t.Context(), "SELECT pid::bigint FROM ("+strings.TrimSuffix(strings.TrimSpace(strings.Replace(query, example, digits, 1)), ";")+") AS holders")
		if err != nil {
			t.Fatal(err)
		}
		if pids, err = pgx.CollectRows(rows, pgx.RowTo[uint32]); err != nil {
			t.Fatal(err)
		}
		return pids
	}
	_, err = idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
		if pids := holders(bench.Params("k").Key); len(pids) != 1 || pids[0] != tx.Conn().PgConn().PID() {
			t.Errorf("holders are %v, want %d", pids, tx.Conn().PgConn().PID())
		}
		if pids := holders(bench.Params("other").Key); len(pids) != 0 {
			t.Errorf("holders of another key are %v", pids)
		}
		return "k", nil
	})
	if err != nil {
		t.Error(err)
	}
	if pids := holders(bench.Params("k").Key); len(pids) != 0 {
		t.Errorf("after the call holders are %v", pids)
	}
}
