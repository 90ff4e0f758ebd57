package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// keysTable is the table that every statement of package pgxstore looks for.
const keysTable = "idempotency_keys"

// place is where search_path leads. A schema is "" where there is none.
type place struct {
	searchPath string
	// created is the schema that new tables are made in.
	created string
	// keys and version are the schemas of the tables that are found.
	keys, version string
	// temporary says that one of them ends with its session.
	temporary bool
}

// checkSchema refuses to work where goose and the statements of package pgxstore
// would not mean the same tables: goose looks in the first schema of search_path,
// a statement in all of them. A new, empty table in front of the one that has the
// keys would let each of their operations run again.
func checkSchema(ctx context.Context, db *sql.DB) error {
	const query = `
SELECT
    current_setting('search_path'),
    coalesce(current_schema()::text, ''),
    coalesce(max(n.nspname) FILTER (WHERE c.oid = to_regclass($1::text)), '')::text,
    coalesce(max(n.nspname) FILTER (WHERE c.oid = to_regclass($2::text)), '')::text,
    coalesce(bool_or(c.relpersistence = 't'), false)
FROM pg_catalog.pg_class AS c
INNER JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid IN (to_regclass($1::text), to_regclass($2::text))`
	var p place
	if err := db.QueryRowContext(ctx, query, keysTable, VersionTable).
		Scan(&p.searchPath, &p.created, &p.keys, &p.version, &p.temporary); err != nil {
		return fmt.Errorf("look for the tables: %w", err)
	}
	return p.check()
}

func (p *place) check() error {
	switch {
	case p.created == "":
		return fmt.Errorf("no schema of search_path (%s) exists, or none that this role may use: create one, or set search_path to the schema of the tables", p.searchPath)
	case p.temporary:
		return errors.New("a temporary table " + keysTable + " or " + VersionTable + " hides the real one in this session: drop it")
	case p.version == p.created:
		return nil
	case p.keys != "" && p.keys != p.created:
		return p.inFront(keysTable, p.keys)
	case p.version != "":
		return p.inFront(VersionTable, p.version)
	}
	return nil
}

func (p *place) inFront(table, schema string) error {
	return fmt.Errorf("%s is in schema %s, and with search_path (%s) new tables would be in schema %s, in front of it, where no key is recorded: "+
		"set search_path to %[2]s to use that table, or to %[4]s alone to have another one there",
		table, schema, p.searchPath, p.created)
}
