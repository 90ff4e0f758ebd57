package idempotency

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const maxStepNameLength = 255

// StepRecord is a recorded step of leased work: what is done outside of the
// database, and need not be done again by whoever takes the key over.
type StepRecord struct {
	// Name is the step's, once in a record: 1 to 255 bytes of UTF-8 without NUL.
	Name string
	// Arguments is a digest of what the step was called with.
	Arguments Fingerprint `json:"-"`
	// Response is what the step returned.
	Response *Response `json:"-"`
	// RecordedAt is when it was recorded, by the store's clock. AddStep ignores it.
	RecordedAt time.Time
}

// Validate returns a *ParamError for a step that no store could record. Stores
// call it in AddStep before anything else.
func (s *StepRecord) Validate() error {
	switch {
	case s == nil:
		return &ParamError{Field: "StepRecord", Reason: "is nil"}
	case s.Name == "":
		return &ParamError{Field: "StepRecord.Name", Reason: "is empty"}
	case len(s.Name) > maxStepNameLength:
		return &ParamError{Field: "StepRecord.Name", Reason: fmt.Sprintf("has %d bytes; the limit is %d", len(s.Name), maxStepNameLength)}
	case !isText(s.Name):
		return &ParamError{Field: "StepRecord.Name", Reason: "is not valid UTF-8 without NUL"}
	case s.Arguments == Fingerprint{}:
		return &ParamError{Field: "StepRecord.Arguments", Reason: "is zero; use FingerprintOf, or NoFingerprint to compare nothing"}
	}
	return s.Response.Validate()
}

// cloneSteps returns a copy that shares nothing with steps.
func cloneSteps(steps []StepRecord) []StepRecord {
	cloned := slices.Clone(steps)
	for i := range cloned {
		response := *cloned[i].Response
		response.Body = slices.Clone(response.Body)
		cloned[i].Response = &response
	}
	return cloned
}

// StepCall is one call of a step's function.
type StepCall struct {
	// Key is Lease.StepKey: the idempotency key for the request that the step makes. In
	// a header it stays out of errors, which quote URLs.
	Key string
	// MayHaveRun says that somebody has begun the work of this key before, and may have
	// done this step without recording it: look it up at the provider, or rely on Key.
	// False means that nobody had begun it when this call's claim was made.
	MayHaveRun bool
}

// Step does a part of leased work that must not be done twice, and records its
// result under the key. Where an earlier attempt has recorded the step, its result
// is returned and fn is not called. Arguments digests what the step depends on: a
// recorded step with other arguments is ErrStepChanged, and so is a name that is
// used twice in one attempt; a recorded result of another type is a
// *ResultTypeError. NoFingerprint compares nothing, which is right where the step
// depends on nothing but what Params.Fingerprint digests, in every version of the
// program.
//
// An error of fn's is returned, and nothing is recorded; one that Final marks becomes
// the answer where the function that called Step returns it. A result is recorded for
// as long as the lease may last, and at least tried once after that: where that
// fails, fn's effect is there, and only StepCall.Key keeps the next attempt from
// repeating it. Step does not start after the lease's end: ErrLeaseEnded. At most
// 100 steps, together at most Config.MaxResponseSize.
func Step[T any](ctx context.Context, lease *Lease, name string, arguments Fingerprint, fn func(ctx context.Context, call StepCall) (T, error)) (value T, err error) {
	switch {
	case lease == nil:
		return value, &ParamError{Field: "lease", Reason: "is nil"}
	case fn == nil:
		return value, &ParamError{Field: "fn", Reason: "is nil"}
	}
	settings := lease.client.settings
	codec, err := newResultCodec[T](settings.Codec)
	if err != nil {
		return value, err
	}
	step := &StepRecord{Name: name, Arguments: arguments, Response: &Response{Type: codec.typeName}}
	if err := step.Validate(); err != nil {
		return value, err
	}
	recorded, err := lease.start(ctx, step)
	if err != nil {
		if errors.Is(err, ErrStepChanged) {
			lease.otherProgram(err)
		}
		return value, err
	}
	if recorded != nil {
		value, err := codec.decode(lease.first.Key, recorded.Response)
		if err != nil {
			lease.otherProgram(err)
		}
		return value, err
	}
	made, err := fn(ctx, StepCall{Key: lease.StepKey(name), MayHaveRun: lease.first.Resumed})
	if err != nil {
		lease.stepFailed()
		return value, err
	}
	step.Response, err = codec.encode(made)
	if err == nil {
		// As for an answer: what cannot be read back would fail every later attempt.
		value, err = codec.decode(lease.first.Key, step.Response)
	}
	if err != nil {
		return value, lease.unrecorded(name, err)
	}
	return value, lease.record(ctx, step)
}

// start returns the step if it is recorded, and otherwise says that its function is
// about to be called.
func (l *Lease) start(ctx context.Context, step *StepRecord) (recorded *StepRecord, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked[step.Name] {
		return nil, l.keyError(fmt.Errorf("%w: step %q is asked for twice in one attempt", ErrStepChanged, step.Name))
	}
	l.asked[step.Name] = true
	for i := range l.first.Steps {
		if recorded := &l.first.Steps[i]; recorded.Name == step.Name {
			if !step.Arguments.Matches(recorded.Arguments) {
				return nil, l.keyError(fmt.Errorf("%w: step %q is recorded with other arguments", ErrStepChanged, step.Name))
			}
			return recorded, nil
		}
	}
	switch {
	case l.over != nil:
		return nil, l.over
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !time.Now().Before(l.deadline):
		return nil, l.keyError(ErrLeaseEnded)
	case l.recorded >= maxSteps:
		return nil, &ParamError{Field: "name", Reason: fmt.Sprintf("is of one step too many; the limit is %d", maxSteps)}
	}
	l.recorded++
	l.acted = true
	return nil, nil //nolint:nilnil // It is not recorded.
}

// otherProgram keeps an answer from being recorded, since the recorded steps are
// another program's.
func (l *Lease) otherProgram(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = err
	}
}

// stepFailed gives its place in the record back.
func (l *Lease) stepFailed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recorded--
}

// unrecorded is the error of a step whose effect is there and whose result is not.
func (l *Lease) unrecorded(name string, err error) error {
	// Not that error itself, which may say that nothing was done.
	return l.keyError(fmt.Errorf("idempotency: step %q was done, and its result cannot be recorded, so that every attempt does it again: %v", name, err)) //nolint:errorlint // As above.
}

// record adds the step to the record, by the end of the lease.
func (l *Lease) record(ctx context.Context, step *StepRecord) error {
	l.mu.Lock()
	l.size += len(step.Response.Body)
	size := l.size
	l.mu.Unlock()
	if limit := l.client.settings.MaxResponseSize; size > limit {
		return l.unrecorded(step.Name, fmt.Errorf("it makes the steps of the key %d bytes, and the limit is %d: return a reference instead, or raise Config.MaxResponseSize", size, limit))
	}
	// The effect is there, whatever the caller has given up since.
	ctx = context.WithoutCancel(ctx)
	for pause := firstPoll; ; pause = min(2*pause, longestPoll) {
		_, err := bounded(ctx, func(ctx context.Context) (None, error) {
			return None{}, l.client.store.AddStep(ctx, l.first, step)
		})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrClaimLost):
			l.end(err)
			return err
		case errors.Is(err, ErrInvalidParams):
			return l.unrecorded(step.Name, err)
		}
		if wait := jitter(pause); time.Now().Add(wait).Before(l.Deadline()) && sleep(ctx, wait) {
			continue
		}
		return l.keyError(fmt.Errorf("%w before step %q was recorded: %w", ErrLeaseEnded, step.Name, err))
	}
}
