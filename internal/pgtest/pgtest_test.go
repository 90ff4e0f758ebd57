package pgtest_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func TestDBHasTheTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	t.Log("database", pool.Config().ConnConfig.Database) // read by TestLeftoversGo
	if got := tables(t, pool); got == 0 {
		t.Error("a migrated database has no tables")
	}
	if got := tables(t, pgtest.Empty(t)); got != 0 {
		t.Errorf("an empty database has %d tables", got)
	}
}

func TestDatabasesAreApart(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 8)
	t.Run("group", func(t *testing.T) {
		for i := range cap(seen) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.DB(t)
				if _, err := pool.Exec(t.Context(), "CREATE TABLE only_here ()"); err != nil {
					t.Error(err)
				}
				seen <- pool.Config().ConnConfig.Database
			})
		}
	})
	close(seen)
	names := map[string]bool{}
	for name := range seen {
		names[name] = true
	}
	if len(names) != cap(seen) {
		t.Errorf("%d tests shared %d databases", cap(seen), len(names))
	}
	for name := range names {
		if exists(t, pgtest.Empty(t), name) {
			t.Errorf("database %s outlives its test, which passed", name)
		}
	}
}

func TestDatabaseOfAFailedTestIsKept(t *testing.T) {
	t.Parallel()
	failed := &failing{TB: t}
	url := pgtest.URL(failed)
	failed.cleanUp()
	if !strings.Contains(failed.log.String(), url) {
		t.Errorf("the log lacks the URL %s:\n%s", url, &failed.log)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("the database that the log names: %v", err)
	}
	name := conn.Config().Database
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := pgtest.Empty(t).Exec(t.Context(), "DROP DATABASE "+name); err != nil {
		t.Error(err)
	}
}

// A later run of tests on a server that outlives both.
func TestLeftoversGo(t *testing.T) {
	t.Parallel()
	admin := pgtest.Empty(t)
	name := func(age time.Duration) string {
		return fmt.Sprintf("samecommit_test_%d_%s_1", time.Now().Add(-age).Unix(), strings.ToLower(rand.Text()[:8]))
	}
	stale, fresh := name(2*time.Hour), name(time.Minute)
	for _, database := range []string{stale, fresh} {
		if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+database); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := admin.Exec(context.WithoutCancel(t.Context()), "DROP DATABASE IF EXISTS "+database); err != nil {
				t.Error(err)
			}
		})
	}

	output, err := runTest(t, "TestDBHasTheTables", admin.Config().ConnString())
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	if exists(t, admin, stale) {
		t.Errorf("database %s of two hours ago is still there", stale)
	}
	if !exists(t, admin, fresh) {
		t.Errorf("database %s of a minute ago, perhaps of a run that goes on, was dropped", fresh)
	}
	run := regexp.MustCompile(`database samecommit_test_[0-9]+_([0-9a-z]+)_`).FindStringSubmatch(output)
	if run == nil {
		t.Fatalf("the run did not name its database:\n%s", output)
	}
	if left := bench.Count(t, admin, "SELECT count(*) FROM pg_database WHERE datname ~ $1", "_"+run[1]+"_"); left > 0 {
		t.Errorf("the run left %d databases behind, its template perhaps", left)
	}
}

func TestMissingServerFails(t *testing.T) {
	t.Parallel()
	output, err := runTest(t, "TestDBHasTheTables", "postgres://nobody@127.0.0.1:1/nothing")
	if err == nil || !strings.Contains(output, "SAMECOMMIT_POSTGRES_URL") || strings.Contains(output, "SKIP") {
		t.Errorf("a run without a server must fail and say why: %v\n%s", err, output)
	}
}

// runTest runs one test of this binary in a process of its own, on the server
// at url, and returns what it printed.
func runTest(t *testing.T, name, url string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^"+name+"$")
	cmd.Env = append(os.Environ(), "SAMECOMMIT_POSTGRES=url", "SAMECOMMIT_POSTGRES_URL="+url)
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// failing is a test that has failed, as its databases see it.
type failing struct {
	testing.TB
	log      strings.Builder
	cleanups []func()
}

func (f *failing) Failed() bool            { return true }
func (f *failing) Cleanup(fn func())       { f.cleanups = append(f.cleanups, fn) }
func (f *failing) Log(args ...any)         { fmt.Fprintln(&f.log, args...) }
func (f *failing) Logf(s string, a ...any) { fmt.Fprintf(&f.log, s+"\n", a...) }
func (f *failing) cleanUp() {
	for _, fn := range f.cleanups {
		fn()
	}
}

func tables(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return bench.Count(t, pool, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
}

func exists(t *testing.T, pool *pgxpool.Pool, database string) bool {
	t.Helper()
	return bench.Count(t, pool, "SELECT count(*) FROM pg_database WHERE datname = $1", database) == 1
}
