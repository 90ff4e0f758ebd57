package mongostore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/mongostore"
	"github.com/samecommit/samecommit/idempotency/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	storetest.Run(t, func(t *testing.T) idempotency.Store {
		t.Helper()
		return newStore(t, newCollection(t, client))
	})
}

func TestNewRefusesNil(t *testing.T) {
	t.Parallel()
	_, err := mongostore.New(nil)
	wantErr(t, err, idempotency.ErrInvalidParams)
}

// The reply to each verb is lost after the server has run it. Who asks again, the driver
// or the caller, finds it done. The driver asks again where it can have a session, which
// on the test double it cannot.
func TestLostReplies(t *testing.T) {
	t.Parallel()
	good := connect(t, nil)
	for _, verb := range []struct {
		name, command string
		call          func(ctx context.Context, store *mongostore.Store, claim *idempotency.Claim) error
		// again is what a caller gets who asks again: nil, or that it was done.
		again error
		done  func(record *idempotency.Record, claim *idempotency.Claim) bool
	}{
		{"Complete", "findAndModify", func(ctx context.Context, store *mongostore.Store, claim *idempotency.Claim) error {
			_, err := store.Complete(ctx, claim, response("done"))
			return err
		}, idempotency.ErrClaimLost, func(record *idempotency.Record, claim *idempotency.Claim) bool {
			return record.State == idempotency.Completed && record.ClaimID == claim.ID && string(record.Response.Body) == "done"
		}},
		{"AddStep", "update", func(ctx context.Context, store *mongostore.Store, claim *idempotency.Claim) error {
			return store.AddStep(ctx, claim, stepOf("charge"))
		}, nil, func(record *idempotency.Record, _ *idempotency.Claim) bool { return len(record.Steps) == 1 }},
		{"Extend", "findAndModify", func(ctx context.Context, store *mongostore.Store, claim *idempotency.Claim) error {
			_, err := store.Extend(ctx, claim, 2*time.Hour)
			return err
		}, nil, func(record *idempotency.Record, claim *idempotency.Claim) bool {
			return record.LockedUntil.After(claim.LockedUntil)
		}},
		{"Suspend", "update", func(ctx context.Context, store *mongostore.Store, claim *idempotency.Claim) error {
			return store.Suspend(ctx, claim)
		}, nil, func(record *idempotency.Record, _ *idempotency.Claim) bool { return record.Suspended() }},
		{"Release", "delete", func(ctx context.Context, store *mongostore.Store, claim *idempotency.Claim) error {
			return store.Release(ctx, claim)
		}, idempotency.ErrClaimLost, func(record *idempotency.Record, _ *idempotency.Claim) bool { return record == nil }},
	} {
		for _, retries := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, driver retries %t", verb.name, retries), func(t *testing.T) {
				t.Parallel()
				l := &loss{}
				client := connect(t, func(opts *options.ClientOptions) { opts.SetDialer(l).SetRetryWrites(retries) })
				collection := newCollection(t, client)
				store := newStore(t, collection)
				claim := begin(t, store, params("k"))
				l.arm(verb.command, 0)
				err := verb.call(t.Context(), store, claim)
				if !l.lost() {
					t.Fatal("no reply was lost")
				}
				if errors.Is(err, idempotency.ErrUnavailable) || errors.Is(err, idempotency.ErrClaimLost) {
					t.Fatalf("got %v: whether it was done is not known", err)
				}
				// A driver that knows of sessions asks again by itself.
				if !retries && err == nil {
					t.Fatal("a lost reply was no error")
				}
				if err != nil {
					if err := verb.call(t.Context(), store, claim); !errors.Is(err, verb.again) {
						t.Errorf("asked again: %v, want %v", err, verb.again)
					}
				}
				record, err := newStore(t, good.Database(collection.Database().Name()).Collection(collection.Name())).Get(t.Context(), claim.Key)
				if err != nil && !errors.Is(err, idempotency.ErrNotFound) {
					t.Fatal(err)
				}
				if !verb.done(record, claim) {
					t.Errorf("%+v: it was not done", record)
				}
			})
		}
	}
}

func TestLostReplyToBegin(t *testing.T) {
	t.Parallel()
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprintf("taken over %t", taken), func(t *testing.T) {
			t.Parallel()
			l := &loss{}
			client := connect(t, func(opts *options.ClientOptions) { opts.SetDialer(l).SetRetryWrites(false) })
			store := newStore(t, newCollection(t, client))
			if taken {
				before := begin(t, store, params("k"))
				if err := store.AddStep(t.Context(), before, stepOf("charge")); err != nil {
					t.Fatal(err)
				}
				if err := store.Suspend(t.Context(), before); err != nil {
					t.Fatal(err)
				}
			}
			own := params("k")
			own.ClaimID = idempotency.NewClaimID()
			behind := 0
			if taken {
				behind = 1 // the first one finds the other's document
			}
			l.arm("findAndModify", behind)
			if outcome, err := store.Begin(t.Context(), own); err == nil || errors.Is(err, idempotency.ErrUnavailable) || !l.lost() {
				t.Fatalf("%+v, %v; want an error that does not say that nothing was committed", outcome, err)
			}
			claim := begin(t, store, own)
			if claim.ID != own.ClaimID || claim.Attempt != 1 || !claim.Resumed || (len(claim.Steps) == 1) != taken {
				t.Errorf("%+v; want the same claim, resumed, with the steps of before", claim)
			}
			if outcome, err := store.Begin(t.Context(), params("k")); err != nil || outcome.State != idempotency.InProgress {
				t.Errorf("%+v, %v; want that it is in progress for others", outcome, err)
			}
		})
	}
}

// Whoever claims a key and lets go of it again: nobody else has it meanwhile.
func TestRacesForAKey(t *testing.T) {
	t.Parallel()
	store := newStore(t, newCollection(t, connect(t, nil)))
	var holders, claims atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for claims.Load() < 20 {
				outcome, err := store.Begin(t.Context(), params("k"))
				if err != nil {
					t.Error(err)
					return
				}
				if outcome.State != idempotency.New {
					continue
				}
				if holders.Add(1) != 1 {
					t.Error("two hold the key")
				}
				end := store.Release
				if claims.Add(1)%2 == 0 {
					end = store.Suspend
				}
				if _, err := store.Get(t.Context(), outcome.Claim.Key); err != nil { // holds it for a while
					t.Error(err)
				}
				holders.Add(-1)
				if err := end(t.Context(), outcome.Claim); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// What the caller's client is set to does not matter: each command is one of a majority,
// on the primary.
func TestCommandsAreOfAMajority(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	commands := make(map[string][]bson.Raw)
	store := newStore(t, newCollection(t, connect(t, func(opts *options.ClientOptions) {
		opts.SetWriteConcern(writeconcern.Unacknowledged()).SetReadConcern(readconcern.Local()).SetReadPreference(readpref.Secondary())
		opts.SetMonitor(&event.CommandMonitor{Started: func(_ context.Context, started *event.CommandStartedEvent) {
			mu.Lock()
			defer mu.Unlock()
			commands[started.CommandName] = append(commands[started.CommandName], bytes.Clone(started.Command))
		}})
	})))
	short := params("short")
	short.TTL = time.Millisecond
	complete(t, store, begin(t, store, short))
	claim := begin(t, store, params("k"))
	if err := store.AddStep(t.Context(), claim, stepOf("charge")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Extend(t.Context(), claim, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := store.Suspend(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	complete(t, store, begin(t, store, params("k")))
	if _, err := store.Get(t.Context(), claim.Key); err != nil {
		t.Fatal(err)
	}
	if err := store.Release(t.Context(), begin(t, store, params("released"))); err != nil {
		t.Fatal(err)
	}
	for deleted := 0; deleted == 0; {
		var err error
		if deleted, err = store.DeleteExpired(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, name := range []string{"findAndModify", "update", "delete", "find", "hello"} {
		if len(commands[name]) == 0 {
			t.Errorf("no %s was sent", name)
		}
		for _, command := range commands[name] {
			switch name {
			case "find":
				if level, _ := command.Lookup("readConcern", "level").StringValueOK(); level != "majority" {
					t.Errorf("a find has the read concern %q", level)
				}
			case "findAndModify", "update", "delete":
				if w, _ := command.Lookup("writeConcern", "w").StringValueOK(); w != "majority" {
					t.Errorf("a %s has the write concern %q", name, w)
				}
			}
			// To the one server of a direct connection the driver says primaryPreferred.
			if mode, ok := command.Lookup("$readPreference", "mode").StringValueOK(); ok && !strings.HasPrefix(mode, "primary") {
				t.Errorf("a %s has the read preference %q", name, mode)
			}
		}
	}
}

// The server deletes an answer by the field gc, an hour behind its expiry, also where it, or
// its router, has told another time.
func TestTimeOfDeletion(t *testing.T) {
	t.Parallel()
	for name, shift := range map[string]time.Duration{
		"of a clock that is right": 0, "of a clock behind": -5 * time.Hour, "of a clock ahead": 48 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := connect(t, func(opts *options.ClientOptions) { opts.SetDialer(clock(shift)) })
			collection := newCollection(t, client)
			store := newStore(t, collection)
			claim := begin(t, store, params("k"))
			if gc := gcOf(t, collection, claim.Key); !gc.IsZero() {
				t.Fatalf("in progress, it may be deleted at %v", gc)
			}
			expires := complete(t, store, claim).ExpiresAt
			if behind := gcOf(t, collection, claim.Key).Sub(expires); (behind - time.Hour).Abs() > time.Minute {
				t.Errorf("the server may delete it %s behind its expiry", behind)
			}
		})
	}
}

// gcOf returns when the server may delete the key's document, zero for never.
func gcOf(t *testing.T, collection *mongo.Collection, key idempotency.Key) time.Time {
	t.Helper()
	var found struct {
		GC time.Time `bson:"gc"`
	}
	if err := collection.FindOne(t.Context(), idOf(key)).Decode(&found); err != nil {
		t.Fatal(err)
	}
	return found.GC
}

// An answer that has expired is claimed as if free, and what is in progress then is never
// deleted.
func TestRunningKeyIsNeverDeleted(t *testing.T) {
	t.Parallel()
	collection := newCollection(t, connect(t, nil))
	store := newStore(t, collection)
	short := params("k")
	short.TTL = time.Millisecond
	complete(t, store, begin(t, store, short))
	var outcome *idempotency.Outcome
	for outcome == nil || outcome.State != idempotency.New {
		var err error
		if outcome, err = store.Begin(t.Context(), short); err != nil {
			t.Fatal(err)
		}
	}
	if gc := gcOf(t, collection, short.Key); !gc.IsZero() {
		t.Errorf("in progress, it may be deleted at %v", gc)
	}
	if outcome.Claim.Resumed || outcome.Claim.Attempt != 1 {
		t.Errorf("%+v; want a new key", outcome.Claim)
	}
}

// An index that is there and does not delete, or a server that has none that do, is an
// error that says what to do.
func TestRefusedIndex(t *testing.T) {
	t.Parallel()
	collection := newCollection(t, connect(t, nil))
	if _, err := collection.Indexes().CreateOne(t.Context(), mongo.IndexModel{Keys: bson.D{{Key: "gc", Value: 1}}}); err != nil {
		t.Fatal(err)
	}
	err := newStore(t, collection).CreateIndexes(t.Context())
	if _, ok := errors.AsType[mongo.CommandError](err); !ok || !strings.Contains(err.Error(), "call DeleteExpired") {
		t.Errorf("got %v, want the server's error and advice", err)
	}
}

func TestCreateIndexes(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	realServer(t, client, "index that deletes")
	collection := newCollection(t, client)
	store := newStore(t, collection)
	for range 2 {
		if err := store.CreateIndexes(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	indexes, err := collection.Indexes().ListSpecifications(t.Context())
	if err != nil || len(indexes) != 2 || indexes[1].ExpireAfterSeconds == nil || *indexes[1].ExpireAfterSeconds != 0 {
		t.Errorf("%+v, %v; want one that deletes beside that of _id", indexes, err)
	}
}

// A document of another program's is an error that tells nothing of it.
func TestForeignDocument(t *testing.T) {
	t.Parallel()
	collection := newCollection(t, connect(t, nil))
	store := newStore(t, collection)
	for id, fields := range map[string]bson.D{
		"empty":   nil,
		"state":   {{Key: "v", Value: 1}, {Key: "state", Value: "secret"}, {Key: "attempt", Value: 1}, {Key: "claim", Value: bson.Binary{Data: make([]byte, 16)}}, {Key: "fingerprint", Value: bson.Binary{Data: []byte{0}}}},
		"types":   {{Key: "v", Value: "secret"}},
		"attempt": {{Key: "v", Value: 1}, {Key: "state", Value: "leased"}, {Key: "claim", Value: bson.Binary{Data: make([]byte, 16)}}, {Key: "fingerprint", Value: bson.Binary{Data: []byte{0}}}},
		"claim":   {{Key: "v", Value: 1}, {Key: "state", Value: "leased"}, {Key: "attempt", Value: 1}, {Key: "fingerprint", Value: bson.Binary{Data: []byte{0}}}},
	} {
		p := params(id)
		if _, err := collection.InsertOne(t.Context(), append(idOf(p.Key), fields...)); err != nil {
			t.Fatal(err)
		}
		_, beginErr := store.Begin(t.Context(), p)
		_, getErr := store.Get(t.Context(), p.Key)
		for verb, err := range map[string]error{"Begin": beginErr, "Get": getErr} {
			if err == nil || !strings.Contains(err.Error(), "another version") || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), p.Key.Scope) {
				t.Errorf("%s of %q: %v; want that it is another program's, and nothing of it", verb, id, err)
			}
		}
	}
}

func TestBodyThatIsTooLarge(t *testing.T) {
	t.Parallel()
	store := newStore(t, newCollection(t, connect(t, nil)))
	claim := begin(t, store, params("k"))
	_, err := store.Complete(t.Context(), claim, response(strings.Repeat("x", mongostore.MaxBodySize+1)))
	wantErr(t, err, idempotency.ErrInvalidParams)
	complete(t, store, claim)
}

func TestLargestBody(t *testing.T) {
	t.Parallel()
	client := connect(t, nil)
	realServer(t, client, "limit of MongoDB's")
	store := newStore(t, newCollection(t, client))
	claim := begin(t, store, params("k"))
	if _, err := store.Complete(t.Context(), claim, response(strings.Repeat("x", mongostore.MaxBodySize))); err != nil {
		t.Fatal(err)
	}
	record, err := store.Get(t.Context(), claim.Key)
	if err != nil || len(record.Response.Body) != mongostore.MaxBodySize {
		t.Errorf("%+v, %v; want the whole body", record, err)
	}
}
