package mongostore

import (
	"bytes"
	"errors"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/samecommit/samecommit/idempotency"
)

var (
	// errForeign is about a document that this version does not write.
	errForeign = errors.New("mongostore: the document of the key is not as this version writes it: another version has, or another program")
	// errCollation is about the document of another key.
	errCollation = errors.New("mongostore: the document that the server has found is another key's: the collection has a collation, so use one without")
)

const (
	stateLeased    = "leased"
	stateCompleted = "completed"
)

// documentID is the key. Its fields are compared in this order.
type documentID struct {
	Scope string `bson:"scope"`
	ID    string `bson:"id"`
}

// document is a record as it is stored. The server writes its dates, in milliseconds;
// what lasts from one of them on is a number of milliseconds.
type document struct {
	ID documentID `bson:"_id"`
	// Version grows with every write, from 1.
	Version     int64         `bson:"v"`
	State       string        `bson:"state"`
	Claim       bson.Binary   `bson:"claim"`
	Attempt     int           `bson:"attempt"`
	Fingerprint bson.Binary   `bson:"fingerprint"`
	Created     bson.DateTime `bson:"created"`
	Updated     bson.DateTime `bson:"updated"`
	// Leased is when the lease began, or was extended.
	Leased bson.DateTime `bson:"leased"`
	// Lease is a millisecond longer than it was asked for: both its beginning and the
	// time that it is compared with have lost their microseconds.
	Lease     int64  `bson:"lease_ms"`
	Suspended bool   `bson:"suspended"`
	Steps     []step `bson:"steps"`

	// Of completed records alone: the answer, how long it replays from Updated on, and
	// from when on the server may delete it.
	Type string        `bson:"type"`
	Body *bson.Binary  `bson:"body"`
	TTL  int64         `bson:"ttl_ms"`
	GC   bson.DateTime `bson:"gc"`
}

// step is one of document.Steps.
type step struct {
	Name      string       `bson:"name"`
	Arguments bson.Binary  `bson:"arguments"`
	Type      string       `bson:"type"`
	Body      *bson.Binary `bson:"body"`
	// Recorded is the server's time just before: nothing is decided by it.
	Recorded bson.DateTime `bson:"recorded"`
}

func newStep(added *idempotency.StepRecord, at time.Time) *step {
	return &step{
		Name: added.Name, Arguments: binary(added.Arguments.Bytes()),
		Type: added.Response.Type, Body: binaryBody(added.Response.Body), Recorded: bson.NewDateTimeFromTime(at),
	}
}

func newID(key idempotency.Key) documentID { return documentID{Scope: key.Scope, ID: key.ID} }

func binaryClaim(id idempotency.ClaimID) bson.Binary {
	return bson.Binary{Subtype: bson.TypeBinaryUUID, Data: id[:]}
}

func binary(data []byte) bson.Binary { return bson.Binary{Data: data} }

// binaryBody returns null for nil.
func binaryBody(body []byte) *bson.Binary {
	if body == nil {
		return nil
	}
	return &bson.Binary{Data: body}
}

func bodyOf(body *bson.Binary) []byte {
	switch {
	case body == nil:
		return nil
	case len(body.Data) == 0:
		return []byte{}
	}
	return bytes.Clone(body.Data)
}

// milliseconds rounds up, also what is as long as can be.
func milliseconds(duration time.Duration) int64 {
	whole := int64(duration / time.Millisecond)
	if duration%time.Millisecond > 0 {
		whole++
	}
	return whole
}

func leaseMilliseconds(lease time.Duration) int64 { return milliseconds(lease) + 1 }

// lockedUntil is the end of the lease.
func (d *document) lockedUntil() time.Time { return time.UnixMilli(int64(d.Leased) + d.Lease) }

// expires is when the answer stops replaying.
func (d *document) expires() time.Time { return time.UnixMilli(int64(d.Updated) + d.TTL) }

// decode reads what the server has sent.
func decode(raw bson.Raw) (*document, error) {
	var found document
	if err := bson.Unmarshal(raw, &found); err != nil {
		return nil, errForeign // its text could hold a part of what was recorded
	}
	return &found, nil
}

// record reads a document. Its errors do not say what it holds.
func (d *document) record(key idempotency.Key) (*idempotency.Record, error) {
	if d.ID != newID(key) {
		return nil, errCollation
	}
	record := &idempotency.Record{
		Key: key, State: idempotency.InProgress, Attempt: d.Attempt,
		CreatedAt: d.Created.Time(), UpdatedAt: d.Updated.Time(),
	}
	if len(d.Claim.Data) != len(record.ClaimID) || d.Attempt < 1 || d.Version < 1 {
		return nil, errForeign
	}
	record.ClaimID = idempotency.ClaimID(d.Claim.Data)
	var err error
	if record.Fingerprint, err = idempotency.ParseFingerprint(d.Fingerprint.Data); err != nil {
		return nil, errForeign
	}
	switch d.State {
	case stateCompleted:
		record.State, record.ExpiresAt = idempotency.Completed, d.expires()
		record.Response = &idempotency.Response{Type: d.Type, Body: bodyOf(d.Body)}
	case stateLeased:
		// A lease that ends when its record last changed is one that was suspended.
		if record.LockedUntil = d.lockedUntil(); d.Suspended {
			record.LockedUntil = record.UpdatedAt
		} else if record.LockedUntil.Equal(record.UpdatedAt) {
			record.UpdatedAt = record.UpdatedAt.Add(time.Microsecond)
		}
		record.Steps, err = d.steps()
	default:
		return nil, errForeign
	}
	return record, err
}

func (d *document) steps() ([]idempotency.StepRecord, error) {
	var steps []idempotency.StepRecord
	for _, found := range d.Steps {
		arguments, err := idempotency.ParseFingerprint(found.Arguments.Data)
		if err != nil {
			return nil, errForeign
		}
		steps = append(steps, idempotency.StepRecord{
			Name: found.Name, Arguments: arguments, RecordedAt: found.Recorded.Time(),
			Response: &idempotency.Response{Type: found.Type, Body: bodyOf(found.Body)},
		})
	}
	return steps, nil
}
