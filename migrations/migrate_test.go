package migrations_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/migrations"
)

// migrationFiles returns the names of the migration files, oldest first.
func migrationFiles(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil || len(names) == 0 {
		t.Fatalf("migration files: %v, %v", names, err)
	}
	return names
}

// wantStatus says that exactly the first applied migrations have been applied.
func wantStatus(t *testing.T, pool *pgxpool.Pool, applied int) {
	t.Helper()
	status, err := migrations.Status(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	files := migrationFiles(t)
	if len(status) != len(files) {
		t.Fatalf("Status lists %d migrations, want %d", len(status), len(files))
	}
	for i, got := range status {
		if got.Name != files[i] || got.Version != int64(i+1) || got.Applied != (i < applied) {
			t.Errorf("migration %d is %+v, want name %s, version %d, applied %t", i, got, files[i], i+1, i < applied)
		}
	}
}

func hasTable(t *testing.T, pool *pgxpool.Pool, table string) bool {
	t.Helper()
	return bench.Count(t, pool, "SELECT count(*) FROM pg_class WHERE oid = to_regclass($1)", table) == 1
}

func TestMigrateUpDownUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	all := len(migrationFiles(t))

	wantStatus(t, pool, 0)
	// Twice, because processes call Up at every start.
	for range 2 {
		if err := migrations.Up(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, pool, all)
	}
	if recorded := bench.Count(t, pool, "SELECT count(*) FROM "+migrations.VersionTable+" WHERE version_id > 0"); recorded != all {
		t.Errorf("%d applied migrations recorded after a second Up, want %d", recorded, all)
	}
	for applied := all - 1; applied >= 0; applied-- {
		if err := migrations.Down(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, pool, applied)
	}
	for _, table := range []string{"idempotency_keys", "idempotency_unfinished"} {
		if hasTable(t, pool, table) {
			t.Errorf("%s is still there after every Down", table)
		}
	}
	if err := migrations.Down(t.Context(), pool); err != nil {
		t.Errorf("Down with nothing left to undo: %v", err)
	}
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, pool, all)
	if !hasTable(t, pool, "idempotency_keys") {
		t.Error("no table after Up, Down, Up")
	}
}

func TestMigrateDownOnAnEmptyDatabase(t *testing.T) {
	t.Parallel()
	if err := migrations.Down(t.Context(), pgtest.Empty(t)); err != nil {
		t.Errorf("Down with nothing to undo: %v", err)
	}
}

func TestMigrateUpConcurrently(t *testing.T) {
	t.Parallel()
	const processes = 20
	pools := poolsOfProcesses(t, processes)
	start := time.Now()
	var running sync.WaitGroup
	for _, pool := range pools {
		running.Go(func() {
			if err := migrations.Up(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	t.Logf("%d concurrent Up took %v", processes, time.Since(start).Round(time.Millisecond))
	wantStatus(t, pools[0], len(migrationFiles(t)))
	if recorded := bench.Count(t, pools[0], "SELECT count(*) FROM "+migrations.VersionTable+" WHERE version_id > 0"); recorded != len(migrationFiles(t)) {
		t.Errorf("%d migrations recorded, want %d", recorded, len(migrationFiles(t)))
	}
}

// Of those that call Up at once, one is let through to the migrations.
func TestMigrateUpTakesTurns(t *testing.T) {
	t.Parallel()
	const processes = 10
	pools := poolsOfProcesses(t, processes)
	if _, err := migrations.Status(t.Context(), pools[0]); err != nil { // makes the version table
		t.Fatal(err)
	}
	// Whoever applies the first migration has to wait for this table. The others
	// are to be found at the lock, in a try or between two.
	other, err := pools[0].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), "CREATE TABLE idempotency_keys ()"); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	for _, pool := range pools[1:] {
		running.Go(func() {
			if err := migrations.Up(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
	applying, waiting := 0, 0
	bench.WaitFor(t, func() bool {
		err := pools[0].QueryRow(t.Context(), `
			SELECT count(*) FILTER (WHERE wait_event_type = 'Lock'), count(*) FILTER (WHERE query LIKE '%pg_try_advisory_lock%')
			FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&applying, &waiting)
		if err != nil {
			t.Fatal(err)
		}
		return applying > 0 && applying+waiting == processes-1
	})
	if applying != 1 {
		t.Errorf("%d processes apply migrations at once, want 1", applying)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	running.Wait()
	wantStatus(t, pools[0], len(migrationFiles(t)))
}

// poolsOfProcesses returns pools on one database without tables, one for each
// process.
func poolsOfProcesses(t *testing.T, processes int) []*pgxpool.Pool {
	t.Helper()
	url := pgtest.URL(t)
	pools := make([]*pgxpool.Pool, processes)
	for i := range pools {
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		config.MaxConns = 2
		pools[i] = bench.PoolWith(t, config)
	}
	return pools
}

func TestMigrateUpWithoutCreateRights(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	owner := bench.PoolWith(t, config.Copy())
	role := newRole(t, owner)
	for _, statement := range []string{
		// Up to PostgreSQL 14 everybody may create tables there.
		"REVOKE CREATE ON SCHEMA public FROM PUBLIC",
		"GRANT SELECT ON " + migrations.VersionTable + " TO " + role,
	} {
		if _, err := owner.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	config.ConnConfig.RuntimeParams["role"] = role
	pool := bench.PoolWith(t, config)
	_, err := pool.Exec(t.Context(), "CREATE TABLE refused ()")
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42501" {
		t.Fatalf("CREATE TABLE as the role that this test is about: %v, want 42501", err)
	}
	if err := migrations.Up(t.Context(), pool); err != nil {
		t.Errorf("Up on a migrated database: %v", err)
	}
}

// A role with a schema of its own name, PostgreSQL's pattern for schemas that are
// safe to use, must not get an empty table in front of the one that has its keys.
func TestMigrateUpInFrontOfATable(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, prepare string
		// paths are those on which Up works, besides.
		paths []string
	}{
		{name: "made by Up", paths: []string{"public"}},
		{name: "made by the application", prepare: "DROP TABLE " + migrations.VersionTable},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := pgtest.Config(t)
			owner := bench.New(t, bench.PoolWith(t, config.Copy()), nil, nil).Pool
			role := newRole(t, owner)
			if _, err := owner.Exec(t.Context(), "CREATE SCHEMA "+role+" AUTHORIZATION "+role+
				"; GRANT ALL ON ALL TABLES IN SCHEMA public TO "+role+"; "+test.prepare); err != nil {
				t.Fatal(err)
			}
			config.ConnConfig.RuntimeParams["role"] = role
			pool := bench.PoolWith(t, config)
			do := func() {
				t.Helper()
				// As a process that starts anew: a prepared statement keeps its table.
				b := bench.Open(t, bench.PoolWith(t, config.Copy()), nil, nil)
				if _, err := idempotency.Do(t.Context(), b.Client, bench.Params("k"), bench.Charge("k")); err != nil {
					t.Fatal(err)
				}
			}

			do()
			for _, command := range migrateCommands {
				err := command.run(t.Context(), pool)
				if err == nil || !strings.Contains(err.Error(), "schema public") || !strings.Contains(err.Error(), "schema "+role) {
					t.Errorf("%s: error is %v, want one that names schemas public and %s", command.name, err, role)
				}
				do()
				if n := bench.Count(t, pool, "SELECT count(*) FROM effects"); n != 1 {
					t.Errorf("%d effects of one key after %s, want 1", n, command.name)
				}
			}
			if n := bench.Count(t, owner, "SELECT count(*) FROM pg_class WHERE relnamespace = $1::regnamespace", role); n != 0 {
				t.Errorf("%d tables and indexes were made in schema %s", n, role)
			}
			// As the error says.
			for _, path := range append(test.paths, role) {
				config := config.Copy()
				config.ConnConfig.RuntimeParams["search_path"] = path
				if err := migrations.Up(t.Context(), bench.PoolWith(t, config)); err != nil {
					t.Errorf("with search_path=%s: %v", path, err)
				}
			}
			// Then the one in front is the role's own.
			if err := migrations.Up(t.Context(), pool); err != nil {
				t.Error(err)
			}
		})
	}
}

// Where only the version table is left after migrations.Down, the tables belong
// where it is.
func TestMigrateUpInFrontOfAVersionTable(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	owner := bench.PoolWith(t, config.Copy())
	for range migrationFiles(t) {
		if err := migrations.Down(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := owner.Exec(t.Context(), "CREATE SCHEMA app"); err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = "app, public"
	err := migrations.Up(t.Context(), bench.PoolWith(t, config))
	if err == nil || !strings.Contains(err.Error(), migrations.VersionTable+" is in schema public") || !strings.Contains(err.Error(), "schema app") {
		t.Errorf("error is %v, want one that names the table and both schemas", err)
	}
	if hasTable(t, owner, "app."+migrations.VersionTable) || hasTable(t, owner, "app.idempotency_keys") {
		t.Error("tables were made in schema app")
	}
}

// A temporary table is in front of every schema, whatever search_path says.
func TestMigrateUpBehindATemporaryTable(t *testing.T) {
	t.Parallel()
	config := pgtest.Config(t)
	config.MaxConns = 1
	pool := bench.PoolWith(t, config)
	if _, err := pool.Exec(t.Context(), "CREATE TEMPORARY TABLE idempotency_keys (LIKE idempotency_keys)"); err != nil {
		t.Fatal(err)
	}
	for _, command := range migrateCommands {
		if err := command.run(t.Context(), pool); err == nil || !strings.Contains(err.Error(), "temporary table idempotency_keys") {
			t.Errorf("%s: error is %v, want one about the temporary table", command.name, err)
		}
	}
}

func TestMigrateWithoutASchema(t *testing.T) {
	t.Parallel()
	// With the tables in a schema that is not looked at.
	config := pgtest.Config(t)
	config.ConnConfig.RuntimeParams["search_path"] = "missing, gone"
	pool := bench.PoolWith(t, config)
	for _, command := range migrateCommands {
		if err := command.run(t.Context(), pool); err == nil || !strings.Contains(err.Error(), "no schema of search_path (missing, gone) exists") {
			t.Errorf("%s: error is %v, want one that names search_path", command.name, err)
		}
	}
}

func TestMigrateLeavesTheApplicationsGooseAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	// As goose makes it, with a migration numbered as ours.
	for _, statement := range []string{
		`CREATE TABLE goose_db_version (
			id integer PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
			version_id bigint NOT NULL,
			is_applied boolean NOT NULL,
			tstamp timestamp NOT NULL DEFAULT now())`,
		`INSERT INTO goose_db_version (version_id, is_applied, tstamp)
			VALUES (0, true, '2020-01-01'), (1, true, '2020-01-02')`,
	} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	content := func() (text string) {
		// xmin and ctid show also a row that was written again as it was.
		const query = `SELECT string_agg(concat_ws(' ', xmin, ctid, g), E'\n' ORDER BY id) FROM goose_db_version g`
		if err := pool.QueryRow(t.Context(), query).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	before := content()
	for _, step := range []struct {
		name    string
		migrate func(context.Context, *pgxpool.Pool) error
	}{
		{"Up", migrations.Up},
		{"Down", migrations.Down},
		{"Up", migrations.Up},
	} {
		if err := step.migrate(t.Context(), pool); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if after := content(); after != before {
			t.Fatalf("goose_db_version after %s:\n%s\nbefore:\n%s", step.name, after, before)
		}
	}
	if !hasTable(t, pool, "idempotency_keys") {
		t.Error("the application's version 1 passed for ours: no table")
	}
}

func TestUnmigratedDatabaseNamesTheMigration(t *testing.T) {
	t.Parallel()
	pool := pgtest.Empty(t)
	store := bench.NewStore(t, pool, nil)
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	work := func(context.Context, pgx.Tx) (string, error) { return "", nil }
	begin := &idempotency.BeginParams{Key: bench.Params("x").Key, Fingerprint: bench.Params("x").Fingerprint, TTL: time.Hour, Lease: time.Minute}
	for name, call := range map[string]func(ctx context.Context) error{
		"Do": func(ctx context.Context) error {
			_, err := idempotency.Do(ctx, client, bench.Params("x"), work)
			return err
		},
		"DoTx": func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := idempotency.DoTx(ctx, client, tx, bench.Params("x"), work)
				return err
			})
		},
		"Get": func(ctx context.Context) error {
			_, err := client.Get(ctx, bench.Params("x").Key)
			return err
		},
		"DeleteExpired": func(ctx context.Context) error {
			_, err := client.DeleteExpired(ctx, 0)
			return err
		},
		"Begin": func(ctx context.Context) error {
			_, err := store.Begin(ctx, begin)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := call(t.Context())
			if !errors.Is(err, pgxstore.ErrNotMigrated) {
				t.Fatalf("error is %v, want ErrNotMigrated", err)
			}
			if file := migrationFiles(t)[0]; !strings.Contains(err.Error(), file) {
				t.Errorf("error %q does not name %s", err, file)
			}
		})
	}
}

// migrateCommands are the functions of package migrations.
var migrateCommands = []struct {
	name string
	run  func(context.Context, *pgxpool.Pool) error
}{
	{"Status", func(ctx context.Context, pool *pgxpool.Pool) error {
		_, err := migrations.Status(ctx, pool)
		return err
	}},
	{"Up", migrations.Up},
	{"Down", migrations.Down},
}

// newRole makes a role that ends with the test. Roles belong to the whole server,
// which other runs may share.
func newRole(t *testing.T, owner *pgxpool.Pool) string {
	t.Helper()
	role := "samecommit_test_" + strings.ToLower(rand.Text())
	if _, err := owner.Exec(t.Context(), "CREATE ROLE "+role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for _, statement := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := owner.Exec(ctx, statement); err != nil {
				t.Error(err)
			}
		}
	})
	return role
}
