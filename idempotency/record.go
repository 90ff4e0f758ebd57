package idempotency

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// State is where a key stands. The zero value is invalid.
type State uint8

// The three answers to Begin. A Record is InProgress or Completed.
const (
	// New means that the key was free and is now claimed: go on.
	New State = iota + 1
	// InProgress means that somebody else holds the key.
	InProgress
	// Completed means that the answer is recorded: replay it.
	Completed
)

// String returns "new", "in progress" or "completed".
func (s State) String() string {
	switch s {
	case New:
		return "new"
	case InProgress:
		return "in progress"
	case Completed:
		return "completed"
	default:
		return "invalid"
	}
}

// Outcome is the answer to Begin.
type Outcome struct {
	State State
	// Claim is set when State is New. It goes to Complete.
	Claim *Claim
	// Record is set when State is Completed, and when it is InProgress under a
	// lease. A claim in another open transaction cannot be seen.
	Record *Record
	// Executed says, when State is Completed, that this call ran the operation and
	// that its commit recorded the answer. It is for Run alone.
	Executed bool
	// RetryAfter suggests, when State is InProgress, how long to wait before
	// the next try; zero when the store cannot tell.
	RetryAfter time.Duration
}

// LogValue returns, for slog, the state and what Record and Claim reveal.
func (o *Outcome) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("state", o.State.String()), slog.Bool("executed", o.Executed)}
	if o.Claim != nil {
		attrs = append(attrs, slog.Any("claim", o.Claim))
	}
	if o.Record != nil {
		attrs = append(attrs, slog.Any("record", o.Record))
	}
	return slog.GroupValue(attrs...)
}

// ClaimID identifies one claim, or all of one BeginMany. It is random: a number
// from a sequence could be handed out again after a failover.
type ClaimID [16]byte

// NewClaimID returns a random claim id, a version 4 UUID.
func NewClaimID() ClaimID {
	var id ClaimID
	// Read never fails: it ends the program if the system has no randomness.
	_, _ = rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseClaimID returns the id that String was called on.
func ParseClaimID(text string) (id ClaimID, err error) {
	err = id.UnmarshalText([]byte(text))
	return id, err
}

// String returns the id in hexadecimal.
func (id ClaimID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns String.
func (id ClaimID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what String writes. Anything else is a *ParamError.
func (id *ClaimID) UnmarshalText(text []byte) error {
	var read ClaimID
	if len(text) != hex.EncodedLen(len(read)) {
		return &ParamError{Field: "ClaimID", Reason: "does not have 32 hexadecimal digits"}
	}
	if _, err := hex.Decode(read[:], text); err != nil {
		return &ParamError{Field: "ClaimID", Reason: "is not hexadecimal"}
	}
	*id = read
	return nil
}

// Claim is a hold on a key, made by Begin and ended by Complete.
type Claim struct {
	// Key is the key as the store has it: see Config.KeySecret.
	Key Key
	ID  ClaimID
	// Attempt is 1 for a key's first claim and grows when a lease that ended
	// without completion is taken over, unless it was suspended.
	Attempt int
	// TTL is how long the answer will replay once completed. At least a
	// microsecond.
	TTL time.Duration
	// LockedUntil is the end of the lease by the store's clock. It is zero for a
	// claim inside a transaction, which ends with the transaction.
	LockedUntil time.Time
	// Deadline is when the holder of a lease must stop, on this process's
	// monotonic clock. It was started before the claim was sent, so it is never
	// later than LockedUntil. It is zero for a claim inside a transaction.
	Deadline time.Time
	// Resumed says that the key had a record in progress before this claim, under
	// a lease: somebody has begun the work, and may have done some of it.
	Resumed bool
	// Steps are those that were recorded before this claim, oldest first.
	Steps []StepRecord `json:"-"`
}

// Validate returns a *KeyError that is ErrNotClaimed for a claim that no Begin
// returned. Stores call it in Extend and Release before anything else.
func (c *Claim) Validate() error {
	if c == nil {
		return &KeyError{Err: ErrNotClaimed}
	}
	if c.ID == (ClaimID{}) {
		return &KeyError{Key: c.Key, Err: ErrNotClaimed}
	}
	return nil
}

// ValidateComplete is Validate for Complete, and returns a *ParamError for a
// claim without a TTL, whose answer would never replay. Who carries a claim to
// another process carries its TTL too.
func (c *Claim) ValidateComplete() error {
	if err := c.Validate(); err != nil {
		return err
	}
	return validateTTL("Claim.TTL", c.TTL)
}

// ValidateRunHeld is ValidateComplete and ValidateAddStep for RunHeld.
func (c *Claim) ValidateRunHeld() error {
	if err := c.ValidateComplete(); err != nil {
		return err
	}
	return c.ValidateAddStep()
}

// ValidateAddStep is Validate for AddStep, and returns a *ParamError for a claim
// that was begun in a transaction.
func (c *Claim) ValidateAddStep() error {
	if err := c.Validate(); err != nil {
		return err
	}
	if c.LockedUntil.IsZero() {
		return &ParamError{Field: "Claim", Reason: "was begun in a transaction, which keeps or undoes its work as a whole: it has no steps, and no other transaction"}
	}
	return nil
}

// LogValue returns, for slog, the hash of the key and the attempt.
func (c *Claim) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("key", c.Key), slog.Int("attempt", c.Attempt))
}

// Record is what a store knows about a key.
//
// In JSON, which is what slog's JSONHandler writes for a Record inside a struct of
// the caller's, it has the hash of its key and neither fingerprint nor response,
// and it cannot be read back.
type Record struct {
	// Key is the key as the store has it: see Config.KeySecret.
	Key Key
	// State is InProgress or Completed.
	State State
	// ClaimID is the claim that holds the key or completed it.
	ClaimID ClaimID
	// Attempt is the number of that claim, from 1.
	Attempt     int
	Fingerprint Fingerprint `json:"-"`
	// Response is nil until the key is completed.
	Response *Response `json:"-"`
	// CreatedAt is when the row was written for this claim, UpdatedAt when it
	// last changed. Do writes the finished row once, so there they are equal.
	CreatedAt time.Time
	UpdatedAt time.Time
	// LockedUntil is the end of the lease; zero without one.
	LockedUntil time.Time
	// ExpiresAt is when the answer stops replaying; zero until completed.
	ExpiresAt time.Time
	// Steps are those of leased work in progress, oldest first. Completion drops
	// them.
	Steps []StepRecord `json:"-"`
}

// Expired reports whether the answer no longer replays at now, by the store's
// clock. What is in progress has not expired.
func (r *Record) Expired(now time.Time) bool { return r.State == Completed && !r.ExpiresAt.After(now) }

// Suspended reports whether the holder of a lease has given it up and left the
// work to be continued: see Store.Suspend. Such a lease ended when the record last
// changed.
func (r *Record) Suspended() bool {
	return r.State == InProgress && !r.LockedUntil.IsZero() && r.LockedUntil.Equal(r.UpdatedAt)
}

// maxRetryAfter bounds the advice of a leased key: the rest of its lease says when
// somebody could take it over, and not when the work ends.
const maxRetryAfter = 5 * time.Second

// Judge says what the record means to a claim at now, by the store's clock:
// Completed where its answer replays, and InProgress where a lease holds the key.
// Another request's fingerprint is ErrFingerprintMismatch, an attempt too many
// ErrNeedsAttention, and a claim without a lease on work that only leased work can
// continue ErrStepChanged. The outcome has the record itself. It is nil where the
// record does not stop the claim, as a nil record and the claim's own do not;
// whether a transaction holds the key is for the store to say.
func (r *Record) Judge(params *BeginParams, now time.Time) (*Outcome, error) {
	switch {
	case r == nil || r.Expired(now) || r.State == InProgress && r.LockedUntil.IsZero():
	case !params.Fingerprint.Matches(r.Fingerprint):
		return nil, &KeyError{Key: r.Key, Err: ErrFingerprintMismatch}
	case r.State == Completed:
		return &Outcome{State: Completed, Record: r}, nil
	case r.isOf(params.ClaimID):
	case r.LockedUntil.After(now):
		return &Outcome{State: InProgress, Record: r, RetryAfter: min(r.LockedUntil.Sub(now), maxRetryAfter)}, nil
	case params.Lease == 0 && (len(r.Steps) > 0 || r.Suspended()):
		return nil, &KeyError{Key: r.Key, Err: fmt.Errorf("%w: leased work has begun under this key, which leased work alone can continue", ErrStepChanged)}
	case params.MaxAttempts > 0 && r.NextAttempt(params.ClaimID) > params.MaxAttempts:
		return nil, &KeyError{Key: r.Key, Err: ErrNeedsAttention}
	}
	return nil, nil //nolint:nilnil // The record stops nobody, which is no error.
}

// NextAttempt is the number of a claim that replaces the record, or is its own
// again: it grows where a lease has ended, and not where it was suspended.
func (r *Record) NextAttempt(id ClaimID) int {
	switch {
	case r == nil || r.State == Completed:
		return 1
	case r.isOf(id) || r.Suspended():
		return r.Attempt
	default:
		return r.Attempt + 1
	}
}

// NextFingerprint is that of a claim that replaces the record. Leased work that goes
// on stays that of its request: a caller who compares nothing must not make it
// anybody's.
func (r *Record) NextFingerprint(params *BeginParams) Fingerprint {
	if r != nil && r.State == InProgress && params.Lease > 0 && params.Fingerprint == NoFingerprint {
		return r.Fingerprint
	}
	return params.Fingerprint
}

// isOf reports whether the record is the claim's with this id, which is not zero.
func (r *Record) isOf(id ClaimID) bool { return id != ClaimID{} && r.ClaimID == id }

// Clone returns a copy that shares nothing with r, nil for nil.
func (r *Record) Clone() *Record {
	if r == nil {
		return nil
	}
	cloned := r.share()
	if r.Response != nil {
		cloned.Response.Body = slices.Clone(r.Response.Body)
	}
	cloned.Steps = cloneSteps(r.Steps)
	return cloned
}

// share returns a copy that shares the bytes of the answer with r.
func (r *Record) share() *Record {
	shared := *r
	if r.Response != nil {
		response := *r.Response
		shared.Response = &response
	}
	return &shared
}

// LogValue returns, for slog, the record without its key, fingerprint and body.
func (r *Record) LogValue() slog.Value {
	if r == nil {
		return slog.AnyValue(nil)
	}
	return slog.GroupValue(
		slog.Any("key", r.Key),
		slog.String("state", r.State.String()),
		slog.Int("attempt", r.Attempt),
		slog.Time("created_at", r.CreatedAt),
	)
}
