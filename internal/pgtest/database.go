package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// closeTimeout is how long a test's connections may take to come back to their
// pool after the test.
const closeTimeout = 5 * time.Second

// DB returns a pool on a new database that has samecommit's tables.
func DB(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return open(t, Config(t))
}

// Config returns the configuration of a pool on a new database that has
// samecommit's tables, for a test that sets an exec mode, a tracer or the
// number of connections. The test makes the pool and closes it.
func Config(t testing.TB) *pgxpool.Config {
	t.Helper()
	h := ready(t)
	template, err := h.migrated()
	if err != nil {
		t.Fatalf("pgtest: migrate the template database: %v", err)
	}
	return parse(t, newDatabase(t, h, template))
}

// Empty returns a pool on a new database that has no tables.
func Empty(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return open(t, parse(t, URL(t)))
}

// URL returns the URL of a new database that has no tables.
func URL(t testing.TB) string {
	t.Helper()
	return newDatabase(t, ready(t), "template0")
}

func ready(t testing.TB) *host {
	t.Helper()
	if current == nil {
		t.Fatal("pgtest: no server for this package's tests: add func TestMain(m *testing.M) { pgtest.Main(m) }")
	}
	if err := current.started(); err != nil {
		first := false
		current.tell.Do(func() { first, current.toldBy = true, t.Name() })
		if first {
			t.Fatal(err)
		}
		t.Fatalf("pgtest: no PostgreSQL server: the failure of %s says why", current.toldBy)
	}
	return current
}

// newDatabase makes a database that goes with the test, if the test passes.
func newDatabase(t testing.TB, h *host, template string) string {
	t.Helper()
	name, err := h.create(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	url := h.url(name)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("pgtest: kept the database of this failed test: %s", url)
			if h.server.Temporary {
				t.Log("pgtest: it ends with this run; to look at it later, run the test with SAMECOMMIT_POSTGRES_URL set to a server of your own")
			}
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stopTimeout)
		defer cancel()
		if err := h.drop(ctx, name); err != nil {
			t.Error(err)
		}
	})
	return url
}

func parse(t testing.TB, url string) *pgxpool.Config {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	return config
}

func open(t testing.TB, config *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		// Close waits for every connection to come back, for ever if a test
		// lost one.
		closed := make(chan struct{})
		go func() {
			pool.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(closeTimeout):
			t.Errorf("pgtest: %d connections were not given back to the test's pool: end every transaction and close every rows in the test",
				pool.Stat().AcquiredConns())
		}
	})
	return pool
}
