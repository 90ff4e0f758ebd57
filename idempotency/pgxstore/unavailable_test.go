package pgxstore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/txhelper"
)

// noServer is a pool's interface, which is not used.
type noServer struct{ DB }

func (noServer) Acquire(context.Context) (*pgxpool.Conn, error) { panic("not to be called") }

// outage ends after so many tries, and counts them.
func outage(tries *int, until int) func(context.Context) error {
	return func(context.Context) error {
		if *tries++; *tries < until {
			return txhelper.ErrConnectionLost
		}
		return nil
	}
}

func newStore(t *testing.T) *Store {
	t.Helper()
	store, err := New(noServer{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestReachHasOneBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const bound = 10 * time.Second
		store := newStore(t)
		left, tries, start := bound, 0, time.Now()
		if err := store.reach(t.Context(), &left, outage(&tries, 20)); err != nil {
			t.Error(err)
		}
		spent := time.Since(start)
		if spent < time.Second || spent > bound/2 || left != bound-spent {
			t.Errorf("%s spent, %s left of %s", spent, left, bound)
		}
		// What is left is for the rest of the call, however long that runs.
		time.Sleep(time.Hour)
		start = time.Now()
		if err := store.reach(t.Context(), &left, outage(&tries, 1_000_000)); !errors.Is(err, txhelper.ErrConnectionLost) {
			t.Errorf("got %v, want the last error", err)
		}
		if again := time.Since(start); again != bound-spent || left != 0 {
			t.Errorf("%s spent, %s left, want %s and none", again, left, bound-spent)
		}
		tries = 0
		if err := store.reach(t.Context(), &left, outage(&tries, 1_000_000)); err == nil || tries != 1 {
			t.Errorf("%v after %d tries, want an error after one", err, tries)
		}
	})
}

func TestReachPausesLonger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		left, at := 10*time.Second, time.Now()
		var pauses []time.Duration
		err := store.reach(t.Context(), &left, func(context.Context) error {
			pauses = append(pauses, time.Since(at))
			at = time.Now()
			return txhelper.ErrConnectionLost
		})
		if err == nil {
			t.Error("there was a server")
		}
		longest := firstConnectPause
		for i, pause := range pauses[1:] {
			if pause < longest/2 || pause > longest {
				t.Errorf("pause %d is %s, want half of %s to the whole", i+1, pause, longest)
			}
			longest = min(2*longest, longestConnectPause)
		}
		if len(pauses) < 40 {
			t.Errorf("%d tries, want at least 40", len(pauses))
		}
	})
}

func TestReachEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := newStore(t)
		errMine := errors.New("mine")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errMine)
		defer cancel()
		left, start := time.Hour, time.Now()
		err := store.reach(ctx, &left, func(context.Context) error { return txhelper.ErrConnectionLost })
		if !errors.Is(err, errMine) || !errors.Is(err, txhelper.ErrConnectionLost) || time.Since(start) != time.Second {
			t.Errorf("%v after %s, want both causes after a second", err, time.Since(start))
		}
		// A try that the bound interrupts says less than the one before.
		left, start = time.Second, time.Now()
		first := true
		err = store.reach(t.Context(), &left, func(ctx context.Context) error {
			if first {
				first = false
				return txhelper.ErrConnectionLost
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, txhelper.ErrConnectionLost) || time.Since(start) != time.Second {
			t.Errorf("%v after %s, want the first error after a second", err, time.Since(start))
		}
	})
}
