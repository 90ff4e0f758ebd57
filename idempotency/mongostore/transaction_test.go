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

// What the store does by itself is no part of a transaction in the context: where that
// would be mistaken for one it is refused.
func TestVerbsOutsideOfTransactions(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	store := newStore(t, newCollection(t, client))
	claim := begin(t, store, params("k"))
	ctx, session := newSession(t, client)
	_, err := store.Begin(ctx, params("other"))
	wantErr(t, err, idempotency.ErrInvalidParams)
	_, err = store.Complete(ctx, claim, response("done"))
	wantErr(t, err, idempotency.ErrInvalidParams)
	if err := store.AddStep(ctx, claim, stepOf("charge")); err != nil {
		t.Error(err)
	}
	extended, err := store.Extend(ctx, claim, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if record, err := store.Get(ctx, claim.Key); err != nil || len(record.Steps) != 1 || !record.LockedUntil.Equal(extended.LockedUntil) {
		t.Errorf("%+v, %v; want the step and the lease, at once", record, err)
	}
	if err := store.Suspend(ctx, claim); err != nil {
		t.Error(err)
	}
	if err := store.Release(ctx, claim); err != nil {
		t.Error(err)
	}
	if _, err := store.DeleteExpired(ctx, 0); err != nil {
		t.Error(err)
	}
	// Nothing was sent in it.
	if err := session.CommitTransaction(ctx); err != nil {
		t.Error(err)
	}
}

// After an error of Complete or AddStep the work cannot commit without its answer.
func TestErrorEndsTheTransaction(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	store := newStore(t, newCollection(t, client))
	claim := begin(t, store, params("k"))
	withoutTTL := *claim
	withoutTTL.TTL = 0
	for name, fail := range map[string]func(verbs idempotency.Verbs) error{
		"Complete": func(verbs idempotency.Verbs) error {
			_, err := verbs.Complete(t.Context(), &withoutTTL, response("done"))
			return err
		},
		"AddStep": func(verbs idempotency.Verbs) error { return verbs.AddStep(t.Context(), claim, nil) },
	} {
		ctx, session := newSession(t, client)
		verbs := store.WithSession(session)
		wantErr(t, fail(verbs), idempotency.ErrInvalidParams)
		if err := session.CommitTransaction(ctx); err == nil {
			t.Errorf("after a failed %s the transaction has committed", name)
		}
		_, err := verbs.Complete(t.Context(), claim, response("done"))
		wantErr(t, err, idempotency.ErrTxEnded)
		_, err = verbs.Get(t.Context(), claim.Key)
		wantErr(t, err, idempotency.ErrTxEnded)
	}
	_, session := newSession(t, client)
	_, err := store.WithSession(session).Begin(t.Context(), params("other"))
	wantErr(t, err, idempotency.ErrInvalidParams)
	_, err = store.WithSession(nil).Get(t.Context(), claim.Key)
	wantErr(t, err, idempotency.ErrInvalidParams)
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
			verbs := store.WithSession(session)
			if _, err := effects.InsertOne(ctx, bson.D{}); err != nil {
				t.Fatal(err)
			}
			if err := verbs.AddStep(t.Context(), claim, stepOf("charge")); err != nil {
				t.Fatal(err)
			}
			if record, err := verbs.Get(t.Context(), claim.Key); err != nil || len(record.Steps) != 1 {
				t.Errorf("inside: %+v, %v; want the step", record, err)
			}
			if _, err := verbs.Complete(t.Context(), claim, response("done")); err != nil {
				t.Fatal(err)
			}
			if record, err := store.Get(ctx, claim.Key); err != nil || record.State != idempotency.InProgress || len(record.Steps) > 0 {
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

// Work of a claim that is lost does not commit.
func TestLostClaimInATransaction(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	realServer(t, client, "transactions")
	effects := newCollection(t, client)
	store := newStore(t, newCollection(t, client))
	lost := begin(t, store, params("k"))
	complete(t, store, lost)
	ctx, session := newSession(t, client)
	if _, err := effects.InsertOne(ctx, bson.D{}); err != nil {
		t.Fatal(err)
	}
	_, err := store.WithSession(session).Complete(t.Context(), lost, response("late"))
	wantErr(t, err, idempotency.ErrClaimLost)
	if err := session.CommitTransaction(ctx); err == nil {
		t.Error("the transaction has committed")
	}
	if n, err := effects.CountDocuments(t.Context(), bson.D{}); err != nil || n != 0 {
		t.Errorf("%d effects, %v; want none", n, err)
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
