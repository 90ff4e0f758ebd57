package pgxstore

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/samecommit/samecommit/idempotency"
)

// lockID is the advisory lock that hints at a running operation. Two keys with
// one id, which 64 bits make unlikely, would merely wait for each other.
func lockID(key idempotency.Key) int64 {
	var buf []byte
	for _, part := range []string{"idempotency_keys", key.Scope, key.ID} {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(part)))
		buf = append(buf, part...)
	}
	sum := sha256.Sum256(buf)
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // Any 64 bits will do.
}
