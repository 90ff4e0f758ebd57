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
	return nil
}

// ValidateLease returns a *ParamError for what no store could claim under a
// lease. Stores call it before anything else.
func (p *BeginParams) ValidateLease() error {
	if err := p.validate(); err != nil {
		return err
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
