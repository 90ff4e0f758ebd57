package httpidem

import (
	"fmt"

	"github.com/samecommit/samecommit/idempotency"
)

// NewKey returns a key for the caller's own row: a random UUID, version 4, in 36
// characters. A durable client stores it before the first send, and reads it back for each
// later one, also after a crash. The draft wants quotes around it in the header:
//
//	request.Header.Set("Idempotency-Key", strconv.Quote(key))
func NewKey() string {
	id := idempotency.NewClaimID() // a UUID as well
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
