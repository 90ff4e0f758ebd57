package idempotency

import "context"

// TxClient is the three verbs inside one transaction of the caller's, made by
// Client.WithTx. It lives as long as the transaction.
type TxClient struct {
	settings *settings
	verbs    Verbs
}

// Begin claims the key as part of the transaction: if the transaction rolls
// back, so does the claim. The outcome is New, InProgress or Completed; on New
// do the work and call Complete, on InProgress and Completed the transaction
// stays usable. It tries once; a positive Params.Wait lets it try again on the
// caller's connection for that long.
//
// It is ErrFingerprintMismatch for a key used for another request and ErrNested
// for a key that this transaction has begun before and not completed.
func (c *TxClient) Begin(ctx context.Context, params Params) (outcome *Outcome, err error) {
	begin, err := c.settings.beginParams(&params)
	if err != nil {
		return nil, err
	}
	ctx, end := c.settings.trace(ctx, OperationBegin, begin.Key)
	defer func() { end(outcomeState(outcome), false, err) }()

	if err := c.settings.checkNesting(ctx, begin.Key); err != nil {
		return nil, err
	}
	outcome, err = waitWhileInProgress(ctx, begin.Key, params.waitOr(NoWait), func() (*Outcome, error) {
		return c.verbs.Begin(ctx, begin)
	})
	waited, ok := err.(*InProgressError) //nolint:errorlint // waitWhileInProgress does not wrap it.
	if ok && waited.Err == nil {
		outcome.RetryAfter = waited.RetryAfter
		return outcome, nil
	}
	return outcome, err
}

// Complete records the response as part of the transaction. A claim that is not
// held is ErrClaimLost, one that came from no Begin is ErrNotClaimed, and one
// without a TTL is a *ParamError; the transaction cannot commit any more.
func (c *TxClient) Complete(ctx context.Context, claim *Claim, response *Response) (record *Record, err error) {
	if err := response.validateSize(c.settings.MaxResponseSize); err != nil {
		return nil, err
	}
	var key Key
	if claim != nil {
		key = claim.Key
	}
	ctx, end := c.settings.trace(ctx, OperationComplete, key)
	defer func() { end(stateOf(record), false, err) }()
	return c.verbs.Complete(ctx, claim, response)
}

// Get returns the record as this transaction sees it, its own claims included.
func (c *TxClient) Get(ctx context.Context, key Key) (*Record, error) {
	return c.settings.get(ctx, c.verbs, key)
}
