package pgxstore_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/internal/pgtest"
	"github.com/samecommit/samecommit/internal/pgtest/bench"
)

func wantParamError(t *testing.T, err error, field string) {
	t.Helper()
	var paramErr *idempotency.ParamError
	if !errors.As(err, &paramErr) || paramErr.Field != field || !errors.Is(err, idempotency.ErrInvalidParams) {
		t.Errorf("got %v, want a ParamError for %s", err, field)
	}
}

// No SQL may run: the store's database cannot be reached.
func TestBadInputIsRefusedBeforeAnySQL(t *testing.T) {
	t.Parallel()
	client, err := idempotency.NewClient(bench.NewStore(t, unusedPool(t), nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	good := bench.Params("k")
	for name, test := range map[string]struct {
		change func(*idempotency.Params)
		field  string
	}{
		"empty scope":         {func(p *idempotency.Params) { p.Key.Scope = "" }, "Key.Scope"},
		"long scope":          {func(p *idempotency.Params) { p.Key.Scope = strings.Repeat("x", 256) }, "Key.Scope"},
		"NUL in scope":        {func(p *idempotency.Params) { p.Key.Scope = "a\x00" }, "Key.Scope"},
		"empty id":            {func(p *idempotency.Params) { p.Key.ID = "" }, "Key.ID"},
		"long id":             {func(p *idempotency.Params) { p.Key.ID = strings.Repeat("é", 128) }, "Key.ID"},
		"NUL in id":           {func(p *idempotency.Params) { p.Key.ID = "\x00" }, "Key.ID"},
		"invalid UTF-8":       {func(p *idempotency.Params) { p.Key.ID = "\xff" }, "Key.ID"},
		"missing fingerprint": {func(p *idempotency.Params) { p.Fingerprint = idempotency.Fingerprint{} }, "Fingerprint"},
		"negative TTL":        {func(p *idempotency.Params) { p.TTL = -time.Second }, "TTL"},
		"TTL too short":       {func(p *idempotency.Params) { p.TTL = time.Microsecond - 1 }, "TTL"},
		"negative wait":       {func(p *idempotency.Params) { p.Wait = -time.Second }, "Wait"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := good
			test.change(&p)
			_, err := idempotency.Do(t.Context(), client, p, bench.Charge("k"))
			wantParamError(t, err, test.field)
			_, err = idempotency.DoTx(t.Context(), client, nil, p, bench.Charge("k"))
			wantParamError(t, err, test.field)
			_, err = client.WithTx(nil).Begin(t.Context(), p)
			wantParamError(t, err, test.field)
			if strings.HasPrefix(test.field, "Key") {
				_, err = client.Get(t.Context(), p.Key)
				wantParamError(t, err, test.field)
			}
		})
	}
	_, err = client.WithTx(nil).Begin(t.Context(), good)
	wantParamError(t, err, "tx")
	_, err = idempotency.Do[string](t.Context(), client, good, nil)
	wantParamError(t, err, "fn")
	_, err = client.WithTx(nil).Complete(t.Context(), nil, &idempotency.Response{Type: "bytes", Body: make([]byte, 1<<20+1)})
	wantParamError(t, err, "Response.Body")
	_, err = bench.NewStore(t, unusedPool(t), nil).Begin(t.Context(), &idempotency.BeginParams{Key: good.Key, Fingerprint: good.Fingerprint, TTL: time.Hour, Lease: -time.Second})
	wantParamError(t, err, "Lease")
	_, err = bench.NewStore(t, unusedPool(t), nil).Extend(t.Context(), nil, -time.Second)
	wantParamError(t, err, "Lease")
}

func TestErrorsHoldNoKeyAndNoBody(t *testing.T) {
	t.Parallel()
	b := bench.New(t, pgtest.DB(t), nil, nil)
	secret := idempotency.Params{Key: idempotency.Key{Scope: "SECRET-scope", ID: "SECRET-id"}, Fingerprint: idempotency.FingerprintOf("SECRET-body")}
	secretBody := func(context.Context, pgx.Tx) (string, error) { return "SECRET-answer", nil }
	result, err := idempotency.Do(t.Context(), b.Client, secret, secretBody)
	if err != nil {
		t.Fatal(err)
	}
	other := secret
	other.Fingerprint = idempotency.FingerprintOf("SECRET-other")
	_, mismatch := idempotency.Do(t.Context(), b.Client, other, secretBody)
	if !errors.Is(mismatch, idempotency.ErrFingerprintMismatch) {
		t.Errorf("got %v, want ErrFingerprintMismatch", mismatch)
	}
	_, typeErr := idempotency.Do(t.Context(), b.Client, secret, func(context.Context, pgx.Tx) (int, error) { return 0, nil })
	missing := secret.Key
	missing.ID += "-missing"
	_, notFound := b.Client.Get(t.Context(), missing)
	for _, printed := range []any{mismatch, typeErr, notFound, secret, secret.Key, result.Record.Key, *result.Record.Response, result.Record.Fingerprint} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if text := fmt.Sprintf(verb, printed); strings.Contains(text, "SECRET") {
				t.Errorf("%s of %T prints %s", verb, printed, text)
			}
		}
	}
	for _, logged := range []any{mismatch, typeErr, notFound, secret, secret.Key, result.Record, result} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("test", "it", logged, "inside", struct{ It any }{logged})
		text := strings.ReplaceAll(log.String(), `"Value":"SECRET-answer"`, "") // which is the caller's own
		if strings.Contains(text, "SECRET") || strings.Contains(text, base64.StdEncoding.EncodeToString(result.Record.Response.Body)) {
			t.Errorf("the JSON log of %T is %s", logged, text)
		}
	}
}

// unusedPool is a pool that could not connect, for what must not get so far.
func unusedPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/unused")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
