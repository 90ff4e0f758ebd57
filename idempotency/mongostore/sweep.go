package mongostore

import (
	"context"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/samecommit/samecommit/idempotency"
)

// gcMargin is how long after its expiry the server may delete an answer: what is written
// as the time for that is reckoned by this process.
const gcMargin = time.Hour

const gcIndex = "samecommit_gc"

// CreateIndexes creates the index by which the server deletes expired answers, an hour
// after their expiry, and DeleteExpired finds them. It changes nothing where there is one
// already. Nothing else needs an index.
func (s *Store) CreateIndexes(ctx context.Context) error {
	// Only completed records have the field, so nothing in progress is ever deleted.
	_, err := s.collection.Indexes().CreateOne(ctx, mongo.IndexModel{
		Keys:    bson.D{{Key: "gc", Value: 1}},
		Options: options.Index().SetName(gcIndex).SetExpireAfterSeconds(0),
	})
	if err != nil {
		return explainServer("create the index on gc, by which the server deletes expired answers (without it, call DeleteExpired at times)", err)
	}
	return nil
}

// correctGC moves the time at which the server may delete the answer behind its expiry,
// where it is not: the clock of a machine that sleeps does too, and a claim may have come
// from another one.
func (s *Store) correctGC(ctx context.Context, completed *document) {
	expires := bson.NewDateTimeFromTime(completed.expires())
	if completed.GC >= expires {
		return
	}
	// Where it fails, the answer is kept too briefly or for ever; it is recorded.
	_, _ = s.collection.UpdateOne(ctx,
		bson.D{{Key: "_id", Value: completed.ID}, {Key: "v", Value: completed.Version}},
		bson.D{{Key: "$set", Value: bson.D{{Key: "gc", Value: expires + bson.DateTime(gcMargin/time.Millisecond)}}}})
}

// DeleteExpired deletes expired records, oldest first. See idempotency.Sweeper. Needed
// only where CreateIndexes was not called, or an hour is too long.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (int, error) {
	if limit < 0 {
		return 0, &idempotency.ParamError{Field: "limit", Reason: "is negative; 0 means 1,000"}
	}
	if err := refuseTransaction(ctx); err != nil {
		return 0, err
	}
	if limit == 0 {
		limit = idempotency.DefaultDeleteLimit
	}
	deletes, err := s.expired(ctx, limit)
	if err != nil || len(deletes) == 0 {
		return 0, explainSweep(err)
	}
	result, err := s.collection.BulkWrite(ctx, deletes, options.BulkWrite().SetOrdered(false))
	if err != nil {
		return 0, explainSweep(err)
	}
	return int(result.DeletedCount), nil
}

func explainSweep(err error) error {
	if err == nil {
		return nil
	}
	return explainServer("delete expired", err)
}

// expired returns the deletes of expired records as they are now.
func (s *Store) expired(ctx context.Context, limit int) ([]mongo.WriteModel, error) {
	now, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	// A little further, since gc is reckoned; each document says when it expires.
	last := bson.NewDateTimeFromTime(now.Add(gcMargin + time.Minute))
	cursor, err := s.collection.Find(ctx, bson.D{{Key: "gc", Value: bson.D{{Key: "$lte", Value: last}}}},
		options.Find().SetSort(bson.D{{Key: "gc", Value: 1}}).SetProjection(bson.D{{Key: "body", Value: 0}}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = cursor.Close(context.WithoutCancel(ctx)) }()
	var deletes []mongo.WriteModel
	for len(deletes) < limit && cursor.Next(ctx) {
		var found document
		if err := cursor.Decode(&found); err != nil {
			return nil, errForeign
		}
		if found.State == stateCompleted && !found.expires().After(now) {
			deletes = append(deletes, mongo.NewDeleteOneModel().SetFilter(bson.D{
				{Key: "_id", Value: found.ID}, {Key: "claim", Value: found.Claim}, {Key: "v", Value: found.Version},
			}))
		}
	}
	return deletes, cursor.Err()
}
