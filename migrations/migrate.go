package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// VersionTable records which migrations have been applied.
const VersionTable = "idempotency_schema_version"

// lockID is "samecmit" in ASCII. It differs from goose's own default, so that
// we never queue behind the application's migrations.
const lockID int64 = 0x73616d65636d6974

// Migration is one migration file and whether the database has it.
type Migration struct {
	// Version is the number that the file name begins with.
	Version int64
	// Name is the file name, 00001_create_idempotency_keys.sql.
	Name string
	// Applied says whether the database has this migration.
	Applied bool
}

// Up applies every migration that the database does not have yet. Any number
// of processes may call it at once: one applies, the others wait for it on a
// session lock, which they try again every second for up to five minutes.
//
// Where nothing is pending, Up only reads, so a role without the right to
// create tables may call it at every start.
func Up(ctx context.Context, pool *pgxpool.Pool) error {
	return withDB(pool, func(db *sql.DB) error { return UpDB(ctx, db) })
}

// UpDB is Up for a *sql.DB that was opened with github.com/jackc/pgx/v5/stdlib. It works
// on one connection of it at a time, so SetMaxOpenConns(1) is enough, and waits for one
// until ctx ends. What tells the schema has to hold for each connection: set search_path
// in the DSN or for the role, not by a statement.
func UpDB(ctx context.Context, db *sql.DB) error {
	return withProvider(ctx, db, "up", func(provider *goose.Provider) error {
		// Without pending work there is no reason to take the lock.
		// Where this fails, Up would too, and no longer say why.
		if pending, err := provider.HasPending(ctx); err != nil || !pending {
			return err
		}
		_, err := provider.Up(ctx)
		return err
	})
}

// Down undoes the newest migration. Undoing the first one drops the tables and
// with them every recorded answer. With nothing to undo it does nothing.
func Down(ctx context.Context, pool *pgxpool.Pool) error {
	return withDB(pool, func(db *sql.DB) error { return DownDB(ctx, db) })
}

// DownDB is Down for a *sql.DB, as UpDB is Up.
func DownDB(ctx context.Context, db *sql.DB) error {
	return withProvider(ctx, db, "down", func(provider *goose.Provider) error {
		if _, err := provider.Down(ctx); err != nil && !errors.Is(err, goose.ErrNoNextVersion) {
			return err
		}
		return nil
	})
}

// Status lists every migration, oldest first. It creates the version table if
// the database has none.
func Status(ctx context.Context, pool *pgxpool.Pool) (migrations []Migration, err error) {
	err = withDB(pool, func(db *sql.DB) error {
		migrations, err = StatusDB(ctx, db)
		return err
	})
	return migrations, err
}

// StatusDB is Status for a *sql.DB, as UpDB is Up.
func StatusDB(ctx context.Context, db *sql.DB) ([]Migration, error) {
	var migrations []Migration
	err := withProvider(ctx, db, "status", func(provider *goose.Provider) error {
		statuses, err := provider.Status(ctx)
		for _, status := range statuses {
			migrations = append(migrations, Migration{
				Version: status.Source.Version,
				Name:    path.Base(status.Source.Path),
				Applied: status.State == goose.StateApplied,
			})
		}
		return err
	})
	return migrations, err
}

// withDB calls fn with a *sql.DB on the pool's connections.
func withDB(pool *pgxpool.Pool, fn func(db *sql.DB) error) error {
	if pool == nil {
		return fn(nil) // which says so
	}
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }() // closes no connection: it keeps none
	return fn(db)
}

func withProvider(ctx context.Context, db *sql.DB, command string, fn func(*goose.Provider) error) error {
	if db == nil {
		return fmt.Errorf("migrations: %s: the database is nil: pass an open one", command)
	}
	err := checkSchema(ctx, db)
	if err == nil {
		var provider *goose.Provider
		if provider, err = newProvider(db); err == nil {
			err = fn(provider)
		}
	}
	if err != nil {
		return fmt.Errorf("migrations: %s: %w", command, err)
	}
	return nil
}

func newProvider(db *sql.DB) (*goose.Provider, error) {
	// goose's default waits 5 s between tries: ten processes that start
	// together would take 15 s for a migration of 20 ms.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(lockID), lock.WithLockTimeout(1, 300))
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectPostgres, db, FS,
		goose.WithTableName(VersionTable),
		goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true),
	)
}
