package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/migrations"
)

var update = flag.Bool("update", false, "rewrite testdata/schema.golden.sql from the migrations")

// dumpTables lists what the migrations make, but for the version table, whose
// form is goose's business.
const dumpTables = `
	SELECT relname, relkind::text, relpersistence::text, coalesce(E' WITH (\n    ' || array_to_string(reloptions, E',\n    ') || E'\n)', '')
	FROM pg_class
	WHERE relnamespace = 'public'::regnamespace
		AND relkind <> 'i'
		AND NOT starts_with(relname, $1)
	ORDER BY relname`

const dumpColumns = `
	SELECT concat_ws(' ',
		quote_ident(attname),
		format_type(atttypid, atttypmod),
		CASE WHEN attcollation <> typcollation THEN
			(SELECT 'COLLATE ' || quote_ident(collname) FROM pg_collation c WHERE c.oid = attcollation) END,
		CASE WHEN attidentity <> '' THEN 'IDENTITY ' || attidentity::text END,
		CASE WHEN attgenerated <> '' THEN 'GENERATED ' || attgenerated::text END,
		(SELECT 'DEFAULT ' || pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum),
		CASE WHEN attnotnull THEN 'NOT NULL' END)
	FROM pg_attribute
	JOIN pg_type t ON t.oid = atttypid
	WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped
	ORDER BY attnum`

const dumpDomains = `
	SELECT format(E'CREATE DOMAIN %I AS %s%s%s;', typname, format_type(typbasetype, typtypmod),
		(SELECT ' COLLATE ' || quote_ident(collname) FROM pg_collation c, pg_type b
			WHERE b.oid = t.typbasetype AND c.oid = t.typcollation AND t.typcollation <> b.typcollation),
		(SELECT string_agg(format(E'\n    CONSTRAINT %I %s', conname, pg_get_constraintdef(c.oid)), '' ORDER BY conname) FROM pg_constraint c WHERE contypid = t.oid))
	FROM pg_type t
	WHERE typtype = 'd' AND typnamespace = 'public'::regnamespace
	ORDER BY typname`

// PostgreSQL 18 lists NOT NULL as constraints too (contype n), with names of
// its own making.
const dumpConstraints = `
	SELECT format(E'ALTER TABLE %s\n    ADD CONSTRAINT %I %s;', conrelid::regclass, conname, pg_get_constraintdef(oid))
	FROM pg_constraint
	WHERE conrelid = $1::regclass AND contype <> 'n'
	ORDER BY contype = 'f', conname`

const dumpIndexes = `
	SELECT pg_get_indexdef(indexrelid) || ';'
	FROM pg_index
	WHERE indrelid = $1::regclass AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = indrelid)
	ORDER BY indexrelid::regclass::text`

const dumpTriggers = `
	SELECT pg_get_triggerdef(oid) || ';'
	FROM pg_trigger
	WHERE tgrelid = $1::regclass AND NOT tgisinternal
	ORDER BY tgname`

const dumpComments = `
	SELECT format('COMMENT ON %s IS %L;',
		CASE WHEN objsubid = 0 THEN format(E'TABLE %s', objoid::regclass)
			ELSE format('COLUMN %s.%I', objoid::regclass,
				(SELECT attname FROM pg_attribute WHERE attrelid = objoid AND attnum = objsubid)) END,
		description)
	FROM pg_description
	WHERE objoid = $1::regclass AND classoid = 'pg_class'::regclass
	ORDER BY objsubid`

// dumpSchema writes the schema as pg_dump would, but the same on every version
// of PostgreSQL and without the program.
func dumpSchema(t *testing.T, pool *pgxpool.Pool) []byte {
	t.Helper()
	type relation struct{ Name, Kind, Persistence, Options string }
	rows, err := pool.Query(t.Context(), dumpTables, migrations.VersionTable)
	if err != nil {
		t.Fatal(err)
	}
	relations, err := pgx.CollectRows(rows, pgx.RowToStructByPos[relation])
	if err != nil {
		t.Fatal(err)
	}
	var dump bytes.Buffer
	fmt.Fprint(&dump, "-- The schema after every migration, written by:\n"+
		"-- go test ./migrations -run TestSchemaGolden -update\n-- Do not edit.\n")
	for _, domain := range bench.Lines(t, pool, dumpDomains) {
		fmt.Fprintf(&dump, "\n%s\n", domain)
	}
	for _, relation := range relations {
		if relation.Kind != "r" || relation.Persistence != "p" {
			// Nothing of the kind exists yet; a migration that brings it in
			// shows up here.
			fmt.Fprintf(&dump, "\n-- relation %s: kind %s, persistence %s\n", relation.Name, relation.Kind, relation.Persistence)
		}
		if relation.Kind != "r" {
			continue
		}
		columns := strings.Join(bench.Lines(t, pool, dumpColumns, relation.Name), ",\n    ")
		fmt.Fprintf(&dump, "\nCREATE TABLE %s (\n    %s\n)%s;\n", relation.Name, columns, relation.Options)
		for _, query := range []string{dumpConstraints, dumpIndexes, dumpTriggers, dumpComments} {
			for _, statement := range bench.Lines(t, pool, query, relation.Name) {
				fmt.Fprintf(&dump, "\n%s\n", statement)
			}
		}
	}
	for _, function := range bench.Lines(t, pool, `SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY proname`) {
		fmt.Fprintf(&dump, "\n%s;\n", function)
	}
	return dump.Bytes()
}

func TestSchemaGolden(t *testing.T) {
	t.Parallel()
	golden := filepath.Join("testdata", "schema.golden.sql")
	got := dumpSchema(t, pgtest.DB(t))
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	gotLines, wantLines := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	line := 0
	for line < len(gotLines)-1 && line < len(wantLines)-1 && gotLines[line] == wantLines[line] {
		line++
	}
	t.Errorf("the migrations no longer make what %s says. Line %d is\n\t%s\nwant\n\t%s\n"+
		"If the change is meant, run: go test ./migrations -run TestSchemaGolden -update\nWhole schema:\n%s",
		golden, line+1, gotLines[line], wantLines[line], got)
}

func TestSchemaSurvivesCrashesAndUpgrades(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	// An unlogged table is emptied by a crash, and with it every answer.
	unlogged := bench.Count(t, pool, `SELECT count(*) FROM pg_class
		WHERE relnamespace = 'public'::regnamespace AND starts_with(relname, 'idempotency_') AND relpersistence <> 'p'`)
	if unlogged != 0 {
		t.Errorf("%d relations are not LOGGED", unlogged)
	}
	// The index of another collation can change its order with the operating
	// system, and then lets a duplicate in.
	byBytes := bench.Lines(t, pool, `SELECT attname FROM pg_attribute
		WHERE attrelid = 'idempotency_keys'::regclass AND attname IN ('scope', 'id') AND attcollation = '"C"'::regcollation
		ORDER BY attnum`)
	if want := []string{"scope", "id"}; !slices.Equal(byBytes, want) {
		t.Errorf(`columns with COLLATE "C" are %v, want %v`, byBytes, want)
	}
	// One that did would keep expired rows from being deleted.
	referring := bench.Lines(t, pool, `SELECT conname FROM pg_constraint WHERE contype = 'f' AND confrelid = 'idempotency_keys'::regclass`)
	if len(referring) != 0 {
		t.Errorf("foreign keys point to idempotency_keys: %v", referring)
	}
}

// keyRow is a row of idempotency_keys by column.
type keyRow map[string]any

func leasedRow() keyRow {
	now := time.Now()
	return keyRow{
		"scope": "s", "id": "i", "claim_id": "00000000-0000-0000-0000-000000000001", "attempt": 1,
		"fingerprint": []byte{1}, "created_at": now, "updated_at": now, "locked_until": now,
	}
}

func completedRow() keyRow {
	row := leasedRow()
	delete(row, "locked_until")
	row["response"], row["response_type"], row["expires_at"] = []byte{}, "json", time.Now()
	return row
}

func unfinishedRow() keyRow {
	row := leasedRow()
	delete(row, "locked_until")
	row["unfinished"] = 1
	return row
}

// with returns the row with other values in the named columns.
func (r keyRow) with(pairs ...any) keyRow {
	for i := 0; i < len(pairs); i += 2 {
		r[pairs[i].(string)] = pairs[i+1]
	}
	return r
}

func (r keyRow) insert(t *testing.T, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
},
) error {
	t.Helper()
	var columns, values []string
	args := pgx.NamedArgs{}
	for column, value := range r {
		columns, values = append(columns, column), append(values, "@"+column)
		args[column] = value
	}
	_, err := db.Exec(t.Context(), fmt.Sprintf("INSERT INTO idempotency_keys (%s) VALUES (%s)",
		strings.Join(columns, ", "), strings.Join(values, ", ")), args)
	return err
}

func TestSchemaAccepts(t *testing.T) {
	t.Parallel()
	// Two bytes a letter, so that lengths are seen to be in bytes.
	longest := strings.Repeat("é", 127) + "x"
	for name, row := range map[string]keyRow{
		"leased":          leasedRow(),
		"completed":       completedRow(),
		"no response":     completedRow().with("response", nil),
		"longest strings": completedRow().with("scope", longest, "id", longest, "response_type", longest, "fingerprint", make([]byte, 65)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := row.insert(t, pgtest.DB(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	// 256 bytes, and only 128 characters.
	tooLong := strings.Repeat("é", 128)
	cases := map[string][]keyRow{
		"idempotency_name_length": {
			leasedRow().with("scope", ""), leasedRow().with("scope", tooLong),
			leasedRow().with("id", ""), leasedRow().with("id", tooLong),
			completedRow().with("response_type", ""), completedRow().with("response_type", tooLong),
		},
		"idempotency_attempt_positive": {
			leasedRow().with("attempt", 0), completedRow().with("attempt", -1),
		},
		"idempotency_fingerprint_length": {
			leasedRow().with("fingerprint", []byte{}), leasedRow().with("fingerprint", make([]byte, 66)),
		},
		"idempotency_end_finite": {
			completedRow().with("expires_at", pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}),
			leasedRow().with("locked_until", pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}),
		},
		"idempotency_keys_one_state": {
			completedRow().with("locked_until", time.Now()), completedRow().with("unfinished", 1),
			completedRow().with("expires_at", nil, "response_type", nil),
			leasedRow().with("locked_until", nil), leasedRow().with("unfinished", 1),
			leasedRow().with("expires_at", time.Now(), "response_type", "json"),
			unfinishedRow().with("expires_at", time.Now(), "response_type", "json"),
			completedRow().with("locked_until", time.Now(), "unfinished", 1),
		},
		"idempotency_keys_completed_has_response": {
			completedRow().with("response_type", nil), leasedRow().with("response_type", "json"),
			unfinishedRow().with("response_type", "json"),
		},
	}
	pool := pgtest.DB(t)
	checks := bench.Lines(t, pool, `SELECT conname FROM pg_constraint
		WHERE contype = 'c' AND (conrelid = 'idempotency_keys'::regclass OR contypid IN (SELECT oid FROM pg_type WHERE typnamespace = 'public'::regnamespace))`)
	for _, check := range checks {
		if cases[check] == nil {
			t.Errorf("nothing here shows what %s refuses", check)
		}
	}
	for constraint, rows := range cases {
		t.Run(constraint, func(t *testing.T) {
			t.Parallel()
			for _, row := range rows {
				bench.WantPgError(t, row.insert(t, pool), "23514", constraint)
			}
		})
	}
	t.Run("a missing value", func(t *testing.T) {
		t.Parallel()
		for _, column := range []string{"scope", "id", "claim_id", "attempt", "fingerprint", "created_at", "updated_at"} {
			err := leasedRow().with(column, nil).insert(t, pool)
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "23502" || pgErr.ColumnName != column {
				t.Errorf("%s NULL: error is %v, want 23502", column, err)
			}
		}
	})
	t.Run("a second row of a key", func(t *testing.T) {
		t.Parallel()
		if err := leasedRow().with("id", "twice").insert(t, pool); err != nil {
			t.Fatal(err)
		}
		bench.WantPgError(t, completedRow().with("id", "twice").insert(t, pool), "23505", "idempotency_keys_pkey")
	})
	t.Run("any row of idempotency_unfinished", func(t *testing.T) {
		t.Parallel()
		_, err := pool.Exec(t.Context(), "INSERT INTO idempotency_unfinished (id) VALUES (1)")
		bench.WantPgError(t, err, "23514", "idempotency_unfinished_always_empty")
	})
}

func TestUnfinishedRowCannotCommit(t *testing.T) {
	t.Parallel()
	const constraint = "idempotency_keys_completed_before_commit"
	pool := pgtest.DB(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if err := unfinishedRow().insert(t, tx); err != nil {
		t.Fatalf("the row is refused before COMMIT: %v", err)
	}
	bench.WantPgError(t, tx.Commit(t.Context()), "23503", constraint)
	if rows := bench.Count(t, pool, "SELECT count(*) FROM idempotency_keys"); rows != 0 {
		t.Errorf("%d rows were committed", rows)
	}

	// The same row, completed in time.
	if tx, err = pool.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	if err := unfinishedRow().insert(t, tx); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `UPDATE idempotency_keys
		SET unfinished = NULL, response_type = 'json', expires_at = now()`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Errorf("a completed row cannot commit: %v", err)
	}
}
