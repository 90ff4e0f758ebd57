package trial

import (
	"errors"

	"github.com/samecommit/samecommit/examples/internal/provider"
)

// Answer is what a process says of an order.
type Answer[T comparable] struct {
	Value    T
	Declined bool
	Err      string
}

// NewAnswer returns what a process says that got this value or this error.
func NewAnswer[T comparable](value T, err error) Answer[T] {
	if err != nil {
		return Answer[T]{Declined: errors.Is(err, provider.ErrDeclined), Err: err.Error()}
	}
	return Answer[T]{Value: value}
}

// settled says that the order need not be sent again.
func (a Answer[T]) settled() bool { return a.Err == "" || a.Declined }
