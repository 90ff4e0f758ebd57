//go:build unix

package chaos_test

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// done are the answers that are recorded, each with the effect it tells of.
const done = `(SELECT scope, id, response_type LIKE 'error:%' AS final,
	CASE WHEN response_type LIKE 'error:%' THEN convert_from(response, 'UTF8')::jsonb->>'ID'
		ELSE convert_from(response, 'UTF8')::jsonb#>>'{}' END AS effect
	FROM idempotency_keys WHERE expires_at IS NOT NULL) AS done`

// atomicity are queries that find what must never be seen, in any snapshot. An
// effect without an answer, and the reverse, can only be told where answers do
// not expire.
var atomicity = map[string]string{
	"two effects of one key": `SELECT id FROM effects WHERE scope = 'lasting' GROUP BY id HAVING count(*) > 1`,
	"one effect twice":       `SELECT effect FROM effects GROUP BY effect HAVING count(*) > 1`,
	"an effect without its answer": `SELECT id, effect FROM effects WHERE scope = 'lasting'
		EXCEPT SELECT id, effect FROM ` + done + ` WHERE scope = 'lasting' AND NOT final`,
	"an answer without its effect": `SELECT scope, id, effect FROM ` + done + ` WHERE NOT final EXCEPT SELECT scope, id, effect FROM effects`,
	"the effect of a final error":  `SELECT effect FROM effects WHERE effect IN (SELECT effect FROM ` + done + ` WHERE final)`,
	"a key in progress":            `SELECT id FROM idempotency_keys WHERE expires_at IS NULL`,
}

// audit looks for what must never be seen, in one snapshot. It reports an error
// where it could not look.
func (l *load) audit(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for what, query := range atomicity {
			var found []string
			rows, err := tx.Query(ctx, `SELECT q::text FROM (`+query+`) q LIMIT 5`)
			if err == nil {
				found, err = pgx.CollectRows(rows, pgx.RowTo[string])
			}
			if err != nil {
				return err
			}
			if len(found) > 0 {
				l.t.Errorf("%s in a snapshot after %v: %q", what, time.Since(l.began), found)
			}
		}
		return nil
	})
}

// keepAuditing audits all along, and returns how often it did.
func (l *load) keepAuditing(ctx context.Context, config *pgx.ConnConfig) (times int) {
	for ctx.Err() == nil {
		conn, err := pgx.ConnectConfig(ctx, config)
		for err == nil {
			if err = l.audit(ctx, conn); err == nil {
				times++
				pause(ctx, time.Second)
			}
		}
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
		pause(ctx, 20*time.Millisecond)
	}
	return times
}
