package idempotency

import (
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
