package idempotency

import "time"

// BeginParams is one claim, as a store sees it: no defaults are left to fill in.
type BeginParams struct {
	Key         Key
	Fingerprint Fingerprint `json:"-"`
	// TTL is how long the answer replays from completion on: a microsecond or
	// more.
	TTL time.Duration
	// Lease is how long the claim lasts unless it is extended: positive for a
	// Store's own Begin, zero inside a transaction, which needs no lease.
	Lease time.Duration
	// ClaimID is the id that the claim will have. The same one again, after a lost
	// reply, gets the same claim: New with Claim.Resumed, and a new lease. Zero lets
	// the store choose, and so it is inside a transaction.
	ClaimID ClaimID
	// MaxAttempts bounds Claim.Attempt: beyond it the claim is ErrNeedsAttention. 0
	// does not, and so it is inside a transaction.
	MaxAttempts int
}

// ValidateTx returns a *ParamError for what no store could claim inside a
// transaction. Stores call it before anything else.
func (p *BeginParams) ValidateTx() error {
	if err := p.validate(); err != nil {
		return err
	}
	if p.Lease != 0 {
		return &ParamError{Field: "Lease", Reason: "is set; a claim inside a transaction ends with the transaction"}
	}
	if p.ClaimID != (ClaimID{}) || p.MaxAttempts != 0 {
		return &ParamError{Field: "BeginParams", Reason: "has a ClaimID or MaxAttempts, which are for claims under a lease"}
	}
	return nil
}

// ValidateLease returns a *ParamError for what no store could claim under a
// lease. Stores call it before anything else.
func (p *BeginParams) ValidateLease() error {
	if err := p.validate(); err != nil {
		return err
	}
	if p.MaxAttempts < 0 {
		return &ParamError{Field: "MaxAttempts", Reason: "is negative; 0 does not bound them"}
	}
	return ValidateLease(p.Lease)
}

// ValidateLease returns a *ParamError unless lease is at least a millisecond.
func ValidateLease(lease time.Duration) error {
	switch {
	case lease < 0:
		return &ParamError{Field: "Lease", Reason: "is negative"}
	case lease < time.Millisecond:
		return &ParamError{Field: "Lease", Reason: "is shorter than a millisecond"}
	}
	return nil
}

func (p *BeginParams) validate() error {
	if p == nil {
		return &ParamError{Field: "BeginParams", Reason: "is nil"}
	}
	if err := p.Key.Validate(); err != nil {
		return err
	}
	if err := p.Fingerprint.validate(); err != nil {
		return err
	}
	return validateTTL("TTL", p.TTL)
}
