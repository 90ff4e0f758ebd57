package migrations_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/migrations"
)

// openDB opens a *sql.DB of at most so many connections, 0 for any number.
func openDB(t *testing.T, config *pgx.ConnConfig, connections int) *sql.DB {
	t.Helper()
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(connections)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestMigrateDB(t *testing.T) {
	t.Parallel()
	files := migrationFiles(t)
	// With one connection whoever wanted two would wait for itself.
	for name, connections := range map[string]int{"one connection": 1, "any number of connections": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			pool := pgtest.Empty(t)
			db := openDB(t, pool.Config().ConnConfig, connections)
			wantApplied := func(want int) {
				t.Helper()
				status, err := migrations.StatusDB(ctx, db)
				if err != nil {
					t.Fatal(err)
				}
				onPool, err := migrations.Status(ctx, pool)
				if err != nil {
					t.Fatal(err)
				}
				applied := 0
				for _, migration := range status {
					if migration.Applied {
						applied++
					}
				}
				if applied != want || !slices.Equal(status, onPool) {
					t.Errorf("StatusDB is %+v and Status %+v, want the same with %d applied", status, onPool, want)
				}
			}
			wantApplied(0)
			for range 2 {
				if err := migrations.UpDB(ctx, db); err != nil {
					t.Fatal(err)
				}
				wantApplied(len(files))
			}
			for applied := len(files) - 1; applied >= 0; applied-- {
				if err := migrations.DownDB(ctx, db); err != nil {
					t.Fatal(err)
				}
				wantApplied(applied)
			}
			if err := migrations.DownDB(ctx, db); err != nil {
				t.Errorf("DownDB with nothing left to undo: %v", err)
			}
			if locks := bench.Count(t, pool, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); locks != 0 {
				t.Errorf("%d advisory locks are left with the connections", locks)
			}
			if open := db.Stats().InUse; open != 0 {
				t.Errorf("%d connections were not given back", open)
			}
		})
	}
}

// Without a connection to be had it waits until its context ends, and no longer.
func TestMigrateDBWithoutAConnection(t *testing.T) {
	t.Parallel()
	db := openDB(t, pgtest.Config(t).ConnConfig, 1)
	held, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := migrations.UpDB(ctx, db); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with its only connection in use: %v, want context.DeadlineExceeded", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := migrations.UpDB(t.Context(), db); err != nil {
		t.Error(err)
	}
}

func TestMigrateDBBesidePools(t *testing.T) {
	t.Parallel()
	const processes = 5
	pools := poolsOfProcesses(t, processes)
	var running sync.WaitGroup
	for _, pool := range pools {
		db := openDB(t, pool.Config().ConnConfig, 1)
		running.Go(func() {
			if err := migrations.UpDB(t.Context(), db); err != nil {
				t.Error(err)
			}
		})
		running.Go(func() {
			if err := migrations.Up(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	wantStatus(t, pools[0], len(migrationFiles(t)))
	if recorded := bench.Count(t, pools[0], "SELECT count(*) FROM "+migrations.VersionTable+" WHERE version_id > 0"); recorded != len(migrationFiles(t)) {
		t.Errorf("%d migrations recorded, want %d", recorded, len(migrationFiles(t)))
	}
}

// What refuses to work on a pool refuses here too.
func TestMigrateDBRefuses(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	if _, err := bench.PoolWith(t, config.Copy()).Exec(t.Context(), "CREATE SCHEMA app"); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"missing":     "no schema of search_path (missing) exists",
		"app, public": "idempotency_keys is in schema public",
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			config := config.ConnConfig.Copy()
			config.RuntimeParams["search_path"] = path
			db := openDB(t, config, 0)
			_, statusErr := migrations.StatusDB(t.Context(), db)
			for command, err := range map[string]error{
				"up": migrations.UpDB(t.Context(), db), "down": migrations.DownDB(t.Context(), db), "status": statusErr,
			} {
				if err == nil || !strings.HasPrefix(err.Error(), "migrations: "+command+": ") || !strings.Contains(err.Error(), says) {
					t.Errorf("%s: error is %v, want one that says %q", command, err, says)
				}
			}
		})
	}
}

// The error says what is missing: the right, not the table that could not be made.
func TestMigrateDBWithoutCreateRights(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	owner := bench.PoolWith(t, config.Copy())
	role := newRole(t, owner)
	if _, err := owner.Exec(t.Context(), "CREATE SCHEMA bare; GRANT USAGE ON SCHEMA bare TO "+role+
		"; REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT SELECT ON "+migrations.VersionTable+" TO "+role); err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["role"] = role
	if err := migrations.UpDB(t.Context(), openDB(t, config.ConnConfig, 0)); err != nil {
		t.Errorf("UpDB on a migrated database: %v", err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = "bare"
	err := migrations.UpDB(t.Context(), openDB(t, config.ConnConfig, 0))
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42501" {
		t.Errorf("UpDB where nothing was made yet: %v, want 42501", err)
	}
}

func TestMigrateWithoutADatabase(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"a pool": migrations.Up(t.Context(), nil), "a *sql.DB": migrations.UpDB(t.Context(), nil)} {
		if err == nil || !strings.Contains(err.Error(), "migrations: up: the database is nil") {
			t.Errorf("%s: %v, want an error that says so", name, err)
		}
	}
}
