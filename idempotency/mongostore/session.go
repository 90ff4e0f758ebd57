package mongostore

import (
	"context"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/samecommit/samecommit/idempotency"
)

// withoutSession takes the session out of a context. The driver would send everything in
// it: with its read concern, in its transaction, and from the goroutine that renews a
// lease too, which a session does not allow.
func withoutSession(ctx context.Context) context.Context { return mongo.NewSessionContext(ctx, nil) }

// outside is withoutSession for what would be mistaken for a part of the transaction: it
// returns an *idempotency.ParamError for a context that has an open one.
func outside(ctx context.Context) (context.Context, error) {
	if session := mongo.SessionFromContext(ctx); session != nil && session.TransactionRunning() {
		return nil, &idempotency.ParamError{Field: "ctx", Reason: "has a session with an open transaction, which this would not be a part of: use WithSession to complete in it, or a context without it"}
	}
	return withoutSession(ctx), nil
}

// WithSession returns the verbs as part of the session's transaction: Complete and AddStep
// are there if that commits, and Get reads as it does. It commits as safely as it was
// begun: begin it with writeconcern.Majority. After an error of Complete or AddStep it
// cannot commit any more. Begin is an *idempotency.ParamError, since others must see a
// claim at once. The session must have begun a transaction, and is used by one goroutine
// at a time, as the driver demands.
func (s *Store) WithSession(session *mongo.Session) idempotency.Verbs {
	return &sessionVerbs{store: s, session: session}
}

type sessionVerbs struct {
	store   *Store
	session *mongo.Session
}

// join puts the session into the context.
func (v *sessionVerbs) join(ctx context.Context) (context.Context, error) {
	switch {
	case v.session == nil:
		return nil, &idempotency.ParamError{Field: "session", Reason: "is nil"}
	case !v.session.TransactionRunning():
		return nil, &idempotency.KeyError{Err: idempotency.ErrTxEnded}
	}
	return mongo.NewSessionContext(ctx, v.session), nil
}

// abort ends the transaction after an error, so that the work is not committed without
// its answer.
func (v *sessionVerbs) abort(ctx context.Context, err error) {
	if err != nil && v.session != nil && v.session.TransactionRunning() {
		_ = v.session.AbortTransaction(context.WithoutCancel(ctx)) // where it fails, the server ends it
	}
}

func (v *sessionVerbs) Begin(context.Context, *idempotency.BeginParams) (*idempotency.Outcome, error) {
	return nil, &idempotency.ParamError{Field: "session", Reason: "cannot hold a claim, which others must see at once: begin by the store itself, outside of the transaction"}
}

func (v *sessionVerbs) Complete(ctx context.Context, claim *idempotency.Claim, response *idempotency.Response) (record *idempotency.Record, err error) {
	defer func() { v.abort(ctx, err) }()
	joined, err := v.join(ctx)
	if err != nil {
		return nil, err
	}
	return v.store.complete(joined, claim, response)
}

func (v *sessionVerbs) AddStep(ctx context.Context, claim *idempotency.Claim, step *idempotency.StepRecord) (err error) {
	defer func() { v.abort(ctx, err) }()
	joined, err := v.join(ctx)
	if err != nil {
		return err
	}
	return v.store.addStep(joined, claim, step)
}

func (v *sessionVerbs) Get(ctx context.Context, key idempotency.Key) (*idempotency.Record, error) {
	joined, err := v.join(ctx)
	if err != nil {
		return nil, err
	}
	return v.store.get(joined, key)
}
