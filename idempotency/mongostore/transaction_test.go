package mongostore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/samecommit/samecommit/idempotency"
)

// newSession returns a context with a session that has begun a transaction.
func newSession(t *testing.T, client *mongo.Client) (context.Context, *mongo.Session) {
	t.Helper()
	session, err := client.StartSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.EndSession(context.WithoutCancel(t.Context())) })
	if err := session.StartTransaction(); err != nil {
		t.Fatal(err)
	}
	return mongo.NewSessionContext(t.Context(), session), session
}

// A claim in a transaction would be nobody's until that commits.
func TestVerbsOutsideOfTransactions(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	store := newStore(t, newCollection(t, client))
	claim := begin(t, store, params("k"))
	ctx, _ := newSession(t, client)
	_, err := store.Begin(ctx, params("other"))
	wantErr(t, err, idempotency.ErrInvalidParams)
	_, err = store.Extend(ctx, claim, time.Hour)
	wantErr(t, err, idempotency.ErrInvalidParams)
	wantErr(t, store.Suspend(ctx, claim), idempotency.ErrInvalidParams)
	wantErr(t, store.Release(ctx, claim), idempotency.ErrInvalidParams)
	_, err = store.DeleteExpired(ctx, 0)
	wantErr(t, err, idempotency.ErrInvalidParams)
	if record, err := store.Get(t.Context(), claim.Key); err != nil || record.Suspended() {
		t.Errorf("%+v, %v; want the claim as it was", record, err)
	}
}

// The answer, a step and the caller's own document commit together or not at all.
func TestTransaction(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	realServer(t, client, "transactions")
	for name, commit := range map[string]bool{"committed": true, "undone": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			collection, effects := newCollection(t, client), newCollection(t, client)
			store := newStore(t, collection)
			claim := begin(t, store, params("k"))
			ctx, session := newSession(t, client)
			if _, err := effects.InsertOne(ctx, bson.D{}); err != nil {
				t.Fatal(err)
			}
			if err := store.AddStep(ctx, claim, stepOf("charge")); err != nil {
				t.Fatal(err)
			}
			if record, err := store.Get(ctx, claim.Key); err != nil || len(record.Steps) != 1 {
				t.Errorf("inside: %+v, %v; want the step", record, err)
			}
			if _, err := store.Complete(ctx, claim, response("done")); err != nil {
				t.Fatal(err)
			}
			if record, err := store.Get(t.Context(), claim.Key); err != nil || record.State != idempotency.InProgress || len(record.Steps) > 0 {
				t.Errorf("outside: %+v, %v; want nothing of it yet", record, err)
			}
			end := session.AbortTransaction
			if commit {
				end = session.CommitTransaction
			}
			if err := end(ctx); err != nil {
				t.Fatal(err)
			}
			record, err := store.Get(t.Context(), claim.Key)
			if err != nil || (record.State == idempotency.Completed) != commit {
				t.Errorf("%+v, %v; want it completed: %t", record, err, commit)
			}
			if n, err := effects.CountDocuments(t.Context(), bson.D{}); err != nil || (n == 1) != commit {
				t.Errorf("%d effects, %v; want one: %t", n, err, commit)
			}
			if !commit {
				complete(t, store, claim)
			}
		})
	}
}

// Keys that a collection's collation takes for the same are refused, and not mixed up.
func TestCollation(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	realServer(t, client, "collation")
	collection := newCollection(t, client)
	if err := collection.Database().CreateCollection(t.Context(), collection.Name(),
		options.CreateCollection().SetCollation(&options.Collation{Locale: "en", Strength: 2})); err != nil {
		t.Fatal(err)
	}
	store := newStore(t, collection)
	complete(t, store, begin(t, store, params("Key")))
	outcome, err := store.Begin(t.Context(), params("kEY"))
	if err == nil || errors.Is(err, idempotency.ErrFingerprintMismatch) {
		t.Errorf("%+v, %v; want an error about the collation", outcome, err)
	}
}
