package idempotency

import (
	"context"
	"slices"
)

// settings is a Config with its defaults filled in, and what a client makes of
// it. Its address is the client's identity.
type settings struct {
	Config
	// storedKey is what Config.KeySecret has become.
	storedKey func(Key) Key
}

func newSettings(config *Config) (*settings, error) {
	withDefaults, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &settings{Config: withDefaults, storedKey: withDefaults.KeySecret.keyMapper()}
	s.KeySecret = nil // nothing asks for it any more
	s.FinalErrors = slices.Clone(s.FinalErrors)
	return s, nil
}

// recordable refuses, besides err, an answer that is not to be recorded.
func (s *settings) recordable(answer Answer, err error) (Answer, error) {
	if err == nil {
		err = answer.Response.Validate()
	}
	if err == nil {
		err = answer.Response.validateSize(s.MaxResponseSize)
	}
	if err != nil {
		return Answer{}, err
	}
	return answer, nil
}

// config returns the Config with its defaults, and without KeySecret.
func (s *settings) config() Config {
	config := s.Config
	config.FinalErrors = slices.Clone(config.FinalErrors)
	return config
}

// get is a client's Get from a store.
func (s *settings) get(ctx context.Context, store Verbs, key Key) (record *Record, err error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	key = s.storedKey(key)
	ctx, end := s.trace(ctx, OperationGet, key)
	defer func() { end(stateOf(record), false, err) }()
	return store.Get(ctx, key)
}

func (s *settings) beginParams(params *Params) (*BeginParams, error) {
	begin := &BeginParams{}
	if err := s.fillBeginParams(begin, params); err != nil {
		return nil, err
	}
	return begin, nil
}

func (s *settings) fillBeginParams(begin *BeginParams, params *Params) error {
	if err := params.validate(); err != nil {
		return err
	}
	if params.Lease != 0 {
		return &ParamError{Field: "Lease", Reason: "is set; only DoLeased and DoExternal hold keys by a lease"}
	}
	s.fillParams(begin, params)
	return nil
}

// fillLeaseParams leaves the claim id to be chosen.
func (s *settings) fillLeaseParams(begin *BeginParams, params *Params) error {
	if err := params.validate(); err != nil {
		return err
	}
	lease := params.Lease
	if lease == 0 {
		lease = s.Lease
	}
	if err := validateLease("Lease", lease); err != nil {
		return err
	}
	s.fillParams(begin, params)
	begin.Lease, begin.MaxAttempts = lease, s.MaxAttempts
	return nil
}

func (s *settings) fillParams(begin *BeginParams, params *Params) {
	ttl := params.TTL
	if ttl == 0 {
		ttl = s.TTL
	}
	*begin = BeginParams{Key: s.storedKey(params.Key), Fingerprint: params.Fingerprint, TTL: ttl}
}
