package idempotency_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// The id under which every verb works is the HMAC of the key, and nothing that
// comes back has another.
func TestKeySecret(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef"
	own := testParams("order-48151")
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("\x00\x00\x00\x00\x00\x00\x00\x04test\x00\x00\x00\x00\x00\x00\x00\x0border-48151"))
	stored := idempotency.Key{Scope: "test", ID: fmt.Sprintf("%x", mac.Sum(nil))}

	store, tracer := memstore.New[*memstore.Tx](nil), &recordingTracer{}
	given := []byte(secret)
	client, err := idempotency.NewClient(store, &idempotency.Config{KeySecret: given, Tracer: tracer})
	if err != nil {
		t.Fatal(err)
	}
	clear(given) // the client has a copy
	fn := func(ctx context.Context, _ *memstore.Tx) (int, error) {
		_, err := idempotency.Do(ctx, client, own, func(context.Context, *memstore.Tx) (int, error) { return 0, nil })
		wantKeyError(t, "Do inside Do", err, idempotency.ErrNested, stored)
		return 7, nil
	}
	for i := range 2 {
		result, err := idempotency.Do(t.Context(), client, own, fn)
		if err != nil || result.Replayed != (i == 1) || result.Record.Key != stored {
			t.Fatalf("call %d: %+v, %v; want the key's answer under %q", i, result, err, stored.ID)
		}
	}
	other := own
	other.Fingerprint = idempotency.FingerprintOf("another request")
	_, err = idempotency.Do(t.Context(), client, other, fn)
	wantKeyError(t, "Do of another request", err, idempotency.ErrFingerprintMismatch, stored)
	if record, err := client.Get(t.Context(), own.Key); err != nil || record.Key != stored {
		t.Errorf("Get: %+v, %v", record, err)
	}
	_, err = client.Get(t.Context(), testParams("none").Key)
	if keyErr, ok := errors.AsType[*idempotency.KeyError](err); !ok || len(keyErr.Key.ID) != 64 {
		t.Errorf("Get of no record: %v, want a *KeyError of the stored key", err)
	}

	tx := store.NewTx()
	verbs := client.WithTx(tx)
	if record, err := verbs.Get(t.Context(), own.Key); err != nil || record.Key != stored {
		t.Errorf("Get in a transaction: %+v, %v", record, err)
	}
	if outcome, err := verbs.Begin(t.Context(), own); err != nil || outcome.Record.Key != stored {
		t.Errorf("Begin: %+v, %v", outcome, err)
	}
	if _, err := idempotency.DoTx(t.Context(), client, tx, own, fn); err != nil {
		t.Error(err)
	}
	batch, err := verbs.BeginMany(t.Context(), []idempotency.Params{own, testParams("b")})
	if err != nil || batch.Items[0].State != idempotency.Completed || batch.Items[0].Key != stored || len(batch.Items[1].Key.ID) != 64 {
		t.Fatalf("BeginMany: %+v, %v", batch, err)
	}
	batch.Items[1].Response = &idempotency.Response{Type: idempotency.TypeNone}
	if err := errors.Join(batch.Complete(t.Context()), tx.Commit(t.Context())); err != nil {
		t.Error(err)
	}
	for _, start := range tracer.starts {
		if start.Key != (idempotency.Key{}) && len(start.Key.ID) != 64 {
			t.Errorf("the tracer of %s got the id %q", start.Operation, start.Key.ID)
		}
	}

	// Without the secret, or with another, it is another key.
	for _, config := range []*idempotency.Config{nil, {KeySecret: []byte("another secret..")}} {
		stranger, err := idempotency.NewClient(store, config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stranger.Get(t.Context(), own.Key); !errors.Is(err, idempotency.ErrNotFound) {
			t.Errorf("Get of a client without that secret: %v, want ErrNotFound", err)
		}
	}
}

func wantKeyError(t *testing.T, call string, err, want error, key idempotency.Key) {
	t.Helper()
	if keyErr, ok := errors.AsType[*idempotency.KeyError](err); !ok || keyErr.Key != key || !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v of the stored key", call, err, want)
	}
}
