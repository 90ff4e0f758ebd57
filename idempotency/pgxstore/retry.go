package pgxstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/samecommit/samecommit/txhelper"
)

// retry calls try, which opens a transaction and commits it, until another try
// would change nothing. connecting is what is left of Config.ConnectTimeout, for
// all tries. own is given the errors that are not those of try.
func (s *Store) retry(ctx context.Context, try func(ctx context.Context, connecting *time.Duration) error, own func(err error) error) error {
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
		err = own(lost.unavailable(ctx))
	} else if exceeded, ok := errors.AsType[*txhelper.AttemptsExceededError](err); ok {
		// The last try's error may be the function's own, which is left as it is.
		if cause := sentinel(exceeded); cause != nil {
			err = own(fmt.Errorf("%w: run: %w", cause, err))
		}
	}
	return explainUnfit(err)
}
