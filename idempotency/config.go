package idempotency

import (
	"fmt"
	"time"
)

// Defaults of Config.
const (
	DefaultTTL             = 24 * time.Hour
	DefaultWait            = 2 * time.Second
	DefaultMaxWaiters      = 10_000
	DefaultMaxSharedBytes  = 64 << 20
	DefaultMaxResponseSize = 1 << 20
	DefaultLease           = 30 * time.Second
	DefaultMaxHold         = 15 * time.Minute
	DefaultMaxAttempts     = 10
)

// Limits of Config.Lease and Params.Lease.
const (
	MinLease = 100 * time.Millisecond
	MaxLease = time.Hour
)

// Config configures a Client. The zero value means all defaults.
type Config struct {
	// TTL is how long an answer replays where Params.TTL is zero, which says how
	// long it should be. At least a microsecond. Defaults to 24 hours.
	TTL time.Duration
	// Wait is how long Do, Run, DoLeased and DoExternal wait for another holder of the
	// key where Params.Wait is zero. Defaults to 2 seconds; NoWait fails at once.
	Wait time.Duration
	// MaxWaiters is how many calls of Do, Run, DoLeased and DoExternal, of all keys
	// together, may wait in memory for other calls of this client; one more fails at
	// once with ErrOverloaded. Defaults to 10,000.
	MaxWaiters int
	// MaxSharedBytes bounds how many bytes of answers, of all keys together, calls
	// of Do, DoLeased and DoExternal turn into results at one time where another call of
	// this client has found out the answer. Each of them counts all of it until it returns; one
	// more waits for others to return, or for its context to end. An answer
	// larger than this goes alone. Results that callers keep do not count.
	// Defaults to 64 MiB.
	MaxSharedBytes int
	// MaxResponseSize is the largest answer that is recorded, in bytes. A larger
	// one fails the operation, which is rolled back. Defaults to 1 MiB.
	MaxResponseSize int
	// FinalErrors lists the errors that Final may record, each with its code.
	// Defaults to none.
	FinalErrors []FinalKind
	// Codec turns results into bytes and back. Defaults to encoding/json.
	Codec Codec
	// KeySecret, where it is set, makes the client keep each key under
	// another id, the HMAC-SHA-256 of the key under this secret. The store, its
	// locks, records, claims, errors, logs and tracers then have only that id, in
	// every Key that a caller gets back, and nobody who reads them can find out
	// the caller's by guessing. The caller goes on to name its own key, to Get as
	// to Do. Key.Scope stays as it is.
	//
	// The secret is a part of every key: services that share a table share it,
	// and with another one every key is new and every operation runs again. At
	// least 16 bytes, from a random source. Defaults to none.
	KeySecret Secret
	// Lease is Params.Lease where that is zero. Defaults to 30 seconds.
	Lease time.Duration
	// MaxHold bounds how long DoLeased, and DoExternal before its transaction, renew the
	// lease of one run of their function: one that hangs must not hold its key for ever.
	// Defaults to 15 minutes.
	MaxHold time.Duration
	// MaxAttempts is how many leases of one key may end without an answer before
	// DoLeased and DoExternal fail with ErrNeedsAttention. Work that was suspended, since its
	// function returned an error, does not count. Defaults to 10.
	MaxAttempts int
	// Tracer follows every call. Defaults to none.
	Tracer Tracer
}

func (c *Config) withDefaults() (Config, error) {
	var config Config
	if c != nil {
		config = *c
	}
	if config.TTL == 0 {
		config.TTL = DefaultTTL
	}
	if err := validateTTL("Config.TTL", config.TTL); err != nil {
		return config, err
	}
	if err := validateWait("Config.Wait", config.Wait); err != nil {
		return config, err
	}
	if config.Wait == 0 {
		config.Wait = DefaultWait
	}
	for _, err := range []error{
		fillLimit("MaxWaiters", &config.MaxWaiters, DefaultMaxWaiters, "use NoWait to let nobody wait"),
		fillLimit("MaxSharedBytes", &config.MaxSharedBytes, DefaultMaxSharedBytes, "0 means 64 MiB"),
		fillLimit("MaxResponseSize", &config.MaxResponseSize, DefaultMaxResponseSize, "0 means 1 MiB"),
		fillLimit("MaxHold", &config.MaxHold, DefaultMaxHold, "0 means 15 minutes"),
		fillLimit("MaxAttempts", &config.MaxAttempts, DefaultMaxAttempts, "0 means 10"),
	} {
		if err != nil {
			return config, err
		}
	}
	if config.Lease == 0 {
		config.Lease = DefaultLease
	}
	if err := validateLease("Config.Lease", config.Lease); err != nil {
		return config, err
	}
	if config.Codec == nil {
		config.Codec = jsonCodec{}
	}
	if err := validateCodec(config.Codec); err != nil {
		return config, err
	}
	if err := config.KeySecret.validate(); err != nil {
		return config, err
	}
	codes := make(map[string]bool, len(config.FinalErrors))
	for i, kind := range config.FinalErrors {
		field := fmt.Sprintf("Config.FinalErrors[%d]", i)
		if err := kind.validate(field); err != nil {
			return config, err
		}
		if codes[kind.code] {
			return config, &ParamError{Field: field, Reason: "has the code of another kind"}
		}
		codes[kind.code] = true
	}
	return config, nil
}

// fillLimit fills in what Config leaves to its default.
func fillLimit[N int | time.Duration](field string, limit *N, fallback N, advice string) error {
	if *limit < 0 {
		return &ParamError{Field: "Config." + field, Reason: "is negative; " + advice}
	}
	if *limit == 0 {
		*limit = fallback
	}
	return nil
}
