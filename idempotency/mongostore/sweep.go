package mongostore

import (
	"context"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/samecommit/samecommit/idempotency"
)

// gcMargin is how long after its expiry the server may delete an answer: the time for that
// is written with the completion, before its exact expiry is known.
const gcMargin = time.Hour

const gcIndex = "samecommit_gc"

// CreateIndexes creates the index by which the server deletes expired answers, an hour
// after their expiry, and DeleteExpired finds them. It changes nothing where there is one
// already. Nothing else needs an index.
func (s *Store) CreateIndexes(ctx context.Context) error {
	// Only completed records have the field, so nothing in progress is ever deleted.
	_, err := s.collection.Indexes().CreateOne(withoutSession(ctx), mongo.IndexModel{
		Keys:    bson.D{{Key: "gc", Value: 1}},
		Options: options.Index().SetName(gcIndex).SetExpireAfterSeconds(0),
	})
	if err != nil {
		return explainServer("create the index on gc, by which the server deletes expired answers (without it, call DeleteExpired at times)", err)
	}
	return nil
}

// gcTolerance is how far off the time of deletion may be.
const gcTolerance = time.Minute

// correctGC writes the time at which the server may delete the answer, where what was
// written with it is far from an hour behind its expiry: before the completion the server,
// or its router, has told another time, or much has passed since.
func (s *Store) correctGC(ctx context.Context, completed *document) {
	want := completed.expires().Add(gcMargin)
	if completed.GC.Time().Sub(want).Abs() <= gcTolerance {
		return
	}
	// Where it fails, the answer is kept too briefly or too long; it is recorded.
	_, _ = s.change(ctx, bson.D{
		{Key: "_id", Value: completed.ID}, {Key: "claim", Value: completed.Claim}, {Key: "v", Value: completed.Version}, {Key: "state", Value: stateCompleted},
	}, bson.D{{Key: "$set", Value: bson.D{{Key: "gc", Value: bson.NewDateTimeFromTime(want)}}}, increment})
}

// DeleteExpired deletes expired records, oldest first. See idempotency.Sweeper. Needed
// only where CreateIndexes was not called, or an hour is too long.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (int, error) {
	if limit < 0 {
		return 0, &idempotency.ParamError{Field: "limit", Reason: "is negative; 0 means 1,000"}
	}
	ctx = withoutSession(ctx)
	if limit == 0 {
		limit = idempotency.DefaultDeleteLimit
	}
	deletes, err := s.expired(ctx, limit)
	deleted := 0
	if err == nil && len(deletes) > 0 {
		var result *mongo.BulkWriteResult
		if result, err = s.collection.BulkWrite(ctx, deletes, options.BulkWrite().SetOrdered(false)); err == nil {
			deleted = int(result.DeletedCount)
		}
	}
	if err != nil {
		return 0, explainServer("delete expired", err)
	}
	return deleted, nil
}

// expired returns the deletes of expired records as they are now.
func (s *Store) expired(ctx context.Context, limit int) ([]mongo.WriteModel, error) {
	now, err := s.now(ctx)
	if err != nil {
		return nil, err
	}
	// A little further, since gc is not exact; each document says when it expires.
	last := bson.NewDateTimeFromTime(now.Add(gcMargin + gcTolerance))
	cursor, err := s.collection.Find(ctx, bson.D{{Key: "gc", Value: bson.D{{Key: "$lte", Value: last}}}},
		options.Find().SetSort(bson.D{{Key: "gc", Value: 1}}).SetLimit(int64(limit)).SetProjection(bson.D{{Key: "body", Value: 0}}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = cursor.Close(context.WithoutCancel(ctx)) }()
	var deletes []mongo.WriteModel
	for cursor.Next(ctx) {
		found, err := decode(cursor.Current)
		if err != nil {
			return nil, err
		}
		if found.State == stateCompleted && !found.expires().After(now) {
			deletes = append(deletes, mongo.NewDeleteOneModel().SetFilter(bson.D{
				{Key: "_id", Value: found.ID}, {Key: "claim", Value: found.Claim}, {Key: "v", Value: found.Version}, {Key: "state", Value: stateCompleted},
			}))
		}
	}
	return deletes, cursor.Err()
}
