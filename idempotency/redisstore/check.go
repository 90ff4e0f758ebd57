package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What Check finds.
var (
	// ErrEvicts means that the server deletes keys when its memory is full: a running
	// claim, which gives a key two holders, or an answer, after which the work runs
	// again. Many managed servers come with such a policy.
	ErrEvicts = errors.New("redisstore: the server evicts keys when its memory is full: set maxmemory-policy to noeviction")
	// ErrVolatile means that all keys go with the server's process: it writes no AOF
	// and has no replica.
	ErrVolatile = errors.New("redisstore: the server keeps keys in its memory alone: turn appendonly on, or add a replica")
)

// Check reports what would lose keys: ErrEvicts and ErrVolatile, of each primary of a
// cluster. Call it at the start of a service. It needs the right to INFO.
func (s *Store) Check(ctx context.Context) error {
	switch client := s.client.(type) {
	case *redis.ClusterClient:
		return client.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return check(ctx, node) })
	case *redis.Ring:
		return client.ForEachShard(ctx, func(ctx context.Context, node *redis.Client) error { return check(ctx, node) })
	}
	return check(ctx, s.client)
}

func check(ctx context.Context, node redis.Cmdable) error {
	// One section at a time: servers before 7.0 take no more.
	var text strings.Builder
	for _, section := range []string{"memory", "persistence", "replication"} {
		part, err := node.Info(ctx, section).Result()
		if err != nil {
			return fmt.Errorf("redisstore: check: INFO %s: %w", section, err)
		}
		text.WriteString(part)
	}
	found := make(map[string]string)
	for line := range strings.Lines(text.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			found[name] = value
		}
	}
	var problems []error
	if policy := found["maxmemory_policy"]; policy != "noeviction" {
		problems = append(problems, fmt.Errorf("%w (it is %q)", ErrEvicts, policy))
	}
	if found["aof_enabled"] != "1" && found["connected_slaves"] == "0" {
		problems = append(problems, ErrVolatile)
	}
	return errors.Join(problems...)
}
