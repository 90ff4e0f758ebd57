package idempotency

// Answer is what an operation returns to be recorded.
type Answer struct {
	// Response is recorded and replayed byte for byte.
	Response *Response
	// UndoWrites asks for what the operation has written in its transaction to be
	// undone before Response is recorded, in one commit: for a refusal that every
	// later call is to get too.
	UndoWrites bool
}
