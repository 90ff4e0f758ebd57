package pgxstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
	"github.com/samecommit/samecommit/migrations"
)

// schemaSettings chooses the schema that has the tenant's name.
func schemaSettings(ctx context.Context) (map[string]string, error) {
	tenant, ok := ctx.Value(tenantKey{}).(string)
	if !ok {
		return nil, errNoTenant
	}
	return map[string]string{"search_path": tenant}, nil
}

// Of one client's calls for one key, those of another schema are of another key:
// they run while it is held here.
func TestSchemasOfSettingsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	config, counter := pgtest.Config(t), &bench.QueryCounter{}
	for _, schema := range []string{"a", "b"} {
		config := config.Copy()
		config.ConnConfig.RuntimeParams["search_path"] = schema
		pool := bench.PoolWith(t, config)
		if _, err := pool.Exec(t.Context(), `CREATE SCHEMA `+schema); err != nil {
			t.Fatal(err)
		}
		if err := migrations.Up(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
	}
	config.ConnConfig.Tracer = counter
	b := bench.New(t, bench.PoolWith(t, config), &pgxstore.Config{Settings: schemaSettings}, nil)

	do := func(schema string, wait time.Duration) (idempotency.Result[string], error) {
		p := bench.Params("k")
		p.Wait = wait
		return idempotency.Do(asTenant(t.Context(), schema), b.Client, p, func(context.Context, pgx.Tx) (string, error) {
			return schema, nil
		})
	}
	release := make(chan struct{})
	start := func(fn func(context.Context, pgx.Tx) (string, error)) <-chan error {
		done := make(chan error, 1)
		go func() {
			p := bench.Params("k")
			p.Wait = time.Minute
			result, err := idempotency.Do(asTenant(t.Context(), "a"), b.Client, p, fn)
			if err == nil && result.Value != "a" {
				err = errors.New("a got the answer " + result.Value)
			}
			done <- err
		}()
		return done
	}
	running := make(chan struct{})
	runs := start(func(context.Context, pgx.Tx) (string, error) {
		close(running)
		<-release
		return "a", nil
	})
	select {
	case <-running:
	case err := <-runs:
		t.Fatalf("the operation did not run: %v", err)
	}
	before := counter.Flights()
	watches := start(func(context.Context, pgx.Tx) (string, error) {
		return "", errors.New("ran beside the operation that holds the key")
	})
	bench.WaitFor(t, func() bool { return counter.Flights() > before })

	for _, replayed := range []bool{false, true} {
		result, err := do("b", time.Second)
		if err != nil || result.Value != "b" || result.Replayed != replayed {
			t.Errorf("in a schema where the key is free: %+v, %v; want b, replayed: %t", result, err, replayed)
		}
	}
	if _, err := do("a", time.Millisecond); !errors.Is(err, idempotency.ErrInProgress) {
		t.Errorf("in the schema where the key is held: %v, want ErrInProgress", err)
	}
	close(release)
	for _, call := range []<-chan error{runs, watches} {
		if err := <-call; err != nil {
			t.Error(err)
		}
	}
}

func TestNamespaceIsTheSchema(t *testing.T) {
	t.Parallel()
	namespace := func(settings map[string]string) string {
		t.Helper()
		store := bench.NewStore(t, unusedPool(t), &pgxstore.Config{Settings: func(context.Context) (map[string]string, error) { return settings, nil }})
		name, err := store.Namespace(t.Context())
		if err != nil {
			t.Error(err)
		}
		return name
	}
	type settings = map[string]string
	for name, test := range map[string]struct {
		a, b settings
		same bool
	}{
		"schemas":                         {settings{"search_path": "a"}, settings{"search_path": "b"}, false},
		"roles, which $user stands for":   {settings{"role": "a"}, settings{"role": "b"}, false},
		"a schema and a role of one name": {settings{"search_path": "a"}, settings{"role": "a"}, false},
		"a schema and none":               {settings{"search_path": "a"}, settings{}, false},
		"values that look like two":       {settings{"search_path": "a", "role": "b"}, settings{"search_path": `a" role="b`}, false},
		"another case of the name":        {settings{"search_path": "a"}, settings{"SEARCH_PATH": "a"}, true},
		"other settings":                  {settings{"search_path": "a", "app.request_id": "1"}, settings{"search_path": "a", "app.request_id": "2"}, true},
		"settings and none":               {settings{"app.request_id": "1"}, nil, true},
	} {
		if same := namespace(test.a) == namespace(test.b); same != test.same {
			t.Errorf("%s: %q and %q, want the same: %t", name, namespace(test.a), namespace(test.b), test.same)
		}
	}
	if name, err := bench.NewStore(t, unusedPool(t), nil).Namespace(t.Context()); name != "" || err != nil {
		t.Errorf("without settings: %q, %v; want no name", name, err)
	}
	store := bench.NewStore(t, unusedPool(t), &pgxstore.Config{Settings: tenantSettings})
	if _, err := store.Namespace(t.Context()); !errors.Is(err, errNoTenant) {
		t.Errorf("got %v, want the error of Settings", err)
	}
}
