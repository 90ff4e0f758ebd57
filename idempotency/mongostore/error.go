package mongostore

import (
	"errors"
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/samecommit/samecommit/idempotency"
)

// serverError is an error of the server's. What the server says in it may have the key, as
// the command that a user may not run has it, so the text leaves it out.
type serverError struct {
	doing string
	codes []int
	name  string
	err   error
}

func (e *serverError) Error() string {
	text := fmt.Sprintf("mongostore: %s: MongoDB answered with the error %v", e.doing, e.codes)
	if e.name != "" {
		text += " " + e.name
	}
	return text + "; what it says of it may hold the key, and is in the wrapped error alone"
}

func (e *serverError) Unwrap() error { return e.err }

// explain adds what was done. Whether it happened is not known: a write may have, whose
// reply the network has lost, or which no majority has heard of. So no error is
// ErrUnavailable or ErrReadOnly, also where a server says that it is no primary: an
// earlier try of the driver's may have reached one.
func explain(key idempotency.Key, doing string, err error) error {
	return &idempotency.KeyError{Key: key, Err: explainServer(doing, err)}
}

func explainServer(doing string, err error) error {
	// Code 0 is that of the driver's own errors, of a network for example.
	codes := slices.DeleteFunc(mongo.ErrorCodes(err), func(code int) bool { return code == 0 })
	if len(codes) == 0 {
		return fmt.Errorf("mongostore: %s: %w", doing, err)
	}
	answered := &serverError{doing: doing, codes: codes, err: err}
	if command, ok := errors.AsType[mongo.CommandError](err); ok {
		answered.name = command.Name
	}
	return answered
}
