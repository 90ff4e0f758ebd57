// Package idempotencytest tests a handler of yours: it runs it while cutting its
// connection to PostgreSQL at every statement and around COMMIT, calls it again
// with the same key, and asserts one effect.
//
//	func TestCharge(t *testing.T) {
//		idempotencytest.Run(t, pool, idempotencytest.Operation{
//			New: func(_ *testing.T, pool *pgxpool.Pool) idempotencytest.Call {
//				service := payments.NewService(pool)
//				return func(ctx context.Context, key string) error {
//					return service.Charge(ctx, key, 500)
//				}
//			},
//			Effects: func(ctx context.Context, key string) (idempotencytest.Counts, error) {
//				var charges int
//				err := pool.QueryRow(ctx, `SELECT count(*) FROM charges WHERE request = $1`, key).Scan(&charges)
//				return idempotencytest.Counts{"charges": charges}, err
//			},
//		})
//	}
//
// The handler may be any code that takes an idempotency key and works through a
// pgxpool.Pool, with or without package idempotency.
//
// # What it proves
//
// For each statement that the handler sends, and so for its COMMIT, and for both
// of "the connection was lost before the server got it" and "the server has done
// it and the reply was lost": a call that was acknowledged has its effect at
// once, a client that calls again is answered within 5 seconds, and then and
// after one more call to another instance there is exactly one effect of each kind.
//
// # What it does not prove
//
//   - Calls follow one another: nothing is known of two at the same time.
//   - A connection is reset, once in a call. It does not fall silent, the server
//     does not crash, and the process lives.
//   - What is cut is the pool that New gets. A write through another pool, a
//     mail, a call of another service are never cut. A handler that sends nothing
//     through the pool fails the test, and so does one that was not seen to
//     commit there; one that only does some of its work elsewhere is not found out.
//   - Nothing waits for a key to expire. One that is kept for less time than the
//     test takes is found out at its end, one that is kept for an hour is not.
//   - It sees what Effects counts, not what was answered: whether the repeated
//     call got the same answer as the first is for Call to compare.
//
// It imports pgx and package testing, so import it in tests only.
package idempotencytest
