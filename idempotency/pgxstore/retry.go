package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// retry calls try, which opens a transaction and commits it, until another try
// would change nothing. connecting is what is left of Config.ConnectTimeout, for
// all tries. A key that is not nil goes into errors that are not those of try.
func (s *Store) retry(ctx context.Context, doing string, key *idempotency.Key, try func(ctx context.Context, connecting *time.Duration) error) error {
	connecting, leftNothing := s.connectTimeout, 0
	err := txhelper.Retry(ctx, s.db, &s.options, func(ctx context.Context) error {
		err := try(ctx, &connecting)
		if lost, ok := errors.AsType[*leftNothingError](err); ok {
			leftNothing++
			lost.last = leftNothing == maxLeftNothing
		}
		return err
	})
	if lost, ok := errors.AsType[*leftNothingError](err); ok {
		err = withKey(key, lost.unavailable(ctx))
	} else if exceeded, ok := errors.AsType[*txhelper.AttemptsExceededError](err); ok {
		// The last try's error may be the function's own, which is left as it is.
		if cause := sentinel(exceeded); cause != nil {
			err = withKey(key, fmt.Errorf("%w: %s: %w", cause, doing, err))
		}
	}
	return explainUnfit(err)
}

func withKey(key *idempotency.Key, err error) error {
	if key == nil {
		return err
	}
	return &idempotency.KeyError{Key: *key, Err: err}
}
