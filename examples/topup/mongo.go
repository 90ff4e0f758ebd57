package main

import (
	"context"
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/mongostore"
)

// mongoPlace is a database in MongoDB.
type mongoPlace struct {
	client   *mongo.Client
	database *mongo.Database
	store    *mongostore.Store
}

func openMongo(ctx context.Context, url, space string) (place, error) {
	client, err := mongo.Connect(options.Client().ApplyURI(url))
	if err != nil {
		return nil, fmt.Errorf("read the URL of MongoDB, which is like mongodb://host:27017: %w", err)
	}
	p := &mongoPlace{client: client, database: client.Database(space)}
	p.store, err = mongostore.New(p.database.Collection("idempotency_keys"))
	if err != nil {
		return nil, errors.Join(err, p.close(ctx))
	}
	// A service calls p.store.CreateIndexes(ctx) at its start, so that the server deletes
	// expired answers. This demo drops its database instead, and FerretDB, which stands in
	// for MongoDB where no container can be started, has no such index.
	return p, nil
}

func (p *mongoPlace) keys() idempotency.Store { return p.store }

// mongoAnswer is a document of -naive.
type mongoAnswer struct {
	Order   string `bson:"_id"`
	Receipt string `bson:"receipt"`
}

func (p *mongoPlace) answers() *mongo.Collection { return p.database.Collection("answers") }

func (p *mongoPlace) find(ctx context.Context, order string) (receipt provider.Receipt, found bool, err error) {
	var answer mongoAnswer
	err = p.answers().FindOne(ctx, bson.D{{Key: "_id", Value: order}}).Decode(&answer)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return receipt, false, nil
	}
	return provider.Receipt{ID: answer.Receipt}, err == nil, err
}

func (p *mongoPlace) keep(ctx context.Context, order string, receipt provider.Receipt) error {
	_, err := p.answers().InsertOne(ctx, mongoAnswer{Order: order, Receipt: receipt.ID})
	return err
}

func (p *mongoPlace) ping(ctx context.Context) error { return p.client.Ping(ctx, nil) }

func (p *mongoPlace) clear(ctx context.Context) error { return p.database.Drop(ctx) }

func (p *mongoPlace) close(ctx context.Context) error { return p.client.Disconnect(ctx) }
