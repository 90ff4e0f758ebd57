// Package httpidem gives an HTTP API idempotency keys: a middleware for the server, and a
// transport for the client that retries safely. It follows
// draft-ietf-httpapi-idempotency-key-header-07.
//
//	keys, err := httpidem.New(client, &httpidem.Config{
//		Scope: func(r *http.Request) string { return tenantOf(r) + "/charge" },
//	})
//	…
//	mux.Handle("POST /charges", keys(http.HandlerFunc(charge)))
//
// The handler finds its transaction by Tx and writes its answer as ever. Its writes, the
// key and the answer commit together before the first byte of the answer goes out; a
// request that comes again gets the same answer, with the header Idempotent-Replayed, and
// does not run. Handle is the same for a handler that takes the transaction as an argument.
//
// What becomes of the work and of the key goes by the status: see DefaultOutcome. The
// handler may run again before the commit, after a serialization failure, each time with
// the body from its start and a writer without a trace of the last run, so that it must
// act through the transaction only.
//
// The answer is held in memory until the commit: there is no Flush and no Hijack.
// Authentication, CORS, compression and http.TimeoutHandler go outside of the middleware.
package httpidem
