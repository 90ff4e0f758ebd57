// Package migrations creates and changes samecommit's tables: SQL files in goose's
// format, and Up, Down and Status, which apply them with goose. UpDB, DownDB and
// StatusDB are these for a *sql.DB.
//
// It keeps its own version table, idempotency_schema_version, so an
// application's own goose migrations are neither read nor numbered with these.
// An application that would rather run one set of migrations takes FS into its own
// provider, or copies the files.
//
// The tables are made in the first schema of search_path that exists. Where there
// is none, every function of this package fails and creates nothing, and so it
// does where the tables are found in a later schema of search_path: empty ones in
// front of them would let every operation run again. The error names both schemas
// and the two ways out: search_path set to the one, or to the other alone.
package migrations

import "embed"

// FS holds the migration files, named 00001_snake_case.sql and up. A file is
// never edited once it has been released.
//
//go:embed *.sql
var FS embed.FS
