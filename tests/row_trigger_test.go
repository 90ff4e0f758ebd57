package tests_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// A trigger that returns NULL, as one that freezes or moves rows does, writes no
// row and raises no error: COMMIT behind our statement would keep the effect
// without its key.
func TestRowThatIsNotWrittenCommitsNothing(t *testing.T) {
	t.Parallel()
	const suppress = `
		CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';`
	for name, test := range map[string]struct {
		sql     string
		expired bool
	}{
		"trigger before insert": {
			sql: suppress + `CREATE TRIGGER suppress BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress()`,
		},
		"trigger before update": {
			sql:     suppress + `CREATE TRIGGER suppress BEFORE UPDATE ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION suppress()`,
			expired: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pgtest.DB(t), nil, nil)
			if test.expired {
				expiring := params("k")
				expiring.TTL = time.Microsecond
				if _, err := idempotency.Do(t.Context(), b.client, expiring, charge("before")); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.pool.Exec(t.Context(), test.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			runs := 0
			_, err := idempotency.Do(t.Context(), b.client, params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				return "k", effect(ctx, tx, "k")
			})
			if !errors.Is(err, pgxstore.ErrRowSuppressed) || runs != 1 {
				t.Errorf("%v after %d runs, want ErrRowSuppressed after 1", err, runs)
			}
			if n := b.effects(t, "k"); n != 0 {
				t.Errorf("%d effects without a key", n)
			}
		})
	}
}
