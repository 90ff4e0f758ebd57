package bench

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

// Bench is one test's database, with a table for effects and a client.
type Bench struct {
	Pool   *pgxpool.Pool
	Store  *pgxstore.Store
	Client *idempotency.Client[pgx.Tx]
}

// New returns a bench on pool, in whose database it makes the table for effects.
func New(t testing.TB, pool *pgxpool.Pool, storeConfig *pgxstore.Config, config *idempotency.Config) *Bench {
	t.Helper()
	MakeEffects(t, pool)
	return Open(t, pool, storeConfig, config)
}

// Open is New on a database that has the table for effects.
func Open(t testing.TB, pool *pgxpool.Pool, storeConfig *pgxstore.Config, config *idempotency.Config) *Bench {
	t.Helper()
	store := NewStore(t, pool, storeConfig)
	client, err := idempotency.NewClient(store, config)
	if err != nil {
		t.Fatal(err)
	}
	return &Bench{Pool: pool, Store: store, Client: client}
}

// NewStore is pgxstore.New for a test.
func NewStore(t testing.TB, database pgxstore.DB, config *pgxstore.Config) *pgxstore.Store {
	t.Helper()
	store, err := pgxstore.New(database, config)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// Params are those of one request under the key of this id.
func Params(id string) idempotency.Params {
	return idempotency.Params{
		Key:         idempotency.Key{Scope: "test", ID: id},
		Fingerprint: idempotency.FingerprintOf("request", id),
	}
}

// The table for effects, and what is done with it.
const (
	createEffects = `CREATE TABLE IF NOT EXISTS effects (name text NOT NULL)`
	insertEffect  = `INSERT INTO effects (name) VALUES ($1)`
	countEffects  = `SELECT count(*) FROM effects WHERE name = $1`
)

// MakeEffects makes the table for effects.
func MakeEffects(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), createEffects); err != nil {
		t.Fatal(err)
	}
}

// CountEffects is how many effects of this name are committed.
func CountEffects(t testing.TB, pool *pgxpool.Pool, name string) int {
	t.Helper()
	return Count(t, pool, countEffects, name)
}

// Effect writes one row that counts as an effect of this name.
func Effect(ctx context.Context, tx pgx.Tx, name string) error {
	_, err := tx.Exec(ctx, insertEffect, name)
	return err
}

// Charge is an operation that has one effect and returns its name.
func Charge(name string) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		return name, Effect(ctx, tx, name)
	}
}

// Effects is how many effects of this name are committed.
func (b *Bench) Effects(t testing.TB, name string) int {
	t.Helper()
	return CountEffects(t, b.Pool, name)
}
