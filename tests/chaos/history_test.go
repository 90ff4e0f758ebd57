//go:build unix

package chaos_test

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/samecommit/samecommit/idempotency"
)

// fault is a kind of fault.
type fault string

// notFound is what Get tells of a key without an answer.
const notFound kind = "not found"

// tellable is what callers may be told. A final error counts as an answer.
var tellable = []kind{executed, replayed, inProgress, mismatch, notFound, failed, unknown}

// call is one call for one key, as its caller saw it. A batch is one for each
// of its keys. Times are nanoseconds since the history began.
type call struct {
	key         idempotency.Key
	eid         string // of the effect that the call may have; unique
	fingerprint string
	verb        string
	ttl         time.Duration
	hurried     bool // it was cancelled unless it was very quick
	process     int
	worker      int
	start, end  int64

	kind kind
	// by is whose answer the call got: its own where it executed.
	by string
	// final says that the answer is a final error, which has no effect.
	final bool
	// created and expires are those of the answer, by the database's clock, as
	// nanoseconds since the history began. Unset without an answer.
	created, expires int64
	err              error
	// met are the faults that may have had a part in the call.
	met map[fault]bool
}

func (c *call) String() string {
	text := fmt.Sprintf("%d.%d %s %s/%s %s %s: %s", c.process, c.worker, c.verb, c.key.Scope, c.key.ID, c.eid, c.fingerprint, c.kind)
	if c.by != "" {
		text += " by " + c.by
	}
	if c.err != nil {
		text += fmt.Sprintf(" (%v)", c.err)
	}
	return fmt.Sprintf("%s [%v, %v] met %v", text, time.Duration(c.start), time.Duration(c.end), slices.Sorted(maps.Keys(c.met)))
}

// answered reports whether the call told its caller an answer.
func (c *call) answered() bool { return c.kind == executed || c.kind == replayed }

// keyState is what the model knows of a key: whose answer it has, if any.
type keyState struct {
	by, fingerprint string
	// expires is no later than the answer's expiry.
	expires int64
}

// clockMargin is how far the database's clock may be from where it was measured.
const clockMargin = int64(20 * time.Millisecond)

// replayMargin is how much older than a call the answer may be that it gets: the
// call that found it hands it to those that have come meanwhile.
const replayMargin = int64(time.Second)

// free reports whether the key can be free at the given time.
func (s keyState) free(at int64) bool { return s.by == "" || s.expires <= at+clockMargin }

// model is what a key may do, as seen by its callers: each call takes effect at
// one moment between its start and its end.
var model = porcupine.NondeterministicModel{
	Partition: partition,
	Init:      func() []any { return []any{keyState{}} },
	Step: func(from, input, _ any) []any {
		s, c := from.(keyState), input.(*call)
		done := keyState{by: c.eid, fingerprint: c.fingerprint, expires: c.expires}
		allowed := true
		switch c.kind {
		case executed:
			if c.by != c.eid || s.by != "" && s.expires > c.created+clockMargin {
				return nil
			}
			return []any{done}
		case unknown:
			done.expires = c.start + int64(c.ttl) - clockMargin
			if s.free(c.end) {
				return []any{s, done}
			}
		case replayed:
			allowed = s.by == c.by && s.fingerprint == c.fingerprint && c.expires >= c.start-replayMargin
		case mismatch:
			allowed = s.by != "" && s.fingerprint != c.fingerprint
		case inProgress, notFound:
			allowed = s.free(c.end)
		}
		if !allowed {
			return nil
		}
		return []any{s}
	},
	DescribeOperation: func(input, _ any) string { return input.(*call).String() },
	DescribeState: func(s any) string {
		if states, ok := s.([]any); ok {
			return fmt.Sprint(states...)
		}
		return fmt.Sprint(s)
	},
}

func partition(history []porcupine.Operation) [][]porcupine.Operation {
	byKey := make(map[idempotency.Key][]porcupine.Operation)
	for _, op := range history {
		key := op.Input.(*call).key
		byKey[key] = append(byKey[key], op)
	}
	parts := make([][]porcupine.Operation, 0, len(byKey))
	for _, part := range byKey {
		parts = append(parts, part)
	}
	return parts
}

// linearizable checks calls against the model, and returns what to draw.
func linearizable(calls []*call, limit time.Duration) (porcupine.CheckResult, porcupine.LinearizationInfo) {
	ops := make([]porcupine.Operation, 0, len(calls))
	for _, c := range calls {
		end := c.end
		if c.kind == unknown {
			end = math.MaxInt64 // it may be done at any time from its start on
		}
		ops = append(ops, porcupine.Operation{ClientId: c.worker, Input: c, Call: c.start, Return: end})
	}
	return porcupine.CheckOperationsVerbose(model.ToModel(), ops, limit)
}

// groundless returns the calls that were told "in progress" though nothing was:
// no call for the key overlapped them, and none that ended without an answer, or
// met a fault, can still have been at work on the server.
func groundless(calls []*call, linger time.Duration) (without []*call) {
	byKey := make(map[idempotency.Key][]*call)
	for _, c := range calls {
		byKey[c.key] = append(byKey[c.key], c)
	}
	for _, of := range byKey {
		for _, c := range of {
			if c.kind == inProgress && !slices.ContainsFunc(of, func(other *call) bool { return other.mayHold(c, linger) }) {
				without = append(without, c)
			}
		}
	}
	slices.SortFunc(without, func(a, b *call) int { return cmp.Compare(a.start, b.start) })
	return without
}

// mayHold reports whether c can be what holder found in progress.
func (c *call) mayHold(found *call, linger time.Duration) bool {
	if c == found {
		// A try of its own that lost its connection can still be at work on the
		// server when the next one looks.
		return len(c.met) > 0
	}
	if c.verb == verbGet || c.start > found.end {
		return false
	}
	until := c.end
	if c.kind == failed || c.kind == unknown || len(c.met) > 0 {
		until += int64(linger)
	}
	return until >= found.start
}

func describe(calls []*call) string {
	lines := make([]string, 0, len(calls))
	for _, c := range calls {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}
