package pgxstore_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Mistakes that must not compile, each beside its corrected form that must.
func TestMistakesThatDoNotCompile(t *testing.T) {
	t.Parallel()
	const program = `package main

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
)

func use(...any) {}

func try(ctx context.Context, client *idempotency.Client[pgx.Tx], tx pgx.Tx, params idempotency.Params) {
	use(pgxstore.New, %s)
}

func fn(context.Context, pgx.Tx) (int, error) { return 0, nil }

func main() { use(fn); try(nil, nil, nil, idempotency.Params{}) }
`
	compile := func(t *testing.T, expression string) (string, error) {
		t.Helper()
		// Inside the module, so that its requirements and replacements apply,
		// and in testdata, which package patterns leave out.
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("testdata", "compile-") //nolint:usetesting // t.TempDir is outside of the module.
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		if err := os.WriteFile(filepath.Join(dir, "main.go"), fmt.Appendf(nil, program, expression), 0o600); err != nil {
			t.Fatal(err)
		}
		output, err := exec.CommandContext(t.Context(), "go", "vet", "./"+dir).CombinedOutput()
		return string(output), err
	}
	for name, test := range map[string]struct{ wrong, message, right string }{
		"Begin without WithTx":                 {`client.Begin`, "client.Begin undefined", `client.WithTx(tx).Begin`},
		"Complete without WithTx":              {`client.Complete`, "client.Complete undefined", `client.WithTx(tx).Complete`},
		"value of DoTx without Answer":         {`func() any { r, _ := idempotency.DoTx(ctx, client, tx, params, fn); return r.Value }()`, "r.Value undefined", `func() any { r, _ := idempotency.DoTx(ctx, client, tx, params, fn); a, _ := r.Answer(); return a.Value }()`},
		"lease verbs in a transaction":         {`client.WithTx(tx).Extend`, "undefined", `client.WithTx(tx).Get`},
		"a function that does not take the tx": {`func() any { r, _ := idempotency.Do(ctx, client, params, func(context.Context) (int, error) { return 0, nil }); return r }()`, "does not match", `func() any { r, _ := idempotency.Do(ctx, client, params, fn); return r }()`},
		"a fingerprint made by hand":           {`idempotency.Fingerprint("abc")`, "cannot convert", `idempotency.FingerprintOf("abc")`},
		"DoTx with the pool instead of the tx": {`func() any { var db pgxstore.DB; r, _ := idempotency.DoTx(ctx, client, db, params, fn); return r }()`, "does not match", `func() any { r, _ := idempotency.DoTx(ctx, client, tx, params, fn); return r }()`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if output, err := compile(t, test.right); err != nil {
				t.Fatalf("the corrected form does not compile:\n%s", output)
			}
			if output, err := compile(t, test.wrong); err == nil || !strings.Contains(output, test.message) {
				t.Errorf("got %v, want a message with %q:\n%s", err, test.message, output)
			}
		})
	}
}
