package pgxstore

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

func uuid(id idempotency.ClaimID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func interval(duration time.Duration) pgtype.Interval {
	return pgtype.Interval{Microseconds: duration.Microseconds(), Valid: true}
}

// row is one look at a key, with the database's time of that look.
type row struct {
	*db.KeyGetRow
	key idempotency.Key
}

// lookUp returns nil where the key has no row.
func (s *Store) lookUp(ctx context.Context, q txhelper.Querier, key idempotency.Key) (*row, error) {
	found, err := s.queries.KeyGet(ctx, q, &db.KeyGetParams{Scope: key.Scope, ID: key.ID})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // No row is an answer, not an error.
	}
	if err != nil {
		return nil, err
	}
	return &row{found, key}, nil
}

// lookUpAlone is lookUp outside of a transaction of ours.
func (s *Store) lookUpAlone(ctx context.Context, key idempotency.Key) (found *row, err error) {
	err = s.alone(ctx, func(q txhelper.Querier) error {
		found, err = s.lookUp(ctx, q, key)
		return err
	})
	return found, err
}

// completed reports whether the row holds an answer, which may have expired.
func (r *row) completed() bool { return r != nil && r.ExpiresAt.Valid }

// live reports whether the row is an answer to replay.
func (r *row) live() bool { return r.completed() && r.ExpiresAt.Time.After(r.ReadAt.Time) }

// unfinished reports whether the key was begun in a transaction. Such a row is
// visible only to that transaction, unless the guard was disabled.
func (r *row) unfinished() bool { return r != nil && r.Unfinished.Valid }

// same reports whether nothing has happened to the key between two looks.
func (r *row) same(other *row) bool {
	return other != nil && r.ClaimID == other.ClaimID && equalTime(r.ExpiresAt, other.ExpiresAt) && equalTime(r.LockedUntil, other.LockedUntil) &&
		bytes.Equal(r.Steps, other.Steps)
}

func equalTime(a, b pgtype.Timestamptz) bool { return a.Valid == b.Valid && a.Time.Equal(b.Time) }

// outcome judges a row whose state alone decides; nil if the row does not stop a
// claim. See idempotency.Record.Judge.
func (r *row) outcome(params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	if r == nil {
		return nil, nil //nolint:nilnil // As Judge.
	}
	record, err := r.record()
	if err != nil {
		return nil, err
	}
	return record.Judge(params, r.ReadAt.Time)
}

func (r *row) record() (*idempotency.Record, error) {
	fingerprint, err := idempotency.ParseFingerprint(r.Fingerprint)
	if err != nil {
		return nil, &idempotency.KeyError{Key: r.key, Err: err}
	}
	record := &idempotency.Record{
		Key:         r.key,
		State:       idempotency.InProgress,
		ClaimID:     r.ClaimID.Bytes,
		Attempt:     int(r.Attempt),
		Fingerprint: fingerprint,
		CreatedAt:   r.CreatedAt.Time,
		UpdatedAt:   r.UpdatedAt.Time,
		LockedUntil: r.LockedUntil.Time,
		ExpiresAt:   r.ExpiresAt.Time,
	}
	if record.Steps, err = parseSteps(r.Steps); err != nil {
		return nil, &idempotency.KeyError{Key: r.key, Err: err}
	}
	if r.completed() {
		record.State = idempotency.Completed
		record.Response = &idempotency.Response{Type: r.ResponseType, Body: r.Response}
	}
	return record, nil
}

// get returns the record of a valid key that is in progress or has a live answer.
func (s *Store) get(ctx context.Context, q txhelper.Querier, key idempotency.Key) (*idempotency.Record, error) {
	found, err := s.lookUp(ctx, q, key)
	if err != nil {
		return nil, s.explain(key, "get", lostBeforeCommit(err))
	}
	if found == nil || found.completed() && !found.live() {
		return nil, &idempotency.KeyError{Key: key, Err: idempotency.ErrNotFound}
	}
	if found.unfinished() {
		own, err := s.isOwn(ctx, q, found)
		if err != nil {
			return nil, s.explain(key, "get", lostBeforeCommit(err))
		}
		if !own {
			return nil, strayError(key)
		}
	}
	return found.record()
}
