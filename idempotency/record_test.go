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
		"a lease":                  {record(idempotency.InProgress, now.Add(time.Minute)), other, idempotency.InProgress, nil},
		"that ends now":            {record(idempotency.InProgress, now), asked, 0, nil},
		"a claim without a lease":  {record(idempotency.InProgress, time.Time{}), asked, 0, nil},
		"an answer without an end": {record(idempotency.Completed, time.Time{}), asked, 0, nil},
	} {
		if expired := strings.HasPrefix(name, "that expires") || strings.HasSuffix(name, "without an end"); test.record != nil && test.record.Expired(now) != expired {
			t.Errorf("%s: Expired is %t, want %t", name, !expired, expired)
		}
		outcome, err := test.record.Judge(test.fingerprint, now)
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
		if test.want == idempotency.InProgress && outcome.RetryAfter != time.Minute {
			t.Errorf("%s: retry after %v, want the rest of the lease", name, outcome.RetryAfter)
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
