package redisstore

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // Redis has no other digest; nobody gains by a collision of its own records.
	"encoding/base64"
	"encoding/hex"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
)

// Defaults of Config.
const (
	DefaultPrefix         = "samecommit:"
	DefaultReplicaTimeout = time.Second
)

// Config configures a Store. Nil and the zero value mean all defaults.
type Config struct {
	// Prefix begins the name of every key in Redis. Defaults to "samecommit:".
	Prefix string
	// Replicas is how many replicas must have a claim, and a step, before Begin and
	// AddStep return; with fewer they fail with ErrNotReplicated, and nobody was told
	// that the key is new. Complete waits for them and does not fail. A replica that
	// has it in memory may still lose it. Needs a *redis.Client or a
	// *redis.ClusterClient. Defaults to 0: none is waited for.
	Replicas int
	// ReplicaTimeout bounds that wait, and must be shorter than the client's
	// ReadTimeout, which is 3 seconds unless set. Defaults to 1 second.
	ReplicaTimeout time.Duration
}

// Store keeps keys in Redis. It is safe for concurrent use.
type Store struct {
	client redis.UniversalClient
	config Config
	// primary returns the server that has a key, for Config.Replicas.
	primary func(ctx context.Context, name string) (*redis.Client, error)
}

var _ idempotency.Store = (*Store)(nil)

// New returns a store on client, whose own retries are harmless here. A nil config means
// all defaults. It returns an *idempotency.ParamError for a client that is nil and for a
// config that cannot work.
func New(client redis.UniversalClient, config *Config) (*Store, error) {
	store := &Store{client: client}
	if config != nil {
		store.config = *config
	}
	if store.config.Prefix == "" {
		store.config.Prefix = DefaultPrefix
	}
	if store.config.ReplicaTimeout == 0 {
		store.config.ReplicaTimeout = DefaultReplicaTimeout
	}
	switch {
	case client == nil:
		return nil, &idempotency.ParamError{Field: "client", Reason: "is nil"}
	case store.config.Replicas < 0:
		return nil, &idempotency.ParamError{Field: "Config.Replicas", Reason: "is negative"}
	case store.config.ReplicaTimeout < time.Millisecond:
		return nil, &idempotency.ParamError{Field: "Config.ReplicaTimeout", Reason: "is shorter than a millisecond, and 0 would wait for ever"}
	}
	switch client := client.(type) {
	case *redis.Client:
		store.primary = func(context.Context, string) (*redis.Client, error) { return client, nil }
	case *redis.ClusterClient:
		store.primary = client.MasterForKey
	default:
		if store.config.Replicas > 0 {
			return nil, &idempotency.ParamError{Field: "Config.Replicas", Reason: "needs a *redis.Client or a *redis.ClusterClient, to ask the server that has the key"}
		}
	}
	return store, nil
}

// RedisKey returns the name of the key in Redis: the prefix and a digest of 43
// characters. What a client chose as its key neither decides on which node of a cluster
// that is, nor shows in MONITOR and in the names of keys.
func (s *Store) RedisKey(key idempotency.Key) string {
	digest := key.Digest()
	return s.config.Prefix + base64.RawURLEncoding.EncodeToString(digest[:])
}

// maxBeginRounds bounds how often Begin judges a record that has changed since. Each
// round means that somebody else made progress.
const maxBeginRounds = 10

// Begin claims the key under a lease. See idempotency.Verbs.
func (s *Store) Begin(ctx context.Context, params *idempotency.BeginParams) (*idempotency.Outcome, error) {
	if err := params.ValidateLease(); err != nil {
		return nil, err
	}
	own := *params
	if own.ClaimID == (idempotency.ClaimID{}) {
		// A script that the client sends again, for want of a reply, finds its own claim.
		own.ClaimID = idempotency.NewClaimID()
	}
	seen := &look{}
	for range maxBeginRounds {
		start := time.Now()
		found, err := s.claim(ctx, &own, seen)
		switch {
		case err != nil:
			return nil, err
		case found.claimed != nil:
			return newOutcome(&own, seen.record, found.claimed, start), nil
		}
		if outcome, err := found.record.Judge(&own, found.now); outcome != nil || err != nil {
			return outcome, err
		}
		seen = found
	}
	return &idempotency.Outcome{State: idempotency.InProgress}, nil
}

// claim claims a key without a record, or one whose record is as it was seen and does
// not stop the claim.
func (s *Store) claim(ctx context.Context, own *idempotency.BeginParams, seen *look) (*look, error) {
	id, lease := own.ClaimID.String(), micros(own.Lease)
	script, args := beginScript, []any{id, own.Fingerprint.Text(), lease}
	if before := seen.record; before != nil {
		keep := 0
		if before.State == idempotency.InProgress {
			keep = 1
		}
		script, args = takeScript, []any{seen.digest, id, before.NextAttempt(own.ClaimID), before.NextFingerprint(own).Text(), lease, keep}
	}
	reply, replicated, err := s.replicate(ctx, own.Key, script, args...)
	if err != nil {
		return nil, explain(own.Key, "begin", err)
	}
	found, err := parseLook(own.Key, reply)
	if err == nil && found.claimed != nil && !replicated {
		err = ErrNotReplicated
	}
	if err != nil {
		return nil, explain(own.Key, "begin", err)
	}
	return found, nil
}

func newOutcome(own *idempotency.BeginParams, before, claimed *idempotency.Record, start time.Time) *idempotency.Outcome {
	claim := &idempotency.Claim{
		Key: own.Key, ID: claimed.ClaimID, Attempt: claimed.Attempt, TTL: own.TTL,
		LockedUntil: claimed.LockedUntil, Deadline: start.Add(own.Lease),
	}
	if before != nil && before.State == idempotency.InProgress {
		claim.Resumed, claim.Steps = true, before.Steps
	}
	return &idempotency.Outcome{State: idempotency.New, Claim: claim}
}

// look is what begin.lua, take.lua and get.lua say.
type look struct {
	now time.Time
	// record is that of the key, nil where it has none.
	record *idempotency.Record
	// digest is that of the record as it is stored.
	digest string
	// claimed is the record of a claim that was made.
	claimed *idempotency.Record
}

func parseLook(key idempotency.Key, reply any) (*look, error) {
	values, _ := reply.([]any)
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i], _ = value.(string)
	}
	if len(texts) < 2 {
		return nil, errForeign
	}
	found := &look{}
	var err error
	if found.now, err = parseTime(texts[0]); err != nil {
		return nil, errForeign
	}
	if len(texts) > 2 {
		found.claimed, err = parseHead(key, texts[2])
		return found, err
	}
	if texts[1] == "" {
		return found, nil
	}
	sum := sha1.Sum([]byte(texts[1])) //nolint:gosec // As above.
	found.digest = hex.EncodeToString(sum[:])
	found.record, err = parseRecord(key, texts[1])
	return found, err
}

// Complete records the response. See idempotency.Verbs.
func (s *Store) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (*idempotency.Record, error) {
	if err := response.Validate(); err != nil {
		return nil, err
	}
	if err := claim.ValidateComplete(); err != nil {
		return nil, err
	}
	text, err := formatResponse(response)
	if err != nil {
		return nil, err
	}
	// The id of this call: it knows its own completion, and not that of another call.
	call := idempotency.NewClaimID().String()
	// Whether or not replicas have it: it is there, and to fail would not undo it.
	reply, _, err := s.replicate(ctx, claim.Key, completeScript, claim.ID.String(), call, micros(claim.TTL), text)
	record, err := changed(claim, "complete", reply, err)
	if err != nil {
		return nil, err
	}
	record.Response = &idempotency.Response{Type: response.Type, Body: bytes.Clone(response.Body)}
	return record, nil
}

// changed reads the first line of the claim's record, from a script that changes it.
func changed(claim *idempotency.Claim, doing string, reply any, err error) (*idempotency.Record, error) {
	if err != nil {
		return nil, explain(claim.Key, doing, err)
	}
	head, _ := reply.(string)
	if head == "" {
		return nil, &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	record, err := parseHead(claim.Key, head)
	if err != nil {
		return nil, explain(claim.Key, doing, err)
	}
	return record, nil
}

// AddStep records a step. See idempotency.Verbs.
func (s *Store) AddStep(ctx context.Context, claim *idempotency.Claim, added *idempotency.StepRecord) error {
	if err := added.Validate(); err != nil {
		return err
	}
	if err := claim.ValidateAddStep(); err != nil {
		return err
	}
	name, line, err := stepLine(added)
	if err != nil {
		return err
	}
	reply, replicated, err := s.replicate(ctx, claim.Key, addStepScript, claim.ID.String(), name, line)
	if _, err := changed(claim, "add step", reply, err); err != nil {
		return err
	}
	if !replicated {
		return explain(claim.Key, "add step", ErrNotReplicated)
	}
	return nil
}

// Get returns the record of key. See idempotency.Verbs.
func (s *Store) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	reply, err := s.run(ctx, key, getScript)
	if err != nil {
		return nil, explain(key, "get", err)
	}
	found, err := parseLook(key, reply)
	switch {
	case err != nil:
		return nil, explain(key, "get", err)
	case found.record == nil || found.record.Expired(found.now):
		return nil, &idempotency.KeyError{Key: key, Err: idempotency.ErrNotFound}
	}
	return found.record, nil
}

// Extend prolongs a lease. See idempotency.Store.
func (s *Store) Extend(ctx context.Context, claim *idempotency.Claim, lease time.Duration) (*idempotency.Claim, error) {
	if err := idempotency.ValidateLease(lease); err != nil {
		return nil, err
	}
	if err := claim.Validate(); err != nil {
		return nil, err
	}
	start := time.Now()
	reply, err := s.run(ctx, claim.Key, extendScript, claim.ID.String(), micros(lease))
	record, err := changed(claim, "extend", reply, err)
	if err != nil {
		return nil, err
	}
	extended := *claim
	extended.LockedUntil, extended.Deadline = record.LockedUntil, start.Add(lease)
	return &extended, nil
}

// Suspend ends the lease and keeps the record. See idempotency.Store.
func (s *Store) Suspend(ctx context.Context, claim *idempotency.Claim) error {
	return s.let(ctx, claim, "suspend", suspendScript)
}

// Release frees a key without an answer. See idempotency.Store.
func (s *Store) Release(ctx context.Context, claim *idempotency.Claim) error {
	return s.let(ctx, claim, "release", releaseScript)
}

// let lets go of the claim.
func (s *Store) let(ctx context.Context, claim *idempotency.Claim, doing string, script *redis.Script) error {
	if err := claim.Validate(); err != nil {
		return err
	}
	reply, err := s.run(ctx, claim.Key, script, claim.ID.String())
	_, err = changed(claim, doing, reply, err)
	return err
}

func micros(duration time.Duration) int64 { return duration.Microseconds() }

// run runs a script that is about a key.
func (s *Store) run(ctx context.Context, key idempotency.Key, script *redis.Script, args ...any) (any, error) {
	return script.Run(ctx, s.client, []string{s.RedisKey(key)}, args...).Result()
}

// replicate runs a script, and reports whether Config.Replicas have what the connection
// has written.
func (s *Store) replicate(ctx context.Context, key idempotency.Key, script *redis.Script, args ...any) (reply any, replicated bool, err error) {
	if s.config.Replicas == 0 {
		reply, err = s.run(ctx, key, script, args...)
		return reply, true, err
	}
	name := s.RedisKey(key)
	server, err := s.primary(ctx, name)
	if err != nil {
		return nil, false, err
	}
	// In one flight, over one connection: WAIT is about what that one has written.
	send := func(eval func(ctx context.Context, c redis.Scripter, keys []string, args ...any) *redis.Cmd) (any, int64, error) {
		pipe := server.Pipeline()
		ran := eval(ctx, pipe, []string{name}, args...)
		waited := pipe.Do(ctx, "wait", s.config.Replicas, s.config.ReplicaTimeout.Milliseconds())
		_, err := pipe.Exec(ctx)
		if ran.Err() != nil {
			return nil, 0, ran.Err()
		}
		replicas, _ := waited.Int64() // none, where WAIT failed
		return ran.Val(), replicas, err
	}
	reply, replicas, err := send(script.EvalSha)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		reply, replicas, err = send(script.Eval)
	}
	return reply, replicas >= int64(s.config.Replicas), err
}
