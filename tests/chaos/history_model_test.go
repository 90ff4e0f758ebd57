//go:build unix

package chaos_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/samecommit/samecommit/idempotency"
)

// seededHistory is what a correct store could have told n callers of many keys,
// a few at a time.
func seededHistory(random *rand.Rand, n int) []*call {
	const callersPerKey = 10
	var calls []*call
	for i := range n {
		key := idempotency.Key{Scope: "s", ID: fmt.Sprint(i / callersPerKey)}
		at := int64(i/callersPerKey) * 1000
		c := &call{
			key: key, eid: fmt.Sprint("e", i), fingerprint: "a", verb: verbDo, ttl: time.Hour, worker: i % 8,
			start: at + random.Int64N(10), end: at + 20 + random.Int64N(10),
			kind: replayed, by: fmt.Sprint("e", i-i%callersPerKey), expires: int64(time.Hour),
		}
		switch {
		case i%callersPerKey == 0:
			c.kind = executed
		case random.IntN(20) == 0:
			c.kind, c.by = unknown, ""
		case random.IntN(20) == 0:
			c.kind, c.by = failed, ""
		case random.IntN(20) == 0:
			c.kind, c.by = inProgress, ""
		}
		calls = append(calls, c)
	}
	return calls
}

func TestModelFindsOneDoubleExecutionInMany(t *testing.T) {
	t.Parallel()
	seed := newSeed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	calls := seededHistory(random, 50_000)
	if result, _ := linearizable(calls, time.Minute); result != porcupine.Ok {
		t.Fatalf("a history without a fault is %s", result)
	}
	// One replay tells of an execution of its own.
	for {
		c := calls[random.IntN(len(calls))]
		if c.kind == replayed {
			c.kind, c.by = executed, c.eid
			break
		}
	}
	if result, _ := linearizable(calls, time.Minute); result != porcupine.Illegal {
		t.Errorf("a history with a double execution is %s", result)
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	key := idempotency.Key{Scope: "s", ID: "k"}
	at := func(start, end int64, what kind, by string) *call {
		c := &call{
			key: key, eid: fmt.Sprintf("e%d", start), fingerprint: "a", verb: verbDo, ttl: time.Hour, start: start, end: end,
			kind: what, by: by, expires: int64(time.Hour),
		}
		if what == executed {
			c.by = c.eid
		}
		return c
	}
	other := func(c *call) *call {
		c.fingerprint = "b"
		return c
	}
	brief := func(c *call, created, expires time.Duration) *call {
		c.created, c.expires = int64(created), int64(expires)
		return c
	}
	executedBy := func(c *call, by string) *call {
		c.by = by
		return c
	}
	const late = int64(10 * time.Second)
	for name, test := range map[string]struct {
		legal bool
		calls []*call
	}{
		"one run and a replay":              {true, []*call{at(1, 2, executed, ""), at(3, 4, replayed, "e1")}},
		"two runs":                          {false, []*call{at(1, 2, executed, ""), at(3, 4, executed, "")}},
		"two runs at one time":              {false, []*call{at(1, 4, executed, ""), at(2, 3, executed, "")}},
		"a run with another's answer":       {false, []*call{executedBy(at(1, 2, executed, ""), "e9")}},
		"a replay of itself":                {false, []*call{at(1, 2, replayed, "e1")}},
		"a replay of nobody":                {false, []*call{at(1, 2, replayed, "e9")}},
		"a replay before its run":           {false, []*call{at(1, 2, replayed, "e3"), at(3, 4, executed, "")}},
		"a replay during its run":           {true, []*call{at(1, 2, replayed, "e0"), at(0, 4, executed, "")}},
		"a run after a failure":             {true, []*call{at(1, 2, failed, ""), at(3, 4, executed, "")}},
		"an unknown that was done":          {true, []*call{at(1, 2, unknown, ""), at(3, 4, replayed, "e1")}},
		"an unknown that was done later":    {true, []*call{at(1, 2, unknown, ""), at(3, 4, notFound, ""), at(5, 6, replayed, "e1")}},
		"an unknown that was not done":      {true, []*call{at(1, 2, unknown, ""), at(3, 4, executed, ""), at(5, 6, replayed, "e3")}},
		"an unknown that was done too late": {false, []*call{at(1, 2, unknown, ""), at(3, 4, executed, ""), at(5, 6, replayed, "e1")}},
		"in progress after the answer":      {false, []*call{at(1, 2, executed, ""), at(3, 4, inProgress, "")}},
		"in progress before the answer":     {true, []*call{at(1, 6, executed, ""), at(3, 4, inProgress, "")}},
		"not found after the answer":        {false, []*call{at(1, 2, executed, ""), at(3, 4, notFound, "")}},
		"a mismatch":                        {true, []*call{at(1, 2, executed, ""), other(at(3, 4, mismatch, ""))}},
		"a mismatch with nobody":            {false, []*call{other(at(1, 2, mismatch, ""))}},
		"a mismatch of the same request":    {false, []*call{at(1, 2, executed, ""), at(3, 4, mismatch, "")}},
		"a replay to another request":       {false, []*call{at(1, 2, executed, ""), other(at(3, 4, replayed, "e1"))}},
		"a run after the expiry": {true, []*call{
			brief(at(1, 2, executed, ""), 1, time.Second), brief(at(late, late+1, executed, ""), 10*time.Second, 11*time.Second),
		}},
		"a replay after the expiry": {false, []*call{
			brief(at(1, 2, executed, ""), 1, time.Second), brief(at(late, late+1, replayed, "e1"), 1, time.Second),
		}},
		"a run before the expiry": {false, []*call{
			brief(at(1, 2, executed, ""), 1, 20*time.Second), brief(at(late, late+1, executed, ""), 10*time.Second, 11*time.Second),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			result, _ := linearizable(test.calls, time.Minute)
			if legal := result == porcupine.Ok; legal != test.legal || result == porcupine.Unknown {
				t.Errorf("%s, want legal: %t", result, test.legal)
			}
		})
	}
}

func TestGroundlessInProgressIsFound(t *testing.T) {
	t.Parallel()
	itself := &call{eid: "x", verb: verbDo, start: 100, end: 110, kind: inProgress, met: map[fault]bool{"f": true}}
	if got := groundless([]*call{itself}, 50); len(got) != 0 {
		t.Errorf("a call that may have met its own lost try is groundless")
	}
	found := &call{eid: "x", verb: verbDo, start: 100, end: 110, kind: inProgress}
	for name, test := range map[string]struct {
		other *call
		want  int
	}{
		"nobody":                  {&call{eid: "y", verb: verbDo, start: 1, end: 90, kind: executed}, 1},
		"somebody":                {&call{eid: "y", verb: verbDo, start: 1, end: 105, kind: executed}, 0},
		"somebody later":          {&call{eid: "y", verb: verbDo, start: 120, end: 130, kind: executed}, 1},
		"a reader":                {&call{eid: "y", verb: verbGet, start: 1, end: 105, kind: notFound}, 1},
		"what may linger":         {&call{eid: "y", verb: verbDo, start: 1, end: 90, kind: unknown}, 0},
		"what was cut at its end": {&call{eid: "y", verb: verbDo, start: 1, end: 90, kind: replayed, met: map[fault]bool{"f": true}}, 0},
		"what has been undone":    {&call{eid: "y", verb: verbDo, start: 1, end: 20, kind: failed}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := groundless([]*call{found, test.other}, 50); len(got) != test.want {
				t.Errorf("%d groundless, want %d", len(got), test.want)
			}
		})
	}
}
