package httpidem

import "sync"

// budget is a token bucket for the retries of a Transport. While a server is down each
// request would be sent MaxAttempts times, when it can bear that least.
type budget struct {
	mu sync.Mutex
	// missing is what was taken, in tenths of a token, so that the zero budget is full.
	missing int
}

// take takes a token out of the bucket, which holds as many as size when it is full.
func (b *budget) take(size int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if (b.missing+9)/10 >= size {
		return false
	}
	b.missing += 10
	return true
}

// give puts a tenth of a token back.
func (b *budget) give() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.missing = max(b.missing-1, 0)
}
