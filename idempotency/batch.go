package idempotency

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Batch is what BeginMany found out.
type Batch struct {
	// Items has one item for each of the Params, in their order.
	Items []*BatchItem

	settings *settings
	verbs    Verbs
}

// BatchItem is one key of a Batch.
type BatchItem struct {
	// Key is the key as the store has it: see Config.KeySecret.
	Key Key
	// State is New, InProgress or Completed as for Begin, and zero where Err is
	// set. On New do the work and set Response. A key that is New is Completed
	// where it comes again in the same batch.
	State State
	// Record is what to replay when State is Completed. Batch.Complete sets it
	// where State is New, and where such a key comes again; both then have the
	// same Record.
	Record *Record
	// RetryAfter is, when State is InProgress, how long to wait before the next
	// try; positive.
	RetryAfter time.Duration
	// Err is about this key alone, and the other items are as good as without
	// it: ErrFingerprintMismatch, ErrStepChanged, ErrNested or ErrUnfinished, as a *KeyError.
	Err error
	// Response is for the caller to set where State is New.
	Response *Response `json:"-"`

	// A pointer, since fmt would print what is in an unexported field.
	begin *BeginParams
	claim *Claim
	// repeats is the item of the same key that came first.
	repeats *BatchItem
}

// BeginMany claims several keys as part of the transaction, as Begin claims one.
// On PostgreSQL the number of statements does not grow with the number of keys.
// No params make a batch without items.
//
// Keys are claimed in ascending order, whatever the order of params, so batches
// that overlap do not deadlock; a transaction that calls BeginMany or Begin more
// than once must itself keep that order. A key that comes again in params is not
// claimed again: it is Completed with the answer of the first, or, where the two
// fingerprints do not match, ErrFingerprintMismatch.
//
// It tries once: a positive Params.Wait is refused. An error about one key is in
// that key's item. The error of BeginMany is about all of them: a *ParamError,
// with nothing sent; ErrInProgress where another open transaction has one of the
// keys and the store cannot tell which, with no key claimed and the transaction
// usable; after any other error the caller must roll back.
func (c *TxClient) BeginMany(ctx context.Context, params []Params) (batch *Batch, err error) {
	begins := make([]*BeginParams, len(params))
	for i := range params {
		if begins[i], err = c.settings.batchParams(&params[i]); err != nil {
			return nil, fieldOf(fmt.Sprintf("Params[%d]", i), err)
		}
	}
	ctx, end := c.settings.trace(ctx, OperationBeginMany, Key{})
	defer func() { end(0, false, err) }()

	batch = &Batch{Items: make([]*BatchItem, len(params)), settings: c.settings, verbs: c.verbs}
	firsts := make(map[Key]*BatchItem, len(params))
	var wanted []*BeginParams
	for i, begin := range begins {
		item := &BatchItem{Key: begin.Key, begin: begin, repeats: firsts[begin.Key]}
		batch.Items[i] = item
		if item.repeats != nil {
			continue
		}
		firsts[begin.Key] = item
		if item.Err = c.settings.checkNesting(ctx, begin.Key); item.Err == nil {
			wanted = append(wanted, begin)
		}
	}
	slices.SortFunc(wanted, func(a, b *BeginParams) int {
		return cmp.Or(strings.Compare(a.Key.Scope, b.Key.Scope), strings.Compare(a.Key.ID, b.Key.ID))
	})
	results, err := beginMany(ctx, c.verbs, wanted)
	if err != nil {
		return nil, err
	}
	for i, result := range results {
		firsts[wanted[i].Key].begun(result)
	}
	for _, item := range batch.Items {
		if item.repeats != nil {
			item.repeat()
		}
	}
	return batch, nil
}

func (s *settings) batchParams(params *Params) (*BeginParams, error) {
	begin, err := s.beginParams(params)
	if err == nil && params.Wait > 0 {
		err = &ParamError{Field: "Wait", Reason: "is positive; BeginMany tries once"}
	}
	return begin, err
}

// fieldOf puts the name of the element that was refused before the field's.
func fieldOf(element string, err error) error {
	var paramErr *ParamError
	if !errors.As(err, &paramErr) {
		return err
	}
	return &ParamError{Field: element + "." + paramErr.Field, Reason: paramErr.Reason}
}

func beginMany(ctx context.Context, verbs Verbs, params []*BeginParams) ([]BeginResult, error) {
	if len(params) == 0 {
		return nil, nil
	}
	if many, ok := verbs.(BatchVerbs); ok {
		return many.BeginMany(ctx, params)
	}
	results := make([]BeginResult, len(params))
	for i, begin := range params {
		outcome, err := verbs.Begin(ctx, begin)
		ofKey := errors.Is(err, ErrFingerprintMismatch) || errors.Is(err, ErrNested) || errors.Is(err, ErrUnfinished)
		if err != nil && !ofKey {
			return nil, err
		}
		results[i] = BeginResult{Outcome: outcome, Err: err}
	}
	return results, nil
}

func (i *BatchItem) begun(result BeginResult) {
	if i.Err = result.Err; i.Err != nil {
		return
	}
	i.State, i.claim = result.Outcome.State, result.Outcome.Claim
	switch i.State {
	case Completed:
		i.Record = result.Outcome.Record
	case InProgress:
		if i.RetryAfter = result.Outcome.RetryAfter; i.RetryAfter <= 0 {
			i.RetryAfter = defaultRetryAfter
		}
	}
}

// repeat judges a key that came before in the batch.
func (i *BatchItem) repeat() {
	first := i.repeats
	fingerprint := i.begin.Fingerprint
	differs := !fingerprint.Matches(first.begin.Fingerprint) || first.Record != nil && !fingerprint.Matches(first.Record.Fingerprint)
	if first.Err == nil && differs {
		i.Err = &KeyError{Key: i.Key, Err: ErrFingerprintMismatch}
		return
	}
	i.State, i.Record, i.RetryAfter, i.Err = first.State, first.Record, first.RetryAfter, first.Err
	if i.State == New {
		i.State = Completed
	}
}

// Complete records, in one call of the store, the Response of every item that is
// New, and sets Record there and where such a key comes again. A response that
// is missing or refused is a *ParamError and nothing was sent. After any other
// error the transaction cannot commit; ErrClaimLost is one for a claim that is
// not held, as for a batch that is completed twice.
func (b *Batch) Complete(ctx context.Context) (err error) {
	var begun []*BatchItem
	var claims []*Claim
	var responses []*Response
	for i, item := range b.Items {
		if item.claim == nil {
			continue
		}
		err := item.Response.Validate()
		if err == nil {
			err = item.Response.validateSize(b.settings.MaxResponseSize)
		}
		if err != nil {
			return fieldOf(fmt.Sprintf("Items[%d]", i), err)
		}
		begun, claims, responses = append(begun, item), append(claims, item.claim), append(responses, item.Response)
	}
	if len(claims) == 0 {
		return nil
	}
	ctx, end := b.settings.trace(ctx, OperationCompleteMany, Key{})
	var state State
	defer func() { end(state, false, err) }()

	records, err := completeMany(ctx, b.verbs, claims, responses)
	if err != nil {
		return err
	}
	state = Completed
	for i, record := range records {
		begun[i].Record = record
	}
	for _, item := range b.Items {
		if item.repeats != nil && item.Err == nil {
			item.Record = item.repeats.Record
		}
	}
	return nil
}

func completeMany(ctx context.Context, verbs Verbs, claims []*Claim, responses []*Response) (records []*Record, err error) {
	if many, ok := verbs.(BatchVerbs); ok {
		return many.CompleteMany(ctx, claims, responses)
	}
	records = make([]*Record, len(claims))
	for i, claim := range claims {
		if records[i], err = verbs.Complete(ctx, claim, responses[i]); err != nil {
			return nil, err
		}
	}
	return records, nil
}
