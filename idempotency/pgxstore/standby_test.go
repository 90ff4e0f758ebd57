//go:build unix

package pgxstore_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgserver"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

// A standby answers what it has received and refuses the rest, before anything
// runs. It needs a server's own binaries; TestReadOnlyServer runs everywhere.
func TestStandby(t *testing.T) {
	t.Parallel()
	pair := pgtest.NewPair(t)
	primary := bench.New(t, poolOn(t, pair.Primary), nil, nil)
	leased := readOnlySeed(t, primary)

	pair.Synchronous(t) // the standby has what is there
	b := bench.Open(t, poolOn(t, pair.Standby), nil, nil)
	wantReadOnlyDo(t, b)
	wantReadOnlyTx(t, b, pgx.TxOptions{}, leased)
	wantReadOnlyStore(t, b, leased)
	wantReadOnlyLeftFree(t, primary)
}

func poolOn(t *testing.T, server *pgserver.Local) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return bench.PoolWith(t, config)
}
