package pgxstore

import (
	"encoding/binary"

	"github.com/samecommit/samecommit/idempotency"
)

// lockID is the advisory lock that hints at a running operation: the digits that
// stand for the key in errors and logs, so that they are found in pg_locks. Two
// keys with one id, which 64 bits make unlikely, would merely wait for each other.
func lockID(key idempotency.Key) int64 {
	digest := key.Digest()
	return int64(binary.BigEndian.Uint64(digest[:8])) //nolint:gosec // Any 64 bits will do.
}
