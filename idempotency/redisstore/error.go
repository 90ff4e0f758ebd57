package redisstore

import (
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
)

// ErrNotReplicated means that fewer replicas than Config.Replicas had the claim, or the
// step, within Config.ReplicaTimeout. The primary has it. Asked for again, a claim with
// the same id and a step are written anew, and waited for.
var ErrNotReplicated = errors.New("redisstore: not enough replicas have it: check them, or lower Config.Replicas")

// explain turns an error of a script into the core's terms. What the network says is
// left as it is: the script may have run.
func explain(key idempotency.Key, doing string, err error) error {
	switch {
	case redis.HasErrorPrefix(err, "OOM"):
		// Only of a new claim: all else begins with a write that a full memory allows.
		err = fmt.Errorf("%w: %s: raise maxmemory: %w", idempotency.ErrUnavailable, doing, err)
	case redis.HasErrorPrefix(err, "READONLY"):
		err = fmt.Errorf("%w: %s: %w", idempotency.ErrReadOnly, doing, err)
	default:
		err = fmt.Errorf("redisstore: %s: %w", doing, err)
	}
	return &idempotency.KeyError{Key: key, Err: err}
}
