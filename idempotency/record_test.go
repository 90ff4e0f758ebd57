package idempotency_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

func TestClaimIDIsKeptAsText(t *testing.T) {
	t.Parallel()
	id := idempotency.NewClaimID()
	if read, err := idempotency.ParseClaimID(id.String()); err != nil || read != id {
		t.Errorf("%s is read as %s, %v", id, read, err)
	}
	written, err := json.Marshal(map[string]idempotency.ClaimID{"id": id})
	if err != nil {
		t.Fatal(err)
	}
	var read map[string]idempotency.ClaimID
	if err := json.Unmarshal(written, &read); err != nil || read["id"] != id {
		t.Errorf("%s is read as %v, %v", written, read, err)
	}
	for _, text := range []string{"", id.String()[1:], id.String() + "0", "x" + id.String()[1:]} {
		if read, err := idempotency.ParseClaimID(text); !errors.Is(err, idempotency.ErrInvalidParams) || read != (idempotency.ClaimID{}) {
			t.Errorf("%q is read as %s, %v; want ErrInvalidParams", text, read, err)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Now()
	asked, other := idempotency.FingerprintOf("asked"), idempotency.FingerprintOf("other")
	record := func(state idempotency.State, until time.Time) *idempotency.Record {
		record := &idempotency.Record{Key: testParams("k").Key, State: state, Fingerprint: asked}
		if state == idempotency.Completed {
			record.ExpiresAt, record.Response = until, &idempotency.Response{Type: idempotency.TypeNone}
		} else {
			record.LockedUntil = until
		}
		return record
	}
	suspended := record(idempotency.InProgress, now.Add(-time.Minute))
	suspended.UpdatedAt = suspended.LockedUntil
	for name, test := range map[string]struct {
		record      *idempotency.Record
		fingerprint idempotency.Fingerprint
		want        idempotency.State // 0: free
		wantErr     error
	}{
		"none":                     {nil, asked, 0, nil},
		"an answer":                {record(idempotency.Completed, now.Add(1)), asked, idempotency.Completed, nil},
		"to another request":       {record(idempotency.Completed, now.Add(1)), other, 0, idempotency.ErrFingerprintMismatch},
		"that expires now":         {record(idempotency.Completed, now), other, 0, nil},
		"a lease":                  {record(idempotency.InProgress, now.Add(time.Minute)), asked, idempotency.InProgress, nil},
		"of another request":       {record(idempotency.InProgress, now.Add(time.Minute)), other, 0, idempotency.ErrFingerprintMismatch},
		"and one that has ended":   {record(idempotency.InProgress, now.Add(-time.Minute)), other, 0, idempotency.ErrFingerprintMismatch},
		"that ends now":            {record(idempotency.InProgress, now), asked, 0, nil},
		"a suspended one":          {suspended, asked, 0, nil},
		"of another, suspended":    {suspended, other, 0, idempotency.ErrFingerprintMismatch},
		"a claim without a lease":  {record(idempotency.InProgress, time.Time{}), asked, 0, nil},
		"an answer without an end": {record(idempotency.Completed, time.Time{}), asked, 0, nil},
	} {
		if expired := strings.HasPrefix(name, "that expires") || strings.HasSuffix(name, "without an end"); test.record != nil && test.record.Expired(now) != expired {
			t.Errorf("%s: Expired is %t, want %t", name, !expired, expired)
		}
		outcome, err := test.record.Judge(&idempotency.BeginParams{Fingerprint: test.fingerprint, Lease: time.Minute}, now)
		if !errors.Is(err, test.wantErr) || (outcome == nil) != (test.want == 0) {
			t.Errorf("%s: %+v, %v", name, outcome, err)
			continue
		}
		if outcome == nil {
			continue
		}
		if outcome.State != test.want || outcome.Record != test.record || outcome.Executed {
			t.Errorf("%s: %+v", name, outcome)
		}
		if test.want == idempotency.InProgress && outcome.RetryAfter != 5*time.Second {
			t.Errorf("%s: retry after %v, want 5 seconds of the minute", name, outcome.RetryAfter)
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	t.Parallel()
	record := &idempotency.Record{State: idempotency.Completed, Response: &idempotency.Response{Type: "bytes", Body: []byte("body")}}
	cloned := record.Clone()
	cloned.Response.Body[0], cloned.Response.Type, cloned.State = 'B', "other", idempotency.InProgress
	if string(record.Response.Body) != "body" || record.Response.Type != "bytes" || record.State != idempotency.Completed {
		t.Errorf("%+v has changed", record)
	}
	if cloned := (*idempotency.Record)(nil).Clone(); cloned != nil {
		t.Error("a record has been made of none")
	}
	if cloned := (&idempotency.Record{Response: &idempotency.Response{Body: []byte{}}}).Clone(); cloned.Response.Body == nil {
		t.Error("an empty body has become none")
	}
}

// wrapped is a store that hides what else the one inside is.
type wrapped struct {
	idempotency.TxStore[*memstore.Tx]
}

func TestDeleteExpiredOfAStoreThatIsNoSweeper(t *testing.T) {
	t.Parallel()
	client, err := idempotency.NewClient(wrapped{memstore.New[*memstore.Tx](nil)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if deleted, err := client.DeleteExpired(t.Context(), 0); deleted != 0 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%d, %v; want ErrUnsupported", deleted, err)
	}
}

func TestJudgeLeasedWork(t *testing.T) {
	t.Parallel()
	now := time.Now()
	asked, id := idempotency.FingerprintOf("asked"), idempotency.NewClaimID()
	ended := &idempotency.Record{
		Key: testParams("k").Key, State: idempotency.InProgress, ClaimID: id, Attempt: 3, Fingerprint: asked,
		UpdatedAt: now.Add(-time.Hour), LockedUntil: now.Add(-time.Minute),
	}
	suspended, stepped, running := *ended, *ended, *ended
	suspended.LockedUntil = suspended.UpdatedAt
	stepped.Steps = []idempotency.StepRecord{{Name: "charge", Arguments: asked, Response: &idempotency.Response{Type: idempotency.TypeNone}}}
	running.LockedUntil = now.Add(time.Minute)
	leased := idempotency.BeginParams{Fingerprint: asked, Lease: time.Minute}
	own, bounded, inTx := leased, leased, leased
	own.ClaimID, bounded.MaxAttempts, inTx.Lease = id, 3, 0
	for name, test := range map[string]struct {
		record  *idempotency.Record
		params  idempotency.BeginParams
		wantErr error
		attempt int
	}{
		"ended":                             {ended, leased, nil, 4},
		"ended, in a transaction":           {ended, inTx, nil, 4},
		"ended too often":                   {ended, bounded, idempotency.ErrNeedsAttention, 4},
		"suspended":                         {&suspended, leased, nil, 3},
		"suspended, which is not too often": {&suspended, bounded, nil, 3},
		"suspended, in a transaction":       {&suspended, inTx, idempotency.ErrStepChanged, 3},
		"with steps":                        {&stepped, leased, nil, 4},
		"with steps, in a transaction":      {&stepped, inTx, idempotency.ErrStepChanged, 4},
		"its own":                           {ended, own, nil, 3},
		"its own, running":                  {&running, own, nil, 3},
	} {
		outcome, err := test.record.Judge(&test.params, now)
		if outcome != nil || !errors.Is(err, test.wantErr) || test.wantErr == nil && err != nil {
			t.Errorf("%s: %+v, %v; want %v", name, outcome, err, test.wantErr)
		}
		if attempt := test.record.NextAttempt(test.params.ClaimID); attempt != test.attempt {
			t.Errorf("%s: attempt %d, want %d", name, attempt, test.attempt)
		}
	}
	var none *idempotency.Record
	if attempt := none.NextAttempt(id); attempt != 1 {
		t.Errorf("attempt %d of a new key, want 1", attempt)
	}
}
