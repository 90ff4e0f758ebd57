package mongostore

import (
	"bytes"
	"context"
	"errors"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/samecommit/samecommit/idempotency"
)

// MaxBodySize is the largest body of an answer, in bytes: 15 MiB. MongoDB takes documents
// of 16 MiB.
const MaxBodySize = 15 << 20

// Store keeps keys in a collection. It is safe for concurrent use.
type Store struct {
	collection *mongo.Collection
}

var (
	_ idempotency.Store   = (*Store)(nil)
	_ idempotency.Sweeper = (*Store)(nil)
)

// New returns a store in the collection, which should hold nothing else and have no
// collation; one that is sharded must be so by _id. The store uses writes and reads of a
// majority, on the primary, whatever the collection and the session of a context are set
// to. It returns an *idempotency.ParamError for a nil collection.
func New(collection *mongo.Collection) (*Store, error) {
	if collection == nil {
		return nil, &idempotency.ParamError{Field: "collection", Reason: "is nil"}
	}
	return &Store{collection: collection.Clone(options.Collection().
		SetWriteConcern(writeconcern.Majority()).SetReadConcern(readconcern.Majority()).SetReadPreference(readpref.Primary()))}, nil
}

// maxBeginRounds bounds how often Begin judges a document that has changed since: somebody
// else has made progress, or a majority has not heard of the change yet.
const maxBeginRounds = 10

// Begin claims the key under a lease. See idempotency.Verbs. With an open transaction in
// ctx it is an *idempotency.ParamError: the claim would outlive it.
func (s *Store) Begin(ctx context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	if err := params.ValidateLease(); err != nil {
		return nil, err
	}
	ctx, err := outside(ctx)
	if err != nil {
		return nil, err
	}
	own := *params
	if own.ClaimID == (idempotency.ClaimID{}) {
		own.ClaimID = idempotency.NewClaimID()
	}
	for range maxBeginRounds {
		start := time.Now()
		claimed, err := s.insert(ctx, &own)
		if claimed != nil || err != nil {
			return newOutcome(&own, nil, claimed, start, err)
		}
		found, err := s.find(ctx, own.Key)
		if err != nil {
			return nil, explain(own.Key, "begin", err)
		}
		if found == nil {
			continue // it was deleted meanwhile, or a majority has not heard of it yet
		}
		record, err := found.record(own.Key)
		if err != nil {
			return nil, explain(own.Key, "begin", err)
		}
		now, err := s.now(ctx)
		if err != nil {
			return nil, explain(own.Key, "begin", err)
		}
		if outcome, err := record.Judge(&own, now); outcome != nil || err != nil {
			return outcome, err
		}
		start = time.Now()
		claimed, err = s.take(ctx, &own, found.Version, record)
		if claimed != nil || err != nil {
			return newOutcome(&own, record, claimed, start, err)
		}
	}
	return &idempotency.Outcome{State: idempotency.InProgress}, nil
}

// insert claims a key that has no document. It returns nil where it has one.
func (s *Store) insert(ctx context.Context, own *idempotency.BeginParams) (*document, error) {
	// No document has version 0, so one that there is already is a duplicate. An upsert,
	// and not an insert, since the server writes the dates.
	claimed, err := s.update(ctx, bson.D{{Key: "_id", Value: newID(own.Key)}, {Key: "v", Value: int64(0)}}, claiming(own, 1, own.Fingerprint), true)
	if mongo.IsDuplicateKeyError(err) {
		return nil, nil //nolint:nilnil // Somebody else's document is no error.
	}
	return claimed, err
}

// take claims a key whose document is as it was seen, and does not stop the claim. It
// returns nil where it has changed.
func (s *Store) take(ctx context.Context, own *idempotency.BeginParams, version int64, before *idempotency.Record) (*document, error) {
	filter := bson.D{
		{Key: "_id", Value: newID(own.Key)},
		// A document that was deleted and written anew begins at version 1 again.
		{Key: "claim", Value: binaryClaim(before.ClaimID)},
		{Key: "v", Value: version},
	}
	update := append(claiming(own, before.NextAttempt(own.ClaimID), before.NextFingerprint(own)),
		// The steps stay: of a completed record there are none.
		bson.E{Key: "$unset", Value: bson.D{
			{Key: "suspended", Value: ""}, {Key: "type", Value: ""}, {Key: "body", Value: ""}, {Key: "ttl_ms", Value: ""}, {Key: "gc", Value: ""},
		}})
	return s.update(ctx, filter, update, false)
}

func claiming(own *idempotency.BeginParams, attempt int, fingerprint idempotency.Fingerprint) bson.D {
	return bson.D{
		{Key: "$set", Value: bson.D{
			{Key: "state", Value: stateLeased},
			{Key: "claim", Value: binaryClaim(own.ClaimID)},
			{Key: "attempt", Value: attempt},
			{Key: "fingerprint", Value: binary(fingerprint.Bytes())},
			{Key: "lease_ms", Value: leaseMilliseconds(own.Lease)},
		}},
		increment,
		currentDate("created", "leased", "updated"),
	}
}

// increment is a part of every update.
var increment = bson.E{Key: "$inc", Value: bson.D{{Key: "v", Value: int64(1)}}}

// currentDate lets the server write its time.
func currentDate(fields ...string) bson.E {
	var dates bson.D
	for _, field := range fields {
		dates = append(dates, bson.E{Key: field, Value: true})
	}
	return bson.E{Key: "$currentDate", Value: dates}
}

func newOutcome(own *idempotency.BeginParams, before *idempotency.Record, claimed *document, start time.Time, err error) (*idempotency.Outcome, error) {
	if err != nil {
		return nil, explain(own.Key, "begin", err)
	}
	claim := &idempotency.Claim{
		Key: own.Key, ID: own.ClaimID, Attempt: claimed.Attempt, TTL: own.TTL,
		LockedUntil: claimed.lockedUntil(), Deadline: start.Add(own.Lease),
	}
	if before != nil && before.State == idempotency.InProgress {
		claim.Resumed, claim.Steps = true, before.Steps
	}
	return &idempotency.Outcome{State: idempotency.New, Claim: claim}, nil
}

// update updates the document that the filter finds, and returns what it is then. It
// returns nil where there is none.
func (s *Store) update(ctx context.Context, filter, update bson.D, upsert bool) (*document, error) {
	return one(s.collection.FindOneAndUpdate(ctx, filter, update,
		options.FindOneAndUpdate().SetReturnDocument(options.After).SetUpsert(upsert)))
}

// one reads a document, nil where there is none.
func one(result *mongo.SingleResult) (*document, error) {
	raw, err := result.Raw()
	switch {
	case errors.Is(err, mongo.ErrNoDocuments):
		return nil, nil //nolint:nilnil // Who calls says what that means.
	case err != nil:
		return nil, err
	}
	return decode(raw)
}

// held finds the document that the claim holds.
func held(claim *idempotency.Claim, more ...bson.E) bson.D {
	return append(bson.D{
		{Key: "_id", Value: newID(claim.Key)},
		{Key: "claim", Value: binaryClaim(claim.ID)},
		{Key: "state", Value: stateLeased},
	}, more...)
}

// find returns the document of a key, nil where it has none.
func (s *Store) find(ctx context.Context, key idempotency.Key) (*document, error) {
	return one(s.collection.FindOne(ctx, bson.D{{Key: "_id", Value: newID(key)}}))
}

// now returns the server's time, that of the router in a sharded cluster.
func (s *Store) now(ctx context.Context) (time.Time, error) {
	var hello struct {
		LocalTime bson.DateTime `bson:"localTime"`
	}
	// A transaction cannot begin with it.
	err := s.collection.Database().RunCommand(withoutSession(ctx), bson.D{{Key: "hello", Value: 1}}, options.RunCmd().SetReadPreference(readpref.Primary())).Decode(&hello)
	if err == nil && hello.LocalTime == 0 {
		err = errNoTime
	}
	return hello.LocalTime.Time(), err
}

var errNoTime = errors.New("mongostore: the server does not tell its time in the reply to hello: it is not MongoDB 5.0 or later")

// Complete records the response. See idempotency.Verbs. A body larger than MaxBodySize is
// an *idempotency.ParamError, as an open transaction in ctx is: WithSession joins that.
func (s *Store) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	ctx, err := outside(ctx)
	if err != nil {
		return nil, err
	}
	return s.complete(ctx, claim, response)
}

func (s *Store) complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	if err := response.Validate(); err != nil {
		return nil, err
	}
	if err := claim.ValidateComplete(); err != nil {
		return nil, err
	}
	if err := validateSize(response); err != nil {
		return nil, err
	}
	at, err := s.now(ctx)
	if err != nil {
		return nil, explain(claim.Key, "complete", err)
	}
	completed, err := s.update(ctx, held(claim), bson.D{
		{Key: "$set", Value: bson.D{
			{Key: "state", Value: stateCompleted},
			{Key: "type", Value: response.Type},
			{Key: "body", Value: binaryBody(response.Body)},
			{Key: "ttl_ms", Value: milliseconds(claim.TTL)},
			{Key: "gc", Value: bson.NewDateTimeFromTime(at.Add(claim.TTL).Add(gcMargin))},
		}},
		{Key: "$unset", Value: bson.D{{Key: "steps", Value: ""}, {Key: "suspended", Value: ""}}},
		increment,
		currentDate("updated"),
	}, false)
	if err := verdict(claim, "complete", completed != nil, err); err != nil {
		return nil, err
	}
	s.correctGC(ctx, completed)
	record, err := completed.record(claim.Key)
	if err != nil {
		return nil, explain(claim.Key, "complete", err)
	}
	record.Response.Body = bytes.Clone(response.Body)
	return record, nil
}

func validateSize(response *idempotency.Response) error {
	if len(response.Body) > MaxBodySize {
		return &idempotency.ParamError{Field: "Response.Body", Reason: "has more than the 15 MiB that MongoDB has room for: return a reference instead"}
	}
	return nil
}

// AddStep records a step. See idempotency.Verbs. It is recorded at once, whatever session
// ctx has: what the step did elsewhere is not undone with a transaction. A body larger
// than MaxBodySize is an *idempotency.ParamError.
func (s *Store) AddStep(ctx context.Context, claim *idempotency.Claim, added *idempotency.StepRecord) error {
	return s.addStep(withoutSession(ctx), claim, added)
}

func (s *Store) addStep(ctx context.Context, claim *idempotency.Claim, added *idempotency.StepRecord) error {
	if err := added.Validate(); err != nil {
		return err
	}
	if err := claim.ValidateAddStep(); err != nil {
		return err
	}
	if err := validateSize(added.Response); err != nil {
		return err
	}
	at, err := s.now(ctx)
	if err != nil {
		return explain(claim.Key, "add step", err)
	}
	recorded, err := s.change(ctx, held(claim, bson.E{Key: "steps.name", Value: bson.D{{Key: "$ne", Value: added.Name}}}), bson.D{
		{Key: "$push", Value: bson.D{{Key: "steps", Value: newStep(added, at)}}},
		increment,
		currentDate("updated"),
	})
	if err == nil && !recorded {
		// The claim is lost, or the step is there. A write, and no read: it ends when a
		// majority has what is there.
		recorded, err = s.change(ctx, held(claim, bson.E{Key: "steps.name", Value: added.Name}), bson.D{increment, currentDate("updated")})
	}
	return verdict(claim, "add step", recorded, err)
}

// change updates a document without reading it, and reports whether there was one.
func (s *Store) change(ctx context.Context, filter, update bson.D) (bool, error) {
	result, err := s.collection.UpdateOne(ctx, filter, update)
	return err == nil && result.MatchedCount > 0, err
}

// verdict says what became of a change of the claim's document.
func verdict(claim *idempotency.Claim, doing string, changed bool, err error) error {
	switch {
	case err != nil:
		return explain(claim.Key, doing, err)
	case !changed:
		return &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	return nil
}

// Get returns the record of key, as a majority has it. See idempotency.Verbs.
func (s *Store) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	return s.get(withoutSession(ctx), key)
}

func (s *Store) get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	found, err := s.find(ctx, key)
	if err != nil {
		return nil, explain(key, "get", err)
	}
	notFound := &idempotency.KeyError{Key: key, Err: idempotency.ErrNotFound}
	if found == nil {
		return nil, notFound
	}
	record, err := found.record(key)
	if err != nil {
		return nil, explain(key, "get", err)
	}
	if record.State == idempotency.Completed {
		now, err := s.now(ctx)
		if err != nil {
			return nil, explain(key, "get", err)
		}
		if record.Expired(now) {
			return nil, notFound
		}
	}
	return record, nil
}

// Extend prolongs a lease. See idempotency.Store.
func (s *Store) Extend(ctx context.Context, claim *idempotency.Claim, lease time.Duration) (*idempotency.Claim, error) {
	if err := idempotency.ValidateLease(lease); err != nil {
		return nil, err
	}
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	start := time.Now()
	// Not one that was suspended: an extension that comes late must not undo that.
	extended, err := s.update(withoutSession(ctx), held(claim, bson.E{Key: "suspended", Value: bson.D{{Key: "$exists", Value: false}}}), bson.D{
		{Key: "$set", Value: bson.D{{Key: "lease_ms", Value: leaseMilliseconds(lease)}}},
		increment,
		currentDate("leased", "updated"),
	}, false)
	if err := verdict(claim, "extend", extended != nil, err); err != nil {
		return nil, err
	}
	moved := *claim
	moved.LockedUntil, moved.Deadline = extended.lockedUntil(), start.Add(lease)
	return &moved, nil
}

// Suspend ends the lease and keeps the record. See idempotency.Store.
func (s *Store) Suspend(ctx context.Context, claim *idempotency.Claim) error {
	if err := claim.Validate(); err != nil {
		return err
	}
	suspended, err := s.change(withoutSession(ctx), held(claim), bson.D{
		{Key: "$set", Value: bson.D{{Key: "suspended", Value: true}}},
		increment,
		currentDate("updated"),
	})
	return verdict(claim, "suspend", suspended, err)
}

// Release frees a key without an answer. See idempotency.Store.
func (s *Store) Release(ctx context.Context, claim *idempotency.Claim) error {
	if err := claim.Validate(); err != nil {
		return err
	}
	result, err := s.collection.DeleteOne(withoutSession(ctx), held(claim))
	return verdict(claim, "release", err == nil && result.DeletedCount > 0, err)
}
