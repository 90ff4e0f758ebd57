package idempotency

import (
	"fmt"
	"log/slog"
	"time"
)

// NoWait as Params.Wait or Config.Wait makes a duplicate of a running
// operation fail at once with ErrInProgress.
const NoWait time.Duration = -1

// Params names one operation.
type Params struct {
	// Key is required.
	Key Key
	// Fingerprint digests the request; required. See FingerprintOf and
	// NoFingerprint.
	Fingerprint Fingerprint `json:"-"`
	// TTL is how long the recorded answer replays, counted from completion by
	// the store's clock. It must exceed the longest time over which a client
	// retries: after it the key is free and the operation runs again. It must
	// also be far longer than a call. An answer that expires, and is swept,
	// while another call runs the operation no longer undoes what that call did.
	// At least a microsecond. Defaults to Config.TTL.
	TTL time.Duration
	// Wait bounds how long a call waits for another holder of the key. Do, Run, DoLeased
	// and DoExternal default to Config.Wait. DoTx and TxClient.Begin, which would wait on the
	// caller's own connection, default to NoWait. BeginMany does not wait.
	Wait time.Duration
	// Lease is for DoLeased and DoExternal alone: how long the key stays held after this
	// process has died, before another one may go on. It is renewed every third of it.
	// 100 milliseconds to 1 hour. Defaults to Config.Lease.
	Lease time.Duration
}

// LogValue returns, for slog, the hash of the key and the durations.
func (p Params) LogValue() slog.Value {
	return slog.GroupValue(slog.Any("key", p.Key), slog.Duration("ttl", p.TTL), slog.Duration("wait", p.Wait))
}

// waitOr returns how long to wait for another holder of the key.
func (p *Params) waitOr(fallback time.Duration) time.Duration {
	wait := p.Wait
	if wait == 0 {
		wait = fallback
	}
	return max(wait, 0) // NoWait
}

func (p *Params) validate() error {
	if err := p.Key.Validate(); err != nil {
		return err
	}
	if err := p.Fingerprint.validate(); err != nil {
		return err
	}
	if p.TTL != 0 { // Config.TTL
		if err := validateTTL("TTL", p.TTL); err != nil {
			return err
		}
	}
	return validateWait("Wait", p.Wait)
}

// validateLease refuses what could not be renewed in time, and what would keep a
// key of a process that has died for too long. A store takes any ValidateLease does.
func validateLease(field string, lease time.Duration) error {
	if lease < MinLease || lease > MaxLease {
		return &ParamError{Field: field, Reason: fmt.Sprintf("is %s; it must be %s to %s", lease, MinLease, MaxLease)}
	}
	return nil
}

// validateTTL refuses what is not positive, and what a store that keeps
// microseconds, as PostgreSQL does, would take for zero: an answer that never
// replays.
func validateTTL(field string, ttl time.Duration) error {
	if ttl < time.Microsecond {
		return &ParamError{Field: field, Reason: fmt.Sprintf("is %s; it must be at least a microsecond, and far longer than a call", ttl)}
	}
	return nil
}

func validateWait(field string, wait time.Duration) error {
	if wait < 0 && wait != NoWait {
		return &ParamError{Field: field, Reason: "is negative; use NoWait to fail at once"}
	}
	return nil
}
