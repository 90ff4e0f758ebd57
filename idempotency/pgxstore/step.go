package pgxstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/samecommit/samecommit/db"
	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/txhelper"
)

// step is an entry of the column steps. JSON writes the body in base64: null for
// nil, and "" for an empty one.
type step struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
	Type      string `json:"type"`
	Body      []byte `json:"body"`
	// RecordedAt is in microseconds since 1970; the server adds it.
	RecordedAt int64 `json:"recorded_at,omitempty"`
}

func (s *Store) addStep(ctx context.Context, q txhelper.Querier, claim *idempotency.Claim, added *idempotency.StepRecord) error {
	text, err := json.Marshal(&step{
		Name: added.Name, Arguments: added.Arguments.Text(), Type: added.Response.Type, Body: added.Response.Body,
	})
	if err != nil {
		return err
	}
	held, err := s.queries.KeyAddStep(ctx, q, &db.KeyAddStepParams{
		Scope: claim.Key.Scope, ID: claim.Key.ID, ClaimID: uuid(claim.ID), LockID: lockID(claim.Key),
		Name: added.Name, Step: string(text),
	})
	if err == nil && held == 0 {
		return &idempotency.KeyError{Key: claim.Key, Err: idempotency.ErrClaimLost}
	}
	return err
}

func parseSteps(column []byte) ([]idempotency.StepRecord, error) {
	if column == nil {
		return nil, nil
	}
	var found []step
	if err := json.Unmarshal(column, &found); err != nil {
		// Its text could hold a part of what was recorded.
		return nil, fmt.Errorf("pgxstore: the column steps is not as this version writes it (%T): another version has, or somebody by hand", err)
	}
	steps := make([]idempotency.StepRecord, len(found))
	for i, one := range found {
		arguments, err := idempotency.ParseFingerprintText(one.Arguments)
		if err != nil {
			return nil, err
		}
		steps[i] = idempotency.StepRecord{
			Name: one.Name, Arguments: arguments, RecordedAt: time.UnixMicro(one.RecordedAt),
			Response: &idempotency.Response{Type: one.Type, Body: one.Body},
		}
	}
	return steps, nil
}
