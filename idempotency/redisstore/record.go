package redisstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// errForeign is about a value that this version does not write.
var errForeign = errors.New("redisstore: the value under the key is not as this version writes it: another version has, or another program")

const (
	stateLeased    = "leased"
	stateCompleted = "completed"
)

// step is a line of a record in progress. JSON writes the body in base64: null for
// nil, and "" for an empty one.
type step struct {
	// Name comes first: addstep.lua finds a step by the beginning of its line.
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
	Type      string `json:"type"`
	Body      []byte `json:"body"`
	// RecordedAt is in microseconds since 1970; the server adds it.
	RecordedAt int64 `json:"recorded_at,omitempty"`
}

// stepLine returns the line of a step without its end, and its beginning up to the
// name.
func stepLine(added *idempotency.StepRecord) (name, line string, err error) {
	encoded, err := json.Marshal(&step{
		Name: added.Name, Arguments: added.Arguments.Text(), Type: added.Response.Type, Body: added.Response.Body,
	})
	if err != nil {
		return "", "", err
	}
	quoted, err := json.Marshal(added.Name)
	if err != nil {
		return "", "", err
	}
	return `{"name":` + string(quoted) + `,`, string(bytes.TrimSuffix(encoded, []byte("}"))), nil
}

// parseRecord reads a record.
func parseRecord(key idempotency.Key, value string) (*idempotency.Record, error) {
	head, rest, ok := strings.Cut(value, "\n")
	if !ok {
		return nil, errForeign
	}
	record, err := parseHead(key, head)
	if err != nil {
		return nil, err
	}
	if record.State == idempotency.Completed {
		record.Response, err = parseResponse(rest)
	} else {
		record.Steps, err = parseSteps(rest)
	}
	return record, err
}

// parseHead reads the first line of a record.
func parseHead(key idempotency.Key, head string) (*idempotency.Record, error) {
	fields := strings.Fields(head)
	if len(fields) != 9 || fields[0] != "samecommit1" {
		return nil, errForeign
	}
	record := &idempotency.Record{Key: key, State: idempotency.InProgress}
	var err error
	if record.ClaimID, err = idempotency.ParseClaimID(fields[2]); err != nil {
		return nil, errForeign
	}
	if record.Attempt, err = strconv.Atoi(fields[4]); err != nil {
		return nil, errForeign
	}
	if record.Fingerprint, err = idempotency.ParseFingerprintText(fields[5]); err != nil {
		return nil, errForeign
	}
	var times [3]time.Time
	for i, field := range fields[6:] {
		if times[i], err = parseTime(field); err != nil {
			return nil, errForeign
		}
	}
	record.CreatedAt, record.UpdatedAt = times[0], times[1]
	switch fields[1] {
	case stateLeased:
		record.LockedUntil = times[2]
	case stateCompleted:
		record.State, record.ExpiresAt = idempotency.Completed, times[2]
	default:
		return nil, errForeign
	}
	return record, nil
}

func parseTime(micros string) (time.Time, error) {
	n, err := strconv.ParseInt(micros, 10, 64)
	return time.UnixMicro(n), err
}

// formatResponse writes an answer: its type as JSON, which has no newline, and behind
// one the bytes, or no newline for a body that is nil.
func formatResponse(response *idempotency.Response) (string, error) {
	quoted, err := json.Marshal(response.Type)
	if err != nil || response.Body == nil {
		return string(quoted), err
	}
	return string(quoted) + "\n" + string(response.Body), nil
}

func parseResponse(text string) (*idempotency.Response, error) {
	quoted, body, hasBody := strings.Cut(text, "\n")
	response := &idempotency.Response{}
	if err := json.Unmarshal([]byte(quoted), &response.Type); err != nil {
		return nil, errForeign
	}
	if hasBody {
		response.Body = []byte(body)
	}
	return response, nil
}

func parseSteps(text string) (steps []idempotency.StepRecord, err error) {
	for line := range strings.Lines(text) {
		var found step
		if err := json.Unmarshal([]byte(line), &found); err != nil {
			return nil, errForeign // its text could hold a part of what was recorded
		}
		arguments, err := idempotency.ParseFingerprintText(found.Arguments)
		if err != nil {
			return nil, errForeign
		}
		steps = append(steps, idempotency.StepRecord{
			Name: found.Name, Arguments: arguments, RecordedAt: time.UnixMicro(found.RecordedAt),
			Response: &idempotency.Response{Type: found.Type, Body: found.Body},
		})
	}
	return steps, nil
}
