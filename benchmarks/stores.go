package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	mongooptions "go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
	"github.com/samecommit/samecommit/idempotency/mongostore"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/idempotency/redisstore"
	"github.com/samecommit/samecommit/tests/storeserver"
)

// storePeer is one home for keys under leases.
type storePeer struct {
	name string
	// answer claims a key and records its answer, replay gets the recorded one.
	answer, replay operation
	// count returns how many keys there are, and is nil where nothing tells.
	count func(ctx context.Context) (int, error)
}

// home opens peers, and stops what it has started.
type home func(ctx context.Context, s *server, opts *options, workers int) (peers []*storePeer, stop func(ctx context.Context) error, err error)

// errDouble leaves out a server whose speed says nothing.
var errDouble = errors.New("it is a test double, whose speed says nothing: name a server")

// measureStores compares the stores with each other, and with the two commands that one
// writes by hand in Redis. Each server is as it is: of PostgreSQL commits are flushed, a
// Redis that is started here keeps nothing on disk.
func measureStores(ctx context.Context, s *server, opts *options) (err error) {
	for _, workers := range opts.workers {
		if err := measureStoresWith(ctx, s, opts, workers); err != nil {
			return err
		}
	}
	return nil
}

func measureStoresWith(ctx context.Context, s *server, opts *options, workers int) (err error) {
	var peers []*storePeer
	for _, open := range []home{inRedis, inPostgres, inMemory, inMongoDB} {
		opened, stop, openErr := open(ctx, s, opts, workers)
		if errors.Is(openErr, storeserver.ErrNone) || errors.Is(openErr, errDouble) {
			fmt.Printf("\nleft out: %v\n", openErr)
			continue
		}
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, stop(context.WithoutCancel(ctx))) }()
		peers = append(peers, opened...)
	}
	answered := make(map[*storePeer][]string)
	answers := make([]*contestant, len(peers))
	for i, p := range peers {
		answered[p] = replayedIDs(opts)
		if err := answer(ctx, p.answer, answered[p]); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		answers[i] = &contestant{peer: &peer{name: p.name}, load: &load{op: p.answer, newID: newID, workers: workers, backends: &backends{}}}
	}
	if err := takeTurns(ctx, opts, answers); err != nil {
		return err
	}
	for i, p := range peers {
		if p.count == nil {
			continue
		}
		count, err := p.count(ctx)
		if want := len(answered[p]) + int(answers[i].load.done.Load()); err == nil && count != want {
			err = fmt.Errorf("%d keys; its operations should have left %d", count, want)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	fmt.Printf("\nstores: a claim under a lease and its answer, %d workers\n", workers)
	if err := printSlots(answers); err != nil {
		return err
	}
	replays := make([]*contestant, len(peers))
	for i, p := range peers {
		replays[i] = &contestant{peer: &peer{name: p.name}, load: &load{op: p.replay, newID: oneOf(answered[p]), workers: workers, backends: &backends{}}}
	}
	if err := takeTurns(ctx, opts, replays); err != nil {
		return err
	}
	fmt.Printf("\nstores: the recorded answer, %d workers\n", workers)
	return printSlots(replays)
}

// inStore are the operations on a store of ours.
func inStore(name string, store idempotency.Store, count func(ctx context.Context) (int, error)) *storePeer {
	begin := func(ctx context.Context, id string) (*idempotency.Outcome, error) {
		params := paramsOf(id)
		return store.Begin(ctx, &idempotency.BeginParams{
			Key: params.Key, Fingerprint: params.Fingerprint, TTL: time.Hour, Lease: 30 * time.Second,
		})
	}
	return &storePeer{
		name: name,
		answer: func(ctx context.Context, id string) error {
			outcome, err := begin(ctx, id)
			if err != nil {
				return err
			}
			if outcome.State != idempotency.New {
				return fmt.Errorf("a fresh key is %v", outcome.State)
			}
			_, err = store.Complete(ctx, outcome.Claim, &idempotency.Response{Type: idempotency.TypeBytes, Body: responseTo(id)})
			return err
		},
		replay: func(ctx context.Context, id string) error {
			outcome, err := begin(ctx, id)
			if err != nil {
				return err
			}
			if outcome.State != idempotency.Completed {
				return fmt.Errorf("an answered key is %v", outcome.State)
			}
			return checkResponse(id, outcome.Record.Response.Body)
		},
		count: count,
	}
}

// byHand is what one writes with Redis alone: no lease that can be lost, no comparison of
// requests, no claim that knows itself.
func byHand(client *redis.Client, prefix string) *storePeer {
	return &storePeer{
		name: "SET NX, SET",
		answer: func(ctx context.Context, id string) error {
			if err := setNX(ctx, client, prefix+id, true); err != nil {
				return err
			}
			return client.Set(ctx, prefix+id, responseTo(id), time.Hour).Err()
		},
		replay: func(ctx context.Context, id string) error {
			if err := setNX(ctx, client, prefix+id, false); err != nil {
				return err
			}
			answer, err := client.Get(ctx, prefix+id).Bytes()
			if err != nil {
				return err
			}
			return checkResponse(id, answer)
		},
		count: countPrefix(client, prefix),
	}
}

func setNX(ctx context.Context, client *redis.Client, key string, want bool) error {
	claimed, err := client.SetNX(ctx, key, "running", 30*time.Second).Result()
	if err == nil && claimed != want {
		err = fmt.Errorf("SET NX claimed the key: %t", claimed)
	}
	return err
}

func countPrefix(client *redis.Client, prefix string) func(ctx context.Context) (int, error) {
	return func(ctx context.Context) (count int, err error) {
		keys := client.Scan(ctx, 0, prefix+"*", 1000).Iterator()
		for keys.Next(ctx) {
			count++
		}
		return count, keys.Err()
	}
}

func inRedis(ctx context.Context, _ *server, _ *options, workers int) (_ []*storePeer, _ func(context.Context) error, err error) {
	found, err := storeserver.Redis(ctx)
	if err != nil {
		return nil, nil, err
	}
	config, err := redis.ParseURL(found.URL)
	if err != nil {
		return nil, nil, errors.Join(err, found.Stop(ctx))
	}
	config.PoolSize = workers
	client := redis.NewClient(config)
	// On a server of the user's own the keys stay for an hour, which is their TTL.
	prefix := "samecommit_bench:" + newID() + ":"
	stop := func(ctx context.Context) error { return errors.Join(client.Close(), found.Stop(ctx)) }
	store, err := redisstore.New(client, &redisstore.Config{Prefix: prefix})
	if err != nil {
		return nil, nil, errors.Join(err, stop(ctx))
	}
	fmt.Printf("\nRedis is %s\n", found.From)
	return []*storePeer{byHand(client, "by hand:"+prefix), inStore("redisstore", store, countPrefix(client, prefix))}, stop, nil
}

func inPostgres(ctx context.Context, s *server, _ *options, workers int) ([]*storePeer, func(context.Context) error, error) {
	db, err := s.empty(ctx, "stores")
	if err != nil {
		return nil, nil, err
	}
	pool, err := db.open(ctx, workers)
	if err != nil {
		return nil, nil, err
	}
	stop := func(ctx context.Context) error {
		pool.Close()
		return db.left(ctx)
	}
	store, err := pgxstore.New(pool, nil)
	if err != nil {
		return nil, nil, errors.Join(err, stop(ctx))
	}
	return []*storePeer{inStore("pgxstore", store, func(ctx context.Context) (count int, err error) {
		err = pool.QueryRow(ctx, "SELECT count(*) FROM idempotency_keys").Scan(&count)
		return count, err
	})}, stop, nil
}

func inMemory(context.Context, *server, *options, int) ([]*storePeer, func(context.Context) error, error) {
	return []*storePeer{inStore("memstore", memstore.New[pgx.Tx](nil), nil)}, func(context.Context) error { return nil }, nil
}

func inMongoDB(ctx context.Context, _ *server, opts *options, workers int) (_ []*storePeer, _ func(context.Context) error, err error) {
	found, err := storeserver.MongoDB(ctx)
	if err != nil {
		return nil, nil, err
	}
	if found.Double && !opts.short {
		return nil, nil, errors.Join(fmt.Errorf("MongoDB: %w in SAMECOMMIT_MONGODB_URL", errDouble), found.Stop(ctx))
	}
	client, err := mongo.Connect(mongooptions.Client().ApplyURI(found.URL).SetMaxPoolSize(uint64(workers)))
	if err != nil {
		return nil, nil, errors.Join(err, found.Stop(ctx))
	}
	collection := client.Database("samecommit_bench").Collection(newID())
	stop := func(ctx context.Context) error {
		return errors.Join(collection.Drop(ctx), client.Disconnect(ctx), found.Stop(ctx))
	}
	store, err := mongostore.New(collection)
	if err != nil {
		return nil, nil, errors.Join(err, stop(ctx))
	}
	fmt.Printf("\nMongoDB is %s\n", found.From)
	return []*storePeer{inStore("mongostore", store, func(ctx context.Context) (int, error) {
		count, err := collection.CountDocuments(ctx, bson.D{})
		return int(count), err
	})}, stop, nil
}
