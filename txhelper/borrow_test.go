package txhelper_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/samecommit/samecommit/txhelper"
)

// slowLender has a connection once it is told so.
type slowLender struct {
	asked, found chan struct{}
	// lent gets the error of the context with which the connection was looked for, after
	// it has come back.
	lent chan error
}

func (l *slowLender) Begin(context.Context) (pgx.Tx, error) { return nil, errors.ErrUnsupported }

func (l *slowLender) Lend(ctx context.Context, fn func(conn *pgx.Conn) error) error {
	close(l.asked)
	<-l.found
	err := fn(&pgx.Conn{})
	l.lent <- ctx.Err()
	return err
}

// Who cannot wait any longer goes at once, and the connection is found all the same, for
// the next one.
func TestBorrowerThatGoesAway(t *testing.T) {
	t.Parallel()
	lender := &slowLender{asked: make(chan struct{}), found: make(chan struct{}), lent: make(chan error)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-lender.asked
		cancel()
	}()
	_, ok, err := txhelper.Borrow(ctx, lender)
	if !ok || !errors.Is(err, txhelper.ErrNoConnection) || !errors.Is(err, context.Canceled) {
		t.Errorf("%t, %v; want ErrNoConnection by the context's end", ok, err)
	}
	close(lender.found)
	if err := <-lender.lent; err != nil {
		t.Errorf("the search ended with its borrower: %v", err)
	}
}

// Who has gone already asks for nothing.
func TestBorrowerThatHasGone(t *testing.T) {
	t.Parallel()
	lender := &slowLender{asked: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok, err := txhelper.Borrow(ctx, lender); !ok || !errors.Is(err, txhelper.ErrNoConnection) || !errors.Is(err, context.Canceled) {
		t.Errorf("%t, %v; want ErrNoConnection by the context's end", ok, err)
	}
	select {
	case <-lender.asked:
		t.Error("the lender was asked")
	default:
	}
}
