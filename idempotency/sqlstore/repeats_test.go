package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/internal/pgcut"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// cutBench is a bench whose *sql.DB has one connection at a time, which the cutter may
// cut, on a database that pool looks at.
func cutBench(t testing.TB, pool *pgxpool.Pool) (*sqlBench, *pgcut.Cutter) {
	t.Helper()
	cutter := &pgcut.Cutter{}
	t.Cleanup(cutter.Close)
	config := pool.Config().ConnConfig.Copy()
	if err := cutter.Install(&config.Config); err != nil {
		t.Fatal(err)
	}
	// A ping of a connection that was idle would be another message each time.
	quiet := stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return false })
	b := newBenchOn(t, pool, closed(t, sql.OpenDB(stdlib.GetConnector(*config, quiet))), nil)
	b.db.SetMaxOpenConns(1)
	return b, cutter
}

// lostReply is where the server has done what a statement says and nobody hears of it.
func lostReply(text string) func(pgcut.Message) bool {
	asked := false
	return func(m pgcut.Message) bool {
		asked = asked || strings.Contains(m.Statement, text)
		return asked && m.From == pgcut.Backend && m.Type == 'C'
	}
}

// docs/guarantees.md says so, and that only what goes through tx is safe.
func TestDatabaseSQLRepeatsABareStatement(t *testing.T) {
	t.Parallel()
	b, cutter := cutBench(t, pgtest.DB(t))
	const insert = `INSERT INTO effects (name) VALUES ('bare')`
	cut := cutter.ArmWhen(pgcut.Reset, lostReply(insert))
	if _, err := b.db.ExecContext(t.Context(), insert); err != nil {
		t.Errorf("got %v: database/sql tells of the lost reply now", err)
	}
	<-cut
	b.want(t, "bare", 2, false)
}

func TestDatabaseSQLDoesNotRepeatAStatementOfATx(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]pgcut.Mode{"reset": pgcut.Reset, "close": pgcut.Close} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, cutter := cutBench(t, pgtest.DB(t))
			const insert = `INSERT INTO effects (name) VALUES ('k')`
			tries := 0
			counting := func(m pgcut.Message) bool {
				if strings.Contains(m.Statement, insert) {
					tries++
				}
				return false
			}
			tx, err := b.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			lost := lostReply(insert)
			cut := cutter.ArmWhen(mode, func(m pgcut.Message) bool { return counting(m) || lost(m) })
			if _, err := tx.ExecContext(t.Context(), insert); err == nil {
				t.Error("the lost reply is not told")
			}
			<-cut
			if err := tx.Commit(); err == nil {
				t.Error("the transaction could be committed")
			}
			if tries != 1 {
				t.Errorf("the statement was sent %d times", tries)
			}
			b.want(t, "k", 0, false)
		})
	}
}

// It has committed, and whatever the error says of trying again: call again with the
// same key.
func TestLostReplyToTheCallersCommit(t *testing.T) {
	t.Parallel()
	b, cutter := cutBench(t, pgtest.DB(t))
	tx, err := b.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	nothing := func(context.Context, *sql.Tx) error { return nil }
	if err := b.doIn(t.Context(), tx, "k", nothing); err != nil {
		t.Fatal(err)
	}
	cut := cutter.ArmWhen(pgcut.Reset, lostReply("commit"))
	err = tx.Commit()
	if err == nil || !pgconn.SafeToRetry(err) {
		t.Errorf("Commit: %v, safe to retry: %t; the doc of DoTx says otherwise", err, pgconn.SafeToRetry(err))
	}
	<-cut
	b.want(t, "k", 1, true)
	if err := b.doTx(t.Context(), "k", func(context.Context, *sql.Tx) error { return errors.New("it ran again") }); err != nil {
		t.Error(err)
	}
	b.want(t, "k", 1, true)
}
