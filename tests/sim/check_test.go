package sim_test

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/samecommit/samecommit/idempotency"
)

// answerGrace is how much longer than its wait a call may be kept by the others
// of its process. See gate.go.
const answerGrace = time.Second

// check compares what callers were told with what has happened. The invariants
// have the numbers of the proof's list.
func (w *world) check() {
	answers := make(map[*call]answerOf)
	byID := make(map[int]answerOf)
	claims := make(map[idempotency.ClaimID]*call)
	for _, answer := range w.answers {
		if _, twice := answers[answer.call]; twice {
			w.violation("I1: %s was recorded twice", answer.call)
		}
		if other := claims[answer.claim]; other != nil {
			w.violation("I10: %s and %s completed one claim", answer.call, other)
		}
		answers[answer.call], claims[answer.claim] = answer, answer.call
		byID[answer.call.id] = answer
	}
	w.checkEffects(answers)
	w.checkEpochs()
	for _, c := range w.calls {
		w.checkCall(c, answers, byID)
	}
	w.checkInProgress()
	w.checkLinearizable(answers)
}

// checkEffects is I3 at the end: effects and answers are the same calls.
func (w *world) checkEffects(answers map[*call]answerOf) {
	effects := make(map[*call]int)
	for _, effect := range w.effects {
		effects[effect.call]++
		if answer, ok := answers[effect.call]; !ok || answer.final {
			w.violation("I3: %s left an effect and no answer of its own", effect.call)
		}
	}
	for c, answer := range answers {
		want := 1
		if answer.final {
			want = 0
		}
		if effects[c] != want {
			w.violation("I1: %s has %d effects; want %d", c, effects[c], want)
		}
	}
}

// checkEpochs is I1: an answer follows another only once that has expired.
func (w *world) checkEpochs() {
	for _, key := range w.allKeys() {
		var epochs []answerOf
		for _, answer := range w.answers {
			if answer.call.key == key {
				epochs = append(epochs, answer)
			}
		}
		slices.SortStableFunc(epochs, func(a, b answerOf) int { return a.created.Compare(b.created) })
		for i := 1; i < len(epochs); i++ {
			if epochs[i].created.Before(epochs[i-1].expires) {
				w.violation("I1: %s was recorded while the answer of %s was still good", epochs[i].call, epochs[i-1].call)
			}
		}
	}
}

func (w *world) allKeys() (keys []idempotency.Key) {
	for _, c := range w.calls {
		if !slices.Contains(keys, c.key) {
			keys = append(keys, c.key)
		}
	}
	return keys
}

func (w *world) checkCall(c *call, answers map[*call]answerOf, byID map[int]answerOf) {
	own, committed := answers[c]
	switch {
	case c.outcome.ran():
		if !committed || own.body != c.body || own.final != (c.outcome == executedFinal) || own.claim != c.record.ClaimID {
			w.violation("I2: %s was told that it ran, and its answer is not what was recorded", c)
		}
	case c.outcome == replayed || c.outcome == replayedFinal:
		w.checkReplay(c, byID)
	case c.outcome == unknown:
		if c.faults[ghost] && !committed {
			w.violation("the simulator lost the ghost of %s", c)
		}
	case committed:
		w.violation("I11: %s is %s and its answer was recorded", c, c.outcome)
	}
	if c.outcome == mismatch && !w.explainsMismatch(c) {
		w.violation("I7: %s was refused, and no other request had the key", c)
	}
	if c.outcome == overloaded && !w.explainsOverload(c) {
		w.violation("I13: %s was turned away, and the store was not at fault: %v", c, c.err)
	}
	if c.outcome == inProgress {
		waiting, ok := c.err.(*idempotency.InProgressError) //nolint:errorlint // it comes unwrapped
		if !ok || waiting.RetryAfter <= 0 {
			w.violation("%s is in progress without advice on when to try again: %v", c, c.err)
		} else if took := c.returnedAt.Sub(c.calledAt); waiting.Err == nil && took < c.wait {
			w.violation("I5: %s gave up after %s", c, took)
		}
	}
	// Waiting counts from the call on; what its own requests took is not waiting.
	if idle := c.returnedAt.Sub(c.calledAt) - c.inStore; c.verb == verbDo && idle > max(c.wait, 0)+answerGrace {
		w.violation("I13: %s was kept waiting for %s", c, idle)
	}
}

// span is a stretch of time.
type span struct{ from, to time.Time }

// explainsOverload reports whether the call had to be turned away: as many wait
// as may, or the store kept its process waiting for all of the grace.
func (w *world) explainsOverload(c *call) bool {
	if waited := c.returnedAt.Sub(c.calledAt) - c.inStore; waited < c.wait {
		return w.limits[c.process] > 0
	}
	var silent time.Duration
	for _, other := range w.calls {
		if other.process != c.process || other.key != c.key {
			continue
		}
		for _, asked := range other.asking {
			from, to := asked.from, asked.to
			if begin := c.returnedAt.Add(-answerGrace); from.Before(begin) {
				from = begin
			}
			if to.After(c.returnedAt) {
				to = c.returnedAt
			}
			silent += max(to.Sub(from), 0)
		}
	}
	return silent >= answerGrace
}

// checkReplay is I2, I4 and I7 for a call that was given another one's answer.
func (w *world) checkReplay(c *call, byID map[int]answerOf) {
	var of answerOf
	if c.outcome == replayed {
		of = byID[c.by]
	} else {
		for _, answer := range w.answers {
			if answer.claim == c.record.ClaimID {
				of = answer
			}
		}
	}
	switch {
	case of.call == nil:
		w.violation("I2: %s got an answer that was never recorded", c)
		return
	case of.call == c || of.call.key != c.key || of.body != c.body || of.final != (c.outcome == replayedFinal) || of.claim != c.record.ClaimID:
		w.violation("I4: %s got an answer that is not the one of %s", c, of.call)
	case !fingerprints[c.fingerprint].Matches(fingerprints[of.call.fingerprint]):
		w.violation("I7: %s got the answer of another request, %s", c, of.call)
	case !of.expires.After(c.calledAt):
		w.violation("I14: %s got the answer of %s, which had expired %s before the call", c, of.call, c.calledAt.Sub(of.expires))
	}
	c.by = of.call.id
}

func (w *world) explainsMismatch(c *call) bool {
	return slices.ContainsFunc(w.answers, func(answer answerOf) bool {
		return answer.call.key == c.key && !fingerprints[c.fingerprint].Matches(fingerprints[answer.call.fingerprint]) &&
			answer.expires.After(c.calledAt) && !answer.created.After(c.returnedAt)
	})
}

// checkInProgress is one half of I5: whoever is told that the key is in
// progress was told so of a time within its call.
func (w *world) checkInProgress() {
	for _, c := range w.calls {
		if c.outcome != inProgress {
			continue
		}
		if !slices.ContainsFunc(w.holds, func(h *hold) bool {
			return h.confirmed && h.call != c && h.call.key == c.key && h.from < c.returned && h.to > c.called
		}) {
			w.violation("I5: %s is in progress, and nobody held the key while it was called", c)
		}
	}
}

// observation is one call as the model of a key sees it.
type observation struct {
	call   *call
	answer answerOf // what it recorded, or was given
	ran    bool
}

// keyState is the answer of a key, the zero answerOf where it has none.
type keyState struct {
	by      int
	expires int64
	// request is which fingerprint the answer was recorded under.
	request int
}

// An instant of a call can be chosen freely between its beginning and its end,
// so what has expired by its end may have been free, and what had not by its
// beginning may have been there.
var keyModel = porcupine.Model{
	Init: func() any { return keyState{} },
	Step: func(state, input, _ any) (bool, any) {
		before, seen := state.(keyState), input.(observation)
		c := seen.call
		free := before.by == 0 || before.expires <= c.returnedAt.UnixNano()
		there := before.by != 0 && before.expires > c.calledAt.UnixNano()
		switch {
		case seen.ran:
			return free || c.outcome == unknown, keyState{c.id, seen.answer.expires.UnixNano(), c.fingerprint}
		case c.outcome == inProgress:
			return free, before
		case c.outcome == mismatch:
			return there && !fingerprints[c.fingerprint].Matches(fingerprints[before.request]), before
		default:
			return there && before.by == c.by, before
		}
	},
	DescribeOperation: func(input, _ any) string { return input.(observation).call.String() },
}

// checkLinearizable is I6, and with it I5: the calls of a key can be put in an
// order, each within its own time, in which a single process could have made
// them. A call whose outcome is unknown counts as what became of it, at any time
// after it was made.
func (w *world) checkLinearizable(answers map[*call]answerOf) {
	for _, key := range w.allKeys() {
		var operations []porcupine.Operation
		var names []string
		for _, c := range w.calls {
			seen := observation{call: c}
			seen.answer, seen.ran = answers[c]
			if c.key != key || !seen.ran && !c.outcome.isAnswer() && c.outcome != inProgress && c.outcome != mismatch {
				continue
			}
			end := c.returned
			if c.outcome == unknown {
				end = math.MaxInt64
			}
			names = append(names, c.String())
			operations = append(operations, porcupine.Operation{ClientId: len(operations), Input: seen, Call: c.called, Return: end})
		}
		if !porcupine.CheckOperations(keyModel, operations) {
			w.violation("I6: there is no order in which these calls of %s make sense:\n\t%s", key.ID, strings.Join(names, "\n\t"))
		}
	}
}
