package mongostore

import (
	"errors"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/samecommit/samecommit/idempotency"
)

// Codes of errors by which a server says that it takes no writes now, since it is no
// primary, or is about to be none.
var notPrimaryCodes = []int{
	91,    // ShutdownInProgress
	189,   // PrimarySteppedDown
	10107, // NotWritablePrimary
	11600, // InterruptedAtShutdown
	11602, // InterruptedDueToReplStateChange
	13435, // NotPrimaryNoSecondaryOk
	13436, // NotPrimaryOrSecondary
}

// refusal is an error of the server's. What the server says in it may have the key, as
// the command that a user may not run has it, so the text leaves it out.
type refusal struct {
	doing string
	codes []int
	name  string
	err   error
}

func (e *refusal) Error() string {
	text := fmt.Sprintf("mongostore: %s: MongoDB refused it with code %v", e.doing, e.codes)
	if e.name != "" {
		text += " " + e.name
	}
	return text + "; what it says may hold the key, and is in the wrapped error alone"
}

func (e *refusal) Unwrap() error { return e.err }

// explain turns an error of the driver into the core's terms. What the network says is
// left as it is: the write may have happened.
func explain(key idempotency.Key, doing string, err error) error {
	return &idempotency.KeyError{Key: key, Err: explainServer(doing, err)}
}

func explainServer(doing string, err error) error {
	codes := mongo.ErrorCodes(err)
	if len(codes) == 0 || mongo.IsNetworkError(err) {
		return fmt.Errorf("mongostore: %s: %w", doing, err)
	}
	refused := &refusal{doing: doing, codes: codes, err: err}
	if command, ok := errors.AsType[mongo.CommandError](err); ok {
		refused.name = command.Name
	}
	for _, code := range notPrimaryCodes {
		if refusedWith(err, code) {
			return fmt.Errorf("%w: %w", idempotency.ErrReadOnly, refused)
		}
	}
	return refused
}

func refusedWith(err error, code int) bool {
	server, ok := errors.AsType[mongo.ServerError](err)
	return ok && server.HasErrorCode(code)
}
