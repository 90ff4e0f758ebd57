package trouble

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// killer ends the API's database connections, one at a time and at random:
// between statements, inside them, and while a COMMIT is on its way.
type killer struct {
	cancel context.CancelFunc
	ended  chan error
}

func startKiller(ctx context.Context, api *API, every time.Duration, counts *counts) (*killer, error) {
	ctx, cancel := context.WithCancel(ctx)
	k := &killer{cancel: cancel, ended: make(chan error, 1)}
	if every == 0 {
		k.ended <- nil
		return k, nil
	}
	conn, err := api.connect(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		err := killEvery(ctx, conn, api.name(), every, counts)
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		k.ended <- errors.Join(err, conn.Close(closeCtx))
	}()
	return k, nil
}

func killEvery(ctx context.Context, conn *pgx.Conn, victims string, every time.Duration, counts *counts) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for acknowledged := int64(-1); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		// One at most for each charge that gets through: where connections die
		// faster than a slow machine can use them, none would.
		if acknowledged == counts.acknowledged() {
			continue
		}
		acknowledged = counts.acknowledged()
		// At random, and rather one that was used just now: a connection that
		// lies in the pool is one that no charge misses.
		//
		// Not cut short by stop: the connection would be gone, and with it the
		// count of this kill. It takes a millisecond.
		tag, err := conn.Exec(context.WithoutCancel(ctx), `SELECT pg_terminate_backend(pid) FROM (
			SELECT pid FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = $1
			ORDER BY random() * extract(epoch FROM clock_timestamp() - state_change) LIMIT 1) AS victim`, victims)
		if err != nil {
			return fmt.Errorf("kill a connection of the API; run as the role that owns it, or with -kill-every 0: %w", err)
		}
		counts.killed.Add(tag.RowsAffected())
	}
}

// stop returns once no other connection will be killed. A second call does
// nothing.
func (k *killer) stop() error {
	k.cancel()
	err := <-k.ended
	k.ended <- nil
	return err
}
