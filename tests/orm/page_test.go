package orm_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/sqlstore"
)

// The page has no code but that of this package's tests: each block of Go, and each line in
// the table of its part "ORMs".
func TestPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/database-sql.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.WriteString(withoutIndent(string(text)))
	}

	var snippets []string
	for _, block := range regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		snippets = append(snippets, block[1])
	}
	_, orms, _ := strings.Cut(string(page), "\n## ORMs\n")
	orms, _, _ = strings.Cut(orms, "\n## ")
	for _, row := range regexp.MustCompile(`(?m)^\|.*$`).FindAllString(orms, -1) {
		for _, span := range regexp.MustCompile("`(.*?)`").FindAllStringSubmatch(row, -1) {
			snippets = append(snippets, span[1])
		}
	}
	if len(snippets) < 12 {
		t.Errorf("%d snippets: this test does not see them", len(snippets))
	}
	for _, snippet := range snippets {
		if !strings.Contains(source.String(), withoutIndent(snippet)) {
			t.Errorf("no test here has\n%s", snippet)
		}
	}
}

func withoutIndent(code string) string {
	return regexp.MustCompile(`(?m)^\s+`).ReplaceAllString(strings.TrimSpace(code), "")
}

// chargeTwice is the program of the page. It returns an error where DoTx does not replay
// what Do has done.
func chargeTwice(ctx context.Context, dsn, account string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()

	store, err := sqlstore.New(db, nil)
	if err != nil {
		return err
	}
	client, err := idempotency.NewClient(store, nil)
	if err != nil {
		return err
	}

	result, err := idempotency.Do(ctx, client, params, func(ctx context.Context, tx *sql.Tx) (id int64, err error) {
		err = tx.QueryRowContext(ctx, `INSERT INTO charges (account) VALUES ($1) RETURNING id`, account).Scan(&id)
		return id, err
	})
	if err != nil {
		return err
	}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	inTx, err := idempotency.DoTx(ctx, client, tx, params, func(ctx context.Context, tx *sql.Tx) (id int64, err error) {
		err = tx.QueryRowContext(ctx, `INSERT INTO charges (account) VALUES ($1) RETURNING id`, account).Scan(&id)
		return id, err
	})
	if err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	again, err := inTx.Answer()
	if err != nil {
		return err
	}
	if again.Value != result.Value || result.Replayed || !again.Replayed {
		return fmt.Errorf("%v and %v, want one charge and its replay", result, again)
	}
	return nil
}

func TestProgramOfThePage(t *testing.T) {
	t.Parallel()
	var dsn string
	b := newBench(t, func(url string) (*sql.DB, error) {
		dsn = url
		return openPgx(url)
	})
	if err := chargeTwice(t.Context(), dsn, "anna"); err != nil {
		t.Error(err)
	}
	b.want(1, 1)
}
