package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/txhelper"
)

// errSettings marks the error of Config.Settings, which is the caller's own
// whatever it wraps.
var errSettings = errors.New("pgxstore: Config.Settings")

// settingsOf returns a function that queues the settings of Config.Settings, each
// as a statement of its own, so that the server's error belongs to one name.
func (s *Store) settingsOf(ctx context.Context) (queue func(batch *pgx.Batch), err error) {
	var settings map[string]string
	if s.settings != nil {
		if settings, err = s.settings(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", errSettings, err)
		}
	}
	return func(batch *pgx.Batch) {
		for _, name := range slices.Sorted(maps.Keys(settings)) {
			q := txhelper.Queue(batch, func(err error) error { return explainSetting(name, err) })
			_ = s.queries.SetLocal(ctx, q, &db.SetLocalParams{Name: name, Value: settings[name]})
		}
	}, nil
}

// Namespace returns what the settings say of the schema in which the table is
// found, empty where they say nothing. See idempotency.NamespaceStore.
func (s *Store) Namespace(ctx context.Context) (string, error) {
	if s.settings == nil {
		return "", nil
	}
	settings, err := s.settings(ctx)
	if err != nil {
		return "", fmt.Errorf("pgxstore: Config.Settings: %w", err)
	}
	var namespace string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		// PostgreSQL knows a setting by its name in any case. A role is what $user
		// in a search_path stands for. Others, which may differ from request to
		// request, must not part calls that use one table.
		if lower := strings.ToLower(name); lower == "search_path" || lower == "role" {
			namespace += fmt.Sprintf("%s %q ", lower, settings[name])
		}
	}
	return namespace, nil
}

// explainSetting leaves out the server's message, which may hold the value.
func explainSetting(name string, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	return fmt.Errorf("pgxstore: Config.Settings: PostgreSQL refused setting %q (SQLSTATE %s): check its name, which needs a dot unless PostgreSQL defines it, its value and the right to set it", name, pgErr.Code)
}

// open begins a transaction on database with the settings, in one flight with
// what first queues.
func (s *Store) open(ctx context.Context, database txhelper.DB, options *txhelper.Options, first func(batch *pgx.Batch)) (*txhelper.Transaction, error) {
	if s.settings == nil {
		return txhelper.Open(ctx, database, options, first)
	}
	queue, err := s.settingsOf(ctx)
	if err != nil {
		return nil, err
	}
	return txhelper.Open(ctx, database, options, func(batch *pgx.Batch) {
		queue(batch)
		first(batch)
	})
}

// batcher sends a batch in one flight. Outside of a transaction that flight is
// one.
type batcher interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// querier returns a Querier on base that sends every statement with the
// settings.
func (s *Store) querier(base sender) txhelper.Querier {
	if s.settings == nil {
		return base
	}
	return &settingQuerier{store: s, base: base}
}

// settingQuerier sends each statement behind the settings, as one batch.
type settingQuerier struct {
	store *Store
	base  batcher
}

func (q *settingQuerier) send(ctx context.Context, sql string, args []any, read func(results pgx.BatchResults) error) error {
	queue, err := q.store.settingsOf(ctx)
	if err != nil {
		return err
	}
	batch := &pgx.Batch{}
	queue(batch)
	batch.Queue(sql, args...).Fn = read
	return q.base.SendBatch(ctx, batch).Close() // which reads, and meets an error of the commit
}

func (q *settingQuerier) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	err = q.send(ctx, sql, args, func(results pgx.BatchResults) (err error) {
		tag, err = results.Exec()
		return err
	})
	return tag, err
}

func (q *settingQuerier) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return rowFunc(func(dest ...any) error {
		return q.send(ctx, sql, args, func(results pgx.BatchResults) error {
			return results.QueryRow().Scan(dest...)
		})
	})
}

// Query is for the interface only: no statement here returns more than a row.
func (q *settingQuerier) Query(context.Context, string, ...any) (pgx.Rows, error) {
	return nil, errors.ErrUnsupported
}

type rowFunc func(dest ...any) error

func (f rowFunc) Scan(dest ...any) error { return f(dest...) }
