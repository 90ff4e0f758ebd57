package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/examples/internal/provider"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/redisstore"
)

// redisPlace has keys in Redis whose names have one beginning.
type redisPlace struct {
	client *redis.Client
	prefix string
	store  *redisstore.Store
}

func openRedis(_ context.Context, url, space string) (place, error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("read the URL of Redis, which is like redis://host:6379: %w", err)
	}
	p := &redisPlace{client: redis.NewClient(options), prefix: space + ":"}
	p.store, err = redisstore.New(p.client, &redisstore.Config{Prefix: p.prefix})
	if err != nil {
		return nil, errors.Join(err, p.client.Close())
	}
	// A service calls p.store.Check(ctx) here, and does not start if that fails: the
	// server would lose keys, after which work is done again. The throw-away server of
	// this demo would be refused, since it keeps keys in its memory alone. It outlives
	// the processes that are killed, which is all that is shown here.
	return p, nil
}

func (p *redisPlace) keys() idempotency.Store { return p.store }

func (p *redisPlace) answer(order string) string { return p.prefix + "answer:" + order }

func (p *redisPlace) find(ctx context.Context, order string) (receipt provider.Receipt, found bool, err error) {
	receipt.ID, err = p.client.Get(ctx, p.answer(order)).Result()
	if errors.Is(err, redis.Nil) {
		return receipt, false, nil
	}
	return receipt, err == nil, err
}

func (p *redisPlace) keep(ctx context.Context, order string, receipt provider.Receipt) error {
	return p.client.Set(ctx, p.answer(order), receipt.ID, 0).Err()
}

func (p *redisPlace) ping(ctx context.Context) error { return p.client.Ping(ctx).Err() }

func (p *redisPlace) clear(ctx context.Context) error {
	found := p.client.Scan(ctx, 0, p.prefix+"*", 0).Iterator()
	for found.Next(ctx) {
		if err := p.client.Unlink(ctx, found.Val()).Err(); err != nil {
			return err
		}
	}
	return found.Err()
}

func (p *redisPlace) close(context.Context) error { return p.client.Close() }
