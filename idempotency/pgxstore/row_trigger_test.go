package pgxstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
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
			b := bench.New(t, pgtest.DB(t), nil, nil)
			if test.expired {
				expiring := bench.Params("k")
				expiring.TTL = time.Microsecond
				if _, err := idempotency.Do(t.Context(), b.Client, expiring, bench.Charge("before")); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.Pool.Exec(t.Context(), test.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			runs := 0
			_, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), func(ctx context.Context, tx pgx.Tx) (string, error) {
				runs++
				return "k", bench.Effect(ctx, tx, "k")
			})
			if !errors.Is(err, pgxstore.ErrRowSuppressed) || runs != 1 {
				t.Errorf("%v after %d runs, want ErrRowSuppressed after 1", err, runs)
			}
			if n := b.Effects(t, "k"); n != 0 {
				t.Errorf("%d effects without a key", n)
			}
		})
	}
}
