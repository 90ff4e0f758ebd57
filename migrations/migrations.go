// Package migrations holds the SQL files that create and change the tables of
// samecommit, in goose's format. Package migrate applies them; an application
// that runs goose itself can take FS into its own provider.
//
// It imports embed and nothing else.
package migrations

import "embed"

// FS holds the migration files, named 00001_snake_case.sql and up. A file is
// never edited once it has been released.
//
//go:embed *.sql
var FS embed.FS
